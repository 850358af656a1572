"""One video of a dictionary, as read; nothing in its files is trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from solo_infoaug.dictionary.format import (
    COUNTS,
    PATCH_COLUMNS,
    STORED_COLUMNS,
    WINDOWS,
    digest_of,
    expect,
    is_name,
    links_fault,
    read_json,
    read_tensors,
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
    _folder: Path

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
        """uint8 [H, W, 3] RGB.

        Raises:
            DictionaryError: the image is missing or damaged.
        """
        path = self._folder / f"{self.index:04d}.jpg"
        try:
            with Image.open(path) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DictionaryError(f"{path}: cannot be read: {error}") from error

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The window's arrays by name.

        Raises:
            DictionaryError: the file is missing or damaged.
        """
        tensors = read_tensors(self._folder / f"{self.index:04d}.safetensors")
        for name, shape in (
            ("tracks", (-1, len(self.patches), 2)),
            ("mi", (len(self.patches),) * 2),
        ):
            expect(self._folder, tensors, name, torch.float32, shape)
        return {name: tensor.numpy() for name, tensor in tensors.items()}


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
        """Frames a second; 25 where nothing is known of it."""
        return float((self.record.get("source") or {}).get("fps", 25.0))

    @classmethod
    def read(cls, folder: Path) -> Part:
        """One video's part; a DictionaryError names the folder if anything in it is wrong."""
        record = read_json(folder / "video.json")
        try:
            return cls._read(folder, record)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DictionaryError(
                f"{folder / 'video.json'}: damaged: {type(error).__name__}: {error}"
            ) from error

    @classmethod
    def _read(cls, folder: Path, record: dict[str, Any]) -> Part:
        name = str(record["name"])
        _check_counts(record)
        path = folder / "index.safetensors"
        digest = digest_of(path)
        if digest != record["index"]["sha256"]:
            raise DictionaryError(f"{path}: damaged: its content is not what video.json says")
        tensors = read_tensors(path)
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
        windows = _windows(folder, name, record, patches)
        if record["version"] < _LINKED and "next" not in tensors:
            tensors["next"] = torch.full((count,), -1)
        following = expect(path, tensors, "next", torch.int64, (count,)).clone()
        fault = twins_fault(twins, patches["window"]) or links_fault(
            following, patches["window"], patches["shot"]
        )
        if fault:
            raise DictionaryError(f"{path}: damaged: {fault}")
        shards = _shards(folder, record, count, frames.shape[1])
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
    folder: Path, name: str, record: Mapping[str, Any], patches: np.ndarray
) -> list[WindowRecord]:
    """The windows of a video; the shots of its patches are filled in."""
    windows, first = [], 0
    for index, entry in enumerate(record["windows"]):
        size = int(entry["patches"])
        rows = slice(first, first + size)
        window = WindowRecord(name, index, range(first, rows.stop), dict(entry), folder / WINDOWS)
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


def _shards(folder: Path, record: Mapping[str, Any], count: int, moments: int) -> list[Shard]:
    shards = []
    for entry in record["pixels"]:
        if not is_name(entry["file"]):
            raise DictionaryError(f"{folder}: damaged: {entry['file']!r} is no file name")
        shard = Shard.look(folder / entry["file"])
        shape = (shard.patches, *shard.shape)
        if len(shape) != 5 or shape[:3] != (int(entry["patches"]), moments, 3):
            raise DictionaryError(f"{shard.path}: damaged: unexpected shape {shape}")
        shards.append(shard)
    sides = {shard.shape[2:] for shard in shards}
    if sum(shard.patches for shard in shards) != count or len(sides) != 1:
        raise DictionaryError(f"{folder}: damaged: pixels and patches do not fit")
    ((height, width),) = sides
    if height != width or height < 1:
        raise DictionaryError(f"{folder}: damaged: crops of {height}×{width} pixels")
    return shards


def _check_counts(record: Mapping[str, Any]) -> None:
    """What is only told of a video, and not needed to read it; ValueError if it is damaged."""
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
