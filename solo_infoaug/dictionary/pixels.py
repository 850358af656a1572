"""The crops of a dictionary in its files: raw or JPEG, read when they are indexed.

A file that is missing or damaged is a DictionaryError that names it.
"""

from __future__ import annotations

import io
import itertools
import math
import threading
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from solo_infoaug import _jpeg
from solo_infoaug._files import reason_of
from solo_infoaug.dictionary.files import Stretch
from solo_infoaug.dictionary.format import Lying, look_at_tensors
from solo_infoaug.errors import DictionaryError

# This many files are kept mapped.
_OPEN_FILES = 512

Encoded = list[list[bytes]]
"""[P][S]: crops as JPEG files."""


@dataclass(frozen=True)
class Shard:
    """One file of pixels: crops of `shape` (S, 3, H, W) of n patches.

    `starts` int64 [n] says where in `place.path` each patch's bytes begin. Raw crops lie there as
    uint8 [S, 3, H, W]. JPEGs of one size and quality begin alike, which is stored once: `prefix` is
    what all begin with, `sizes` int32 [n, S] the bytes of the rest of each.
    """

    place: Stretch
    shape: tuple[int, ...]
    starts: np.ndarray
    prefix: bytes | None = None
    sizes: np.ndarray | None = None

    @property
    def patches(self) -> int:
        """n."""
        return len(self.starts)

    @classmethod
    def look(cls, place: Stretch) -> Shard:
        """The layout of a file, without reading a crop."""
        tensors = look_at_tensors(place)
        if "pixels" in tensors:
            pixels = _expect(place, tensors, "pixels", "U8", 5)
            patches, *shape = pixels.shape
            starts = pixels.start + np.arange(patches) * math.prod(shape)
            return cls(place, tuple(shape), starts)
        return cls._look_at_jpegs(place, tensors)

    @classmethod
    def _look_at_jpegs(cls, place: Stretch, tensors: Mapping[str, Lying]) -> Shard:
        data = _expect(place, tensors, "jpeg", "U8", 1)
        prefix = _read(place, _expect(place, tensors, "prefix", "U8", 1))
        lying = _expect(place, tensors, "sizes", "I32", 2)
        sizes = np.frombuffer(_read(place, lying), np.int32).reshape(lying.shape)
        ends = np.cumsum(sizes.sum(axis=1, dtype=np.int64))
        if sizes.size == 0 or sizes.min() < 0 or ends[-1] != data.stop - data.start:
            raise DictionaryError(f"{place.label}: damaged: sizes of crops do not add up")
        side = _side(prefix, place)
        starts = data.start + np.concatenate([[0], ends[:-1]])
        return cls(place, (sizes.shape[1], 3, side, side), starts, prefix, sizes)


def _expect(
    place: Stretch, tensors: Mapping[str, Lying], name: str, dtype: str, axes: int
) -> Lying:
    found = tensors.get(name)
    if found is None or found.dtype != dtype or len(found.shape) != axes:
        came = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
        raise DictionaryError(
            f"{place.label}: damaged: `{name}` should be {dtype} of {axes} axes, but is {came}"
        )
    return found


def _read(place: Stretch, tensor: Lying) -> bytes:
    with place.path.open("rb") as file:
        file.seek(tensor.start)
        return file.read(tensor.stop - tensor.start)


def _side(prefix: bytes, place: Stretch) -> int:
    """Pixels of a side of the crops that begin with this."""
    try:
        # Size and kind are in what all crops share, so that none of them is larger
        with Image.open(io.BytesIO(prefix)) as image:
            kind, (width, height) = image.format, image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DictionaryError(f"{place.label}: damaged: its crops have no JPEG header") from error
    if kind != "JPEG" or width != height:
        raise DictionaryError(
            f"{place.label}: damaged: crops are {kind} of {width}×{height} pixels"
        )
    return width


def mapped(path: Path) -> np.ndarray:
    """uint8: a file, mapped. Changes to the array stay in memory."""
    try:
        return np.asarray(np.memmap(path, np.uint8, "c"))
    except (OSError, ValueError) as error:
        raise DictionaryError(f"{path}: cannot be read: {reason_of(error)}") from error


