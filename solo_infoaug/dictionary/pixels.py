"""The crops of a dictionary in its files: raw or JPEG, read when they are indexed."""

from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from solo_infoaug import _jpeg
from solo_infoaug.dictionary.format import expect, read_tensors, shape_of, tensor_names
from solo_infoaug.errors import DictionaryError

# This many pixel files are kept mapped.
_OPEN_SHARDS = 512

Encoded = list[list[bytes]]
"""[P][S]: crops as JPEG files."""


@dataclass(frozen=True)
class Shard:
    """One file of pixels: `patches` n crops of `shape` (S, 3, H, W)."""

    path: Path
    patches: int
    shape: tuple[int, ...]
    encoded: bool

    @classmethod
    def look(cls, path: Path) -> Shard:
        """What is in a file, without reading a crop.

        Raises:
            DictionaryError: it is missing or damaged, or no file of crops.
        """
        if "pixels" in tensor_names(path):
            patches, *shape = shape_of(path, "pixels") or (0,)
            return cls(path, patches, tuple(shape), False)
        opened = JpegCrops.read(path)
        patches, moments = opened.starts.shape
        return cls(path, patches, (moments, 3, opened.side, opened.side), True)

    def open(self) -> torch.Tensor | JpegCrops:
        """uint8 [n, S, 3, H, W], mapped; or what is decoded from a mapped file."""
        if self.encoded:
            return JpegCrops.read(self.path)
        tensors = read_tensors(self.path)
        return expect(self.path, tensors, "pixels", torch.uint8, (self.patches, *self.shape))


@dataclass(frozen=True)
class JpegCrops:
    """Crops of one file. JPEGs of one size and quality begin alike, which is stored once.

    `prefix` is what all begin with, `starts` and `sizes` int64 [n, S] say where the rest of each
    lies in `data`, uint8.
    """

    path: Path
    side: int
    prefix: bytes
    starts: np.ndarray
    sizes: np.ndarray
    data: np.ndarray

    @classmethod
    def read(cls, path: Path) -> JpegCrops:
        """A file's crops, mapped.

        Raises:
            DictionaryError: it is missing or damaged.
        """
        tensors = read_tensors(path)
        prefix = expect(path, tensors, "prefix", torch.uint8, (-1,)).numpy().tobytes()
        sizes = expect(path, tensors, "sizes", torch.int32, (-1, -1)).numpy().astype(np.int64)
        data = expect(path, tensors, "jpeg", torch.uint8, (-1,)).numpy()
        if sizes.size == 0 or sizes.min() < 0 or sizes.sum() != len(data):
            raise DictionaryError(f"{path}: damaged: sizes of crops do not add up")
        try:
            # Size and kind are in what all crops share, so that none of them is larger
            with Image.open(io.BytesIO(prefix)) as image:
                kind, (width, height) = image.format, image.size
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DictionaryError(f"{path}: damaged: crops begin with no JPEG header") from error
        if kind != "JPEG" or width != height:
            raise DictionaryError(f"{path}: damaged: crops are {kind} of {width}×{height} pixels")
        starts = (np.cumsum(sizes) - sizes.ravel()).reshape(sizes.shape)
        return cls(path, width, prefix, starts, sizes, data)

    def jpeg(self, patch: int, moment: int) -> bytes:
        """One crop, as a file."""
        start = int(self.starts[patch, moment])
        return self.prefix + self.data[start : start + int(self.sizes[patch, moment])].tobytes()


def encoded_tensors(crops: Encoded) -> dict[str, np.ndarray]:
    """What a file of JPEG crops holds; see `JpegCrops`."""
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


def encoded_size(crops: Encoded) -> int:
    """Bytes of some crops."""
    return sum(len(jpeg) for moments in crops for jpeg in moments)


def encode(pixels: np.ndarray) -> Encoded:
    """uint8 [P, S, 3, H, W] as JPEGs."""
    planes = pixels.transpose(0, 1, 3, 4, 2)
    return [[_jpeg.encode(np.ascontiguousarray(crop)) for crop in row] for row in planes]


