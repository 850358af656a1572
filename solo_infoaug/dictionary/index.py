"""The index: one row for each patch of all videos, in memory or mapped from a file.

What is damaged, or does not fit together, is a DictionaryError.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from solo_infoaug.dictionary.files import publish
from solo_infoaug.dictionary.format import (
    INDEX,
    MANIFEST,
    PATCH_COLUMNS,
    expect,
    header_of,
    map_tensors,
)
from solo_infoaug.dictionary.pixels import CropTable
from solo_infoaug.dictionary.reading import Part
from solo_infoaug.errors import DictionaryError

_DTYPES = {"i8": "I64", "f8": "F64", "i4": "I32", "f4": "F32", "u1": "U8"}


@dataclass(frozen=True)
class Index:
    """The columns of all videos, by the names that docs/dictionary-format.md has for them.

    `names` are those of the videos, `fingerprint` is of all their content.
    """

    path: Path
    tensors: Mapping[str, torch.Tensor]
    names: list[str]
    fingerprint: str

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    @property
    def patches(self) -> np.ndarray:
        """Structured [N]; see `PATCH_COLUMNS`."""
        rows: np.ndarray = self["patches"].numpy().view(PATCH_COLUMNS)
        return rows[:, 0]

    @property
    def table(self) -> CropTable:
        """Where the crops lie."""
        text = self["prefixes"].numpy().tobytes()
        stops = [0, *self["prefix_stops"].tolist()]
        sizes = self.tensors.get("sizes")
        side = int(self["side"])
        return CropTable(
            shape=(self["moment_frames"].shape[1], 3, side, side),
            starts=self["starts"].numpy(),
            sizes=None if sizes is None else sizes.numpy(),
            first=self["block_first"].numpy(),
            file=self["block_file"].numpy(),
            prefix=self["block_prefix"].numpy(),
            prefixes=[text[a:b] for a, b in itertools.pairwise(stops)],
        )

    def lookup(self, name: str, of: np.ndarray) -> np.ndarray:
        """Values of the column `name` of videos or windows for each number in `of`, int [N]."""
        values = self[name].numpy()
        if len(of) and not 0 <= of.min() <= of.max() < len(values):
            raise DictionaryError(f"{self.path}: damaged: a patch is of no video or window")
        return values[of]

    @classmethod
    def of(cls, path: Path, parts: Sequence[Part]) -> tuple[Index, list[Path]]:
        """The index of parts, in memory, and the files that their crops lie in."""
        found: dict[str, list[np.ndarray]] = {}

        def keep(columns: Mapping[str, np.ndarray]) -> None:
            for name, rows in columns.items():
                found.setdefault(name, []).append(rows)

        rows = Rows(path, keep)
        for part in parts:
            rows.add(part)
        ended = rows.end()
        tensors = {name: torch.from_numpy(np.concatenate(some)) for name, some in found.items()}
        tensors |= {name: torch.from_numpy(some) for name, some in ended.items()}
        if not rows.encoded:
            del tensors["sizes"]
        return cls(path, tensors, rows.names, rows.fingerprint), list(rows.files)

    @classmethod
    def map(cls, path: Path, names: list[str], files: int, fingerprint: str) -> Index:
        """The index in the file `path`, mapped. Checks that would read every patch are left out.

        `names` are those of the videos; there are `files` files of crops.
        """
        index = cls(path, map_tensors(path), names, fingerprint)
        _check(index, files)
        return index


def _check(index: Index, files: int) -> None:
    """Check types and shapes of all columns, and all values of the columns of blocks and
    windows."""
    path, tensors = index.path, index.tensors

    def has(name: str, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return expect(path, tensors, name, dtype, shape)

    count = len(has("patches", torch.uint8, -1, PATCH_COLUMNS.itemsize))
    twins = has("twins", torch.int64, count, -1).shape[1]
    moments = has("moment_frames", torch.int32, count, -1).shape[1]
    for name in ("mi", "p_value"):
        has(name, torch.float32, count, twins)
    for name in ("next", "starts"):
        has(name, torch.int64, count)
    if "sizes" in tensors:
        has("sizes", torch.int32, count, moments)
    anchors = len(has("anchors", torch.int64, -1))
    has("without_twin", torch.int64, count - anchors)
    has("side", torch.int64)
    ends = has("pack_bytes", torch.int64, files)
    blocks = len(has("block_first", torch.int64, -1))
    file, prefix = (has(f"block_{name}", torch.int32, blocks) for name in ("file", "prefix"))
    stops = has("prefix_stops", torch.int64, -1)
    room = len(has("prefixes", torch.uint8, -1))
    windows = len(has("window_first", torch.int64, -1))
    has("window_tracked", torch.int64, windows)
    context = has("window_context", torch.float64, windows)
    fps = has("fps", torch.float64, len(index.names))
    has("video_window", torch.int64, len(index.names))

    def ascends(name: str, stop: int) -> bool:
        values = tensors[name]
        inside = len(values) > 0 and int(values[0]) == 0 and int(values[-1]) < stop
        return inside and bool((values[1:] > values[:-1]).all())

    def within(values: torch.Tensor, least: int, stop: int) -> bool:
        return bool(((values >= least) & (values < stop)).all())

    good = (
        min(count, twins, moments, len(index.names)) > 0
        and 0 < int(tensors["side"]) < 1 << 15
        and ascends("block_first", count)
        and ascends("window_first", count)
        and ascends("video_window", windows)
        and within(file, 0, files)
        and within(ends, 1, 1 << 60)
        and within(prefix, -1, len(stops))
        and ("sizes" in tensors or not bool((prefix >= 0).any()))
        and within(stops, 0, room + 1)
        and bool((stops[1:] >= stops[:-1]).all())
        and bool(((context > 0) & (context < math.inf)).all())
        and bool(((fps > 0) & (fps < math.inf)).all())
    )
    if not good:
        raise DictionaryError(f"{path}: damaged: patches, windows, videos and packs do not fit")


class Rows:
    """The rows that each video adds to the columns, video by video.

    `keep` takes them, by column. `files` are the numbers of the files that hold crops.
    """

    def __init__(self, path: Path, keep: Callable[[dict[str, np.ndarray]], None]) -> None:
        self.names: list[str] = []
        self.files: dict[Path, int] = {}
        self.count = self.windows = self.shots = 0
        self._path, self._keep = path, keep
        self._shapes: set[tuple[int, int, int]] = set()
        self._prefixes: dict[bytes, int] = {}
        self._ends: dict[int, int] = {}
        self._digest = hashlib.sha256()

    @property
    def encoded(self) -> bool:
        """Whether any crop is JPEG."""
        return bool(self._prefixes)

    @property
    def fingerprint(self) -> str:
        """Of the content of all videos, in this order."""
        return self._digest.hexdigest()[:16]

    def add(self, part: Part) -> None:
        """The next video, with the moments, crop size and top_k of the earlier ones."""
        side = part.shards[0].shape[-1]
        self._shapes.add((part.moment_frames.shape[1], side, part.twins.shape[1]))
        if len(self._shapes) > 1:
            raise DictionaryError(
                f"{self._path}: its videos differ in (moments, crop_size, top_k): "
                f"{sorted(self._shapes)}"
            )
        self._keep({**self._of_patches(part), **self._of_crops(part), **self._of_windows(part)})
        self._digest.update("".join(part.digests).encode())
        self.names.append(part.name)
        self.count += len(part.patches)
        self.windows += len(part.windows)

    def end(self) -> dict[str, np.ndarray]:
        """The index of the videos so far; a DictionaryError if there was none."""
        if not self._shapes:
            raise DictionaryError(f"{self._path}: the dictionary holds no video")
        ((_, side, _),) = self._shapes
        return {
            "side": np.array(side),
            "pack_bytes": np.array([self._ends[number] for number in range(len(self._ends))]),
            "prefixes": np.frombuffer(bytearray(b"".join(self._prefixes)), np.uint8),
            "prefix_stops": np.cumsum([len(prefix) for prefix in self._prefixes], dtype=np.int64),
        }

    def _of_patches(self, part: Part) -> dict[str, np.ndarray]:
        patches, twins = part.patches.copy(), part.twins.numpy()
        following = part.next.numpy()
        patches["video"] = len(self.names)
        patches["shot"] += self.shots
        patches["window"] += self.windows
        self.shots = int(patches["shot"].max()) + 1
        own = np.arange(self.count, self.count + len(patches))
        return {
            "patches": patches.view(np.uint8).reshape(len(patches), PATCH_COLUMNS.itemsize),
            "twins": np.where(twins >= 0, twins + self.count, -1),
            "mi": part.mi.numpy(),
            "p_value": part.p_value.numpy(),
            "moment_frames": part.moment_frames.numpy(),
            "next": np.where(following >= 0, following + self.count, -1),
            "anchors": own[twins[:, 0] >= 0],
            "without_twin": own[twins[:, 0] < 0],
        }

    def _of_crops(self, part: Part) -> dict[str, np.ndarray]:
        shards = part.shards
        moments = part.moment_frames.shape[1]
        counts = [shard.patches for shard in shards]
        numbers = [self.files.setdefault(shard.place.path, len(self.files)) for shard in shards]
        for number, shard in zip(numbers, shards, strict=True):
            end = shard.place.start + shard.place.size
            self._ends[number] = max(end, self._ends.get(number, 0))
        prefixes = [
            -1 if one.prefix is None else self._prefixes.setdefault(one.prefix, len(self._prefixes))
            for one in shards
        ]
        sizes = [
            np.zeros((one.patches, moments), np.int32) if one.sizes is None else one.sizes
            for one in shards
        ]
        return {
            "starts": np.concatenate([shard.starts for shard in shards]),
            "sizes": np.concatenate(sizes),
            "block_first": self.count + np.cumsum([0, *counts[:-1]]),
            "block_file": np.array(numbers, np.int32),
            "block_prefix": np.array(prefixes, np.int32),
        }

    def _of_windows(self, part: Part) -> dict[str, np.ndarray]:
        first = [self.count + window.patches.start for window in part.windows]
        return {
            "window_first": np.array(first, np.int64),
            "window_tracked": np.array([window.tracked for window in part.windows], np.int64),
            "window_context": np.array([window.context for window in part.windows]),
            "video_window": np.array([self.windows]),
            "fps": np.array([part.fps]),
        }


def write_index(folder: Path, parts: Iterable[Part]) -> tuple[dict[str, Any], list[Path]]:
    """Write the index of parts to the file INDEX in `folder`, without holding all of it in memory.

    The manifest of an earlier index is removed only when this one is ready, so a reader meanwhile
    gets the earlier one. Nobody else may write to the folder.

    Returns:
        The manifest's entries about the index, and the files that hold the crops.
    """
    columns = folder / f".{INDEX}.columns"
    for left in folder.glob(f".{INDEX}.*"):  # by a kill
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    columns.mkdir()
    try:
        with ExitStack() as stack:
            there: dict[str, _Column] = {}

            def keep(rows: Mapping[str, np.ndarray]) -> None:
                for name, some in rows.items():
                    if name not in there:
                        file = stack.enter_context((columns / name).open("w+b"))
                        tail, scalar = some.shape[1:], some.ndim == 0
                        there[name] = _Column(file, some.dtype, tail, scalar)
                    there[name].add(some)

            rows = Rows(folder, keep)
            for part in parts:
                rows.add(part)
            keep(rows.end())
            if not rows.encoded:
                del there["sizes"]
            digest = _join(folder / INDEX, there)
    finally:
        shutil.rmtree(columns, ignore_errors=True)
    said = {
        "names": rows.names,
        "fingerprint": rows.fingerprint,
        "index": {"patches": rows.count, "sha256": digest},
    }
    return said, list(rows.files)


class _Column:
    """A column that is written row by row."""

    def __init__(
        self, file: BinaryIO, dtype: np.dtype, tail: tuple[int, ...], scalar: bool
    ) -> None:
        self.file, self.dtype, self.tail, self.scalar = file, dtype, tail, scalar
        self.rows = 0

    @property
    def shape(self) -> list[int]:
        """Of all that was added."""
        return [] if self.scalar else [self.rows, *self.tail]

    def add(self, rows: np.ndarray) -> None:
        """Add some rows, of the type of the first ones."""
        self.file.write(np.ascontiguousarray(rows, self.dtype).data)
        self.rows += 1 if self.scalar else len(rows)


def _join(path: Path, columns: Mapping[str, _Column]) -> str:
    """Write columns as a safetensors file; returns the SHA-256 of it."""
    header: dict[str, Any] = {}
    first = 0
    # Those of large elements come first, so that each is aligned
    ordered = sorted(columns.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    for name, column in ordered:
        stop = first + column.dtype.itemsize * math.prod(column.shape)
        kind = _DTYPES[column.dtype.str[1:]]
        header[name] = {"dtype": kind, "shape": column.shape, "data_offsets": [first, stop]}
        first = stop
    begin, fresh = header_of(header), path.with_name(f".{path.name}.{os.getpid()}")
    digest = hashlib.sha256(begin)
    with fresh.open("wb") as file:
        file.write(begin)
        for _, column in ordered:
            column.file.seek(0)
            while piece := column.file.read(1 << 22):
                file.write(piece)
                digest.update(piece)
        path.with_name(MANIFEST).unlink(missing_ok=True)
        publish(file, fresh, path)
    return digest.hexdigest()