def encoded_tensors(crops: Encoded) -> dict[str, np.ndarray]:
    """What a file of JPEG crops holds; see `Shard`."""
    flat = [jpeg for moments in crops for jpeg in moments]
    # What the first and the last in order share is shared by all between them
    ends = zip(min(flat), max(flat), strict=False)
    prefix = bytes(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], ends))
    rest = b"".join(jpeg[len(prefix) :] for jpeg in flat)
    sizes = np.array([[len(jpeg) - len(prefix) for jpeg in moments] for moments in crops])
    return {
        "jpeg": np.frombuffer(rest, np.uint8),
        "prefix": np.frombuffer(prefix, np.uint8),
        "sizes": sizes.astype(np.int32),
    }


def encode(pixels: np.ndarray) -> Encoded:
    """uint8 [P, S, 3, H, W] as JPEGs."""
    planes = pixels.transpose(0, 1, 3, 4, 2)
    return [[_jpeg.encode(np.ascontiguousarray(crop)) for crop in row] for row in planes]


def stored(shards: Sequence[Shard], rows: slice) -> np.ndarray | Encoded:
    """The crops of some patches as they are stored: uint8 [P, S, 3, H, W], or JPEGs."""
    first, raw, jpegs = 0, [], []
    for shard in shards:
        here = range(max(rows.start - first, 0), min(rows.stop - first, shard.patches))
        if not here:
            first += shard.patches
            continue
        data = mapped(shard.place.path)
        for patch in here:
            if shard.prefix is None or shard.sizes is None:
                start = shard.starts[patch]
                raw.append(data[start : start + math.prod(shard.shape)].reshape(shard.shape))
            else:
                stops = shard.starts[patch] + np.cumsum(shard.sizes[patch], dtype=np.int64)
                cuts = zip(stops - shard.sizes[patch], stops, strict=True)
                jpegs.append([shard.prefix + data[a:b].tobytes() for a, b in cuts])
        first += shard.patches
    if raw and jpegs:
        where = shards[0].place.label
        raise DictionaryError(f"{where}: damaged: some crops of the video are raw and some JPEG")
    return jpegs or np.stack(raw)


@dataclass(frozen=True)
class CropTable:
    """Where each patch's crops lie in a dictionary's files.

    `starts` int64 [N] is where in its file a patch's bytes begin, `sizes` int32 [N, S] (none where
    nothing is JPEG) how many each moment's have; see `Shard`. Patches from `first` int64 [B] on are
    in the file of number `file` int32 [B], and begin with `prefixes[prefix]`, int32 [B]; raw ones
    have −1 there.
    """

    shape: tuple[int, ...]
    starts: np.ndarray
    sizes: np.ndarray | None
    first: np.ndarray
    file: np.ndarray
    prefix: np.ndarray
    prefixes: list[bytes]