def stored(shards: Sequence[Shard], rows: slice) -> np.ndarray | Encoded:
    """The crops of some patches as they are stored: uint8 [P, S, 3, H, W], or JPEGs.

    Raises:
        DictionaryError: a file is damaged, or some are stored in one way and some in the other.
    """
    first, pieces = 0, []
    for shard in shards:
        start, stop = max(rows.start - first, 0), min(rows.stop - first, shard.patches)
        if start < stop:
            pieces.append((shard.open(), range(start, stop)))
        first += shard.patches
    raw = [one.numpy()[r.start : r.stop] for one, r in pieces if isinstance(one, torch.Tensor)]
    moments = range(shards[0].shape[0])
    jpegs = [
        [one.jpeg(patch, moment) for moment in moments]
        for one, patches in pieces
        if not isinstance(one, torch.Tensor)
        for patch in patches
    ]
    if raw and jpegs:
        raise DictionaryError(f"{shards[0].path}: damaged: one video's crops are raw and JPEG")
    return jpegs or np.concatenate(raw)


class PixelFiles:
    """All crops of a dictionary; the latest files stay mapped."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = list(shards)
        self.starts = np.cumsum([0, *(shard.patches for shard in self.shards)])
        self.shape = (int(self.starts[-1]), *self.shards[0].shape)
        self._maps: dict[int, torch.Tensor | JpegCrops] = {}
        self._opening = threading.Lock()

    @property
    def encoded(self) -> bool:
        """Whether any crop must be decoded."""
        return any(shard.encoded for shard in self.shards)

    def open(self, number: int) -> torch.Tensor | JpegCrops:
        """A file's crops, mapped."""
        with self._opening:  # training reads ahead in a thread of its own
            if number not in self._maps:
                while len(self._maps) >= _OPEN_SHARDS:
                    self._maps.pop(next(iter(self._maps)))
                self._maps[number] = self.shards[number].open()
            return self._maps[number]

    def raw(self) -> torch.Tensor:
        """uint8 [N, S, 3, H, W]: all of it, where nothing must be decoded."""
        opened = [self.open(number) for number in range(len(self.shards))]
        pixels = [one for one in opened if isinstance(one, torch.Tensor)]
        return pixels[0] if len(pixels) == 1 else torch.cat(pixels)

    def crops(self, places: np.ndarray, moments: np.ndarray) -> np.ndarray:
        """uint8 [B, 3, H, W]: patches `places` int64 [B] at `moments` int64 [B].

        Raises:
            DictionaryError: a crop is damaged.
        """
        crops = np.empty((len(places), *self.shape[2:]), np.uint8)
        shards = np.searchsorted(self.starts, places, side="right") - 1
        inside = places - self.starts[shards]
        order = np.argsort(shards, kind="stable")
        there, starts = np.unique(shards[order], return_index=True)
        jpegs: dict[int, bytes] = {}
        # A batch of a large dictionary meets hundreds of files: few steps for each.
        for shard, rows in zip(there.tolist(), np.split(order, starts[1:]), strict=True):
            opened = self.open(shard)
            if isinstance(opened, torch.Tensor):
                crops[rows] = opened.numpy()[inside[rows], moments[rows]]
            else:
                which = map(opened.jpeg, inside[rows].tolist(), moments[rows].tolist())
                jpegs.update(zip(rows.tolist(), which, strict=True))
        if (bad := _jpeg.decode_all(jpegs, crops)) is not None:
            path = self.shards[shards[bad]].path
            raise DictionaryError(f"{path}: damaged: a crop cannot be decoded")
        return crops


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
    """An index into five axes, cut behind the second: what it says of patch and moment, and rest.

    Raises:
        IndexError: it uses `None`, or masks over more than one axis.
    """
    keys = list(key) if isinstance(key, tuple) else [key]
    if any(k is None or (getattr(k, "ndim", 0) > 1 and _is_mask(k)) for k in keys):
        raise IndexError("pixels: index patches and moments by numbers, slices or 1-D masks")
    if any(k is Ellipsis for k in keys):
        at = next(i for i, k in enumerate(keys) if k is Ellipsis)
        keys[at : at + 1] = [slice(None)] * (5 - len(keys) + 1)
    keys = [torch.from_numpy(k) if isinstance(k, np.ndarray) else k for k in keys]
    return tuple(keys[:2]), tuple(keys[2:])


def _is_mask(key: Any) -> bool:
    return key.dtype in (torch.bool, np.bool_)
