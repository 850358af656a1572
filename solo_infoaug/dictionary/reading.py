"""One video of a dictionary, as read; nothing in its files is trusted."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from PIL import Image

from solo_infoaug.dictionary.files import PartFiles
from solo_infoaug.dictionary.format import (
    COUNTS,
    INDEX,
    PATCH_COLUMNS,
    RECORD,
    STORED_COLUMNS,
    WINDOWS,
    expect,
    is_name,
    links_fault,
    parse_json,
    parse_tensors,
    twins_fault,
)
from solo_infoaug.dictionary.pixels import Shard
from solo_infoaug.errors import DictionaryError

# From this version on patches are linked from window to window.
_LINKED = 3


@dataclass(frozen=True)
class WindowRecord:
    """One window's record: what is needed to draw it.

    `index` counts the windows of the video, `patches` are the places of its patches in the
    dictionary. `image` is the frame that they were found in, uint8 [H, W, 3]; `arrays` holds among
    others `tracks` float32 [T, P, 2] (pixels of the source frame) and `mi` float32 [P, P] (nats;
    NaN where it was not estimated) of the P patches, in this order.
    """

    video: str
    index: int
    patches: range
    record: Mapping[str, Any]
    _files: PartFiles

    @property
    def rows(self) -> slice:
        """`patches`, as arrays take it."""
        return slice(self.patches.start, self.patches.stop)

    @property
    def shot(self) -> int:
        """Which shot of the video it is from."""
        return int(self.record.get("shot", self.index))

    @property
    def context(self) -> float:
        """How many sides of its patch a crop spans."""
        return float(self.record.get("context", 1.0))

    @property
    def first(self) -> int:
        """Number of the window's first frame in the video."""
        return int(self.record.get("first", self.record["frame"]))

    @property
    def tracked(self) -> int:
        """How many patches the window had that were not lost; of those without a twin `patches` are
        a sample."""
        reasons = self.record.get("reasons") or {}
        counted = sum(int(count) for name, count in reasons.items() if name != "lost")
        return max(counted, len(self.patches))

    @property
    def image(self) -> np.ndarray:
        """uint8 [H, W, 3] RGB; a DictionaryError if the image is missing or damaged."""
        name = f"{WINDOWS}/{self.index:04d}.jpg"
        data = self._files.read(name)
        try:
            with Image.open(io.BytesIO(data)) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            path = self._files.label / name
            raise DictionaryError(f"{path}: cannot be read: {error}") from error

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The window's arrays by name; a DictionaryError if the file is missing or damaged."""
        name = f"{WINDOWS}/{self.index:04d}.safetensors"
        path = self._files.label / name
        tensors, count = parse_tensors(self._files.read(name), path), len(self.patches)
        expect(path, tensors, "tracks", torch.float32, (-1, count, 2))
        expect(path, tensors, "mi", torch.float32, (count, count))
        return {name: tensor.numpy() for name, tensor in tensors.items()}


def read_record(files: PartFiles) -> dict[str, Any]:
    """The record of a video; a DictionaryError if it is not complete.

    The numbers are checked here. What the record says about other files is checked when they are
    read.
    """
    path = files.label / RECORD
    record = parse_json(files.read(RECORD), path)
    try:
        str(record["name"])
        _check_counts(record)
        windows = record["windows"]
        if not isinstance(windows, list) or not all(isinstance(one, dict) for one in windows):
            raise ValueError("`windows` is not a list of records")
        for window in windows:
            sum(int(count) for count in (window.get("reasons") or {}).values())
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DictionaryError(f"{path}: damaged: {type(error).__name__}: {error}") from error
    return record


@dataclass(frozen=True)
class Part:
    """One video of a dictionary, as read; indices count within it."""

    name: str
    record: dict[str, Any]
    patches: np.ndarray
    twins: torch.Tensor
    mi: torch.Tensor
    p_value: torch.Tensor
    moment_frames: torch.Tensor
    next: torch.Tensor
    windows: list[WindowRecord]
    shards: list[Shard]
    digests: list[str]

    @property
    def fps(self) -> float:
        """Frames per second; 25 if unknown."""
        return float((self.record.get("source") or {}).get("fps", 25.0))

    @classmethod
    def read(cls, files: PartFiles) -> Part:
        """One video's part; a DictionaryError names the file if anything in it is wrong."""
        path, record = files.label / RECORD, read_record(files)
        try:
            return cls._read(files, record)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DictionaryError(f"{path}: damaged: {type(error).__name__}: {error}") from error

    @classmethod
    def _read(cls, files: PartFiles, record: dict[str, Any]) -> Part:
        name, folder = str(record["name"]), files.label
        path, data = folder / INDEX, files.read(INDEX)
        digest = hashlib.sha256(data).hexdigest()
        if digest != record["index"]["sha256"]:
            raise DictionaryError(f"{path}: damaged: its content is not what video.json says")
        tensors = parse_tensors(data, path)
        count = int(record["index"]["patches"])
        twins = expect(path, tensors, "twins", torch.int64, (count, -1)).clone()
        top_k = twins.shape[1]
        mi = expect(path, tensors, "mi", torch.float32, (count, top_k))
        p_value = expect(path, tensors, "p_value", torch.float32, (count, top_k))
        frames = expect(path, tensors, "moment_frames", torch.int32, (count, -1))
        patches = np.zeros(count, PATCH_COLUMNS)
        for column in STORED_COLUMNS:
            dtype = torch.int32 if column in ("window", "frame") else torch.float32
            patches[column] = expect(path, tensors, column, dtype, (count,)).numpy()
        if count == 0 or top_k == 0 or frames.shape[1] == 0:
            raise DictionaryError(f"{path}: damaged: patches and windows do not fit")
        windows = _windows(files, name, record, patches)
        if record["version"] < _LINKED and "next" not in tensors:
            tensors["next"] = torch.full((count,), -1)
        following = expect(path, tensors, "next", torch.int64, (count,)).clone()
        fault = twins_fault(twins, patches["window"]) or links_fault(
            following, patches["window"], patches["shot"]
        )
        if fault:
            raise DictionaryError(f"{path}: damaged: {fault}")
        shards = _shards(files, record, count, frames.shape[1])
        return cls(
            name=name,
            record=record,
            patches=patches,
            twins=twins,
            mi=mi,
            p_value=p_value,
            moment_frames=frames,
            next=following,
            windows=windows,
            shards=shards,
            digests=[digest, *(str(entry["sha256"]) for entry in record["pixels"])],
        )