class PixelFiles:
    """All crops of a dictionary; the latest files stay mapped.

    `find` gives the path of a file by its number, and may have to fetch it first; `names` are what
    messages call them.
    """

    def __init__(
        self, table: CropTable, find: Callable[[int], Path], names: Sequence[str | Path]
    ) -> None:
        self.table = table
        self.shape = (len(table.starts), *table.shape)
        self._find, self._names = find, names
        self._maps: dict[int, np.ndarray] = {}
        self._opening = threading.Lock()

    @property
    def encoded(self) -> bool:
        """Whether any crop must be decoded."""
        return bool((self.table.prefix >= 0).any())

    def open(self, number: int) -> np.ndarray:
        """uint8: a file, mapped."""
        with self._opening:  # training reads ahead in a thread of its own
            if number not in self._maps:
                while len(self._maps) >= _OPEN_FILES:
                    self._maps.pop(next(iter(self._maps)))
                self._maps[number] = mapped(self._find(number))
            return self._maps[number]

    def keep(self, numbers: Container[int]) -> None:
        """Unmap all other files: a file that is deleted but mapped still occupies the disk."""
        with self._opening:
            for number in [number for number in self._maps if number not in numbers]:
                del self._maps[number]

    def raw(self) -> torch.Tensor:
        """uint8 [N, S, 3, H, W]: all crops, if none is JPEG."""
        table, size = self.table, math.prod(self.shape[1:])
        stops = [*table.first[1:].tolist(), len(table.starts)]
        blocks = []
        for first, stop, file in zip(table.first.tolist(), stops, table.file.tolist(), strict=True):
            data = self._cut(file, int(table.starts[first]), size * (stop - first))
            blocks.append(torch.from_numpy(data.reshape(stop - first, *self.shape[1:])))
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)

    def crops(self, places: np.ndarray, moments: np.ndarray) -> np.ndarray:
        """uint8 [B, 3, H, W]: patches `places` int64 [B] at `moments` int64 [B]."""
        table, crops = self.table, np.empty((len(places), *self.shape[2:]), np.uint8)
        blocks = np.searchsorted(table.first, places, side="right") - 1
        files, prefix = table.file[blocks].tolist(), table.prefix[blocks].tolist()
        raw = math.prod(self.shape[2:])
        starts, sizes = table.starts[places] + moments * raw, np.full(len(places), raw)
        if table.sizes is not None:
            # A patch's moments follow each other
            each, rows = table.sizes[places].astype(np.int64), np.arange(len(places))
            before = each.cumsum(axis=1)[rows, moments] - each[rows, moments]
            encoded = table.prefix[blocks] >= 0
            starts = np.where(encoded, table.starts[places] + before, starts)
            sizes = np.where(encoded, each[rows, moments], sizes)
        jpegs: dict[int, bytes] = {}
        for row, (start, size) in enumerate(zip(starts.tolist(), sizes.tolist(), strict=True)):
            data = self._cut(files[row], start, size)
            if prefix[row] < 0:
                crops[row] = data.reshape(crops.shape[1:])
            else:
                jpegs[row] = table.prefixes[prefix[row]] + data.tobytes()
        if (bad := _jpeg.decode_all(jpegs, crops)) is not None:
            name = self._names[files[bad]]
            raise DictionaryError(f"{name}: damaged: a crop cannot be decoded")
        return crops

    def _cut(self, number: int, start: int, size: int) -> np.ndarray:
        data = self._maps.get(number)
        data = self.open(number) if data is None else data
        if not 0 <= start <= start + size <= len(data):
            raise DictionaryError(f"{self._names[number]}: damaged: a crop lies outside of it")
        return data[start : start + size]


class LazyPixels:
    """uint8 [N, S, 3, H, W] that is decoded where it is indexed, as a tensor is.

    `dictionary.pixels[3]`, `[3:9, 0]`, `[index, moment]` and the like give tensors, and decode no
    more than they show; `torch` and NumPy functions take it as well, and decode all of it.
    """

    dtype = torch.uint8
    device = torch.device("cpu")
    ndim = 5

    def __init__(self, files: PixelFiles) -> None:
        self._files = files
        self.shape = torch.Size(files.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"LazyPixels(uint8 {list(self.shape)})"

    def __getitem__(self, key: Any) -> torch.Tensor:
        """As of a tensor: the first two axes choose what is decoded."""
        count, moments = self.shape[:2]
        places = torch.arange(count * moments).reshape(count, moments)
        first, rest = _first_axes(key)
        chosen = places[first]
        flat = chosen.reshape(-1).numpy()
        crops = torch.from_numpy(self._files.crops(flat // moments, flat % moments))
        crops = crops.reshape(*chosen.shape, *self.shape[2:])
        return crops[(*(slice(None),) * chosen.ndim, *rest)] if rest else crops

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[patch] for patch in range(len(self)))

    def numpy(self) -> np.ndarray:
        """All of it."""
        return self[:].numpy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.numpy() if dtype is None else self.numpy().astype(dtype)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        def decoded(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return type(value)(map(decoded, value))
            return value[:] if isinstance(value, cls) else value

        return function(*decoded(tuple(args)), **(kwargs or {}))


def _first_axes(key: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Split an index into five axes: the part for patch and moment, and the rest.

    Raises:
        IndexError: it uses `None`, or masks over more than one axis.
    """
    keys, masks = list(key) if isinstance(key, tuple) else [key], (torch.bool, np.bool_)
    if any(k is None or (getattr(k, "ndim", 0) > 1 and k.dtype in masks) for k in keys):
        raise IndexError("pixels: index patches and moments by numbers, slices or 1-D masks")
    if any(k is Ellipsis for k in keys):
        at = next(i for i, k in enumerate(keys) if k is Ellipsis)
        keys[at : at + 1] = [slice(None)] * (5 - len(keys) + 1)
    keys = [torch.from_numpy(k) if isinstance(k, np.ndarray) else k for k in keys]
    return tuple(keys[:2]), tuple(keys[2:])