def _windows(
    files: PartFiles, name: str, record: Mapping[str, Any], patches: np.ndarray
) -> list[WindowRecord]:
    """The windows of a video; the shots of its patches are filled in."""
    windows, first, folder = [], 0, files.label
    for index, entry in enumerate(record["windows"]):
        size = int(entry["patches"])
        rows = slice(first, first + size)
        window = WindowRecord(name, index, range(first, rows.stop), dict(entry), files)
        # Raise where they are no numbers
        window.tracked  # noqa: B018
        if not 0 < window.context < math.inf:
            raise ValueError(f"`context` is {window.context!r}")
        if size < 0 or not (patches["window"][rows] == index).all():
            raise DictionaryError(f"{folder}: damaged: patches and windows do not fit")
        patches["shot"][rows] = window.shot
        windows.append(window)
        first = rows.stop
    if first != len(patches):
        raise DictionaryError(f"{folder}: damaged: patches and windows do not fit")
    return windows


def _shards(files: PartFiles, record: Mapping[str, Any], count: int, moments: int) -> list[Shard]:
    shards, folder = [], files.label
    for entry in record["pixels"]:
        if not is_name(entry["file"]):
            raise DictionaryError(f"{folder}: damaged: {entry['file']!r} is not a file name")
        shard = Shard.look(files.where(entry["file"]))
        shape = (shard.patches, *shard.shape)
        if len(shape) != 5 or shape[:3] != (int(entry["patches"]), moments, 3):
            raise DictionaryError(f"{shard.place.label}: damaged: unexpected shape {shape}")
        shards.append(shard)
    sides = {shard.shape[2:] for shard in shards}
    if sum(shard.patches for shard in shards) != count or len(sides) != 1:
        raise DictionaryError(f"{folder}: damaged: pixels and patches do not fit")
    ((height, width),) = sides
    if height != width or height < 1:
        raise DictionaryError(f"{folder}: damaged: crops of {height}×{width} pixels")
    return shards


def _check_counts(record: Mapping[str, Any]) -> None:
    """Check the entries that are only displayed, not needed to read a video; ValueError if
    damaged."""
    source = record.get("source")
    if not isinstance(source, (dict, type(None))):
        raise ValueError(f"`source` is {source!r}")
    fps = (source or {}).get("fps", 1.0)
    if not isinstance(fps, (int, float)) or not 0 < fps < math.inf:
        raise ValueError(f"`fps` is {fps!r}")
    counted = [(name, record[name]) for name in COUNTS if name in record]
    if isinstance(reasons := record.get("reasons"), dict):
        counted += reasons.items()
    for name, count in counted:
        if not isinstance(count, int) or count < 0:
            raise ValueError(f"`{name}` is {count!r}")


class Windows(Sequence[WindowRecord]):
    """The records of all windows, each read on first use.

    `first` int64 [W] is where in the dictionary, of `count` patches, each window's patches begin;
    `of_video` int64 [V] is the first window of each video.
    """

    def __init__(
        self,
        names: Sequence[str],
        first: np.ndarray,
        count: int,
        of_video: np.ndarray,
        files: Callable[[int], PartFiles],
    ) -> None:
        self._names, self._files, self._of_video = names, files, of_video
        self._bounds = np.append(first, count)
        self._latest: tuple[int, list[dict[str, Any]]] = (-1, [])

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, window: int) -> WindowRecord: ...

    @overload
    def __getitem__(self, window: slice) -> list[WindowRecord]: ...

    def __getitem__(self, window: int | slice) -> WindowRecord | list[WindowRecord]:
        if isinstance(window, slice):
            return [self[number] for number in range(*window.indices(len(self)))]
        number = range(len(self))[window]
        video = int(np.searchsorted(self._of_video, number, side="right")) - 1
        index, files = number - int(self._of_video[video]), self._files(video)
        patches = range(int(self._bounds[number]), int(self._bounds[number + 1]))
        entry = self._entries(video)[index]
        if entry.get("patches") != len(patches):
            raise DictionaryError(f"{files.label}: damaged: patches and windows do not fit")
        return WindowRecord(self._names[video], index, patches, entry, files)

    def _entries(self, video: int) -> list[dict[str, Any]]:
        """The records of a video's windows; those of the latest are kept."""
        if self._latest[0] != video:
            files = self._files(video)
            path, entries = files.label / RECORD, read_record(files)["windows"]
            stop = int(np.append(self._of_video, len(self))[video + 1])
            wanted = stop - int(self._of_video[video])
            if len(entries) != wanted:
                raise DictionaryError(f"{path}: damaged: its windows are not those of the index")
            self._latest = video, entries
        return self._latest[1]
