"""The twin dictionary: patches, their twins, and where they come from, in a folder.

How it lies on disk is said in `format.py`; `writing.py` writes it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from solo_infoaug._checks import require
from solo_infoaug.dictionary.format import (
    COUNTS,
    MANIFEST,
    PARTS,
    PATCH_COLUMNS,
    STORED_COLUMNS,
    check_path,
    digest_of,
    expect,
    is_name,
    read_json,
    read_tensors,
    shape_of,
    twins_fault,
)
from solo_infoaug.dictionary.sampling import another, draw, two_from_one
from solo_infoaug.dictionary.writing import write_arrays
from solo_infoaug.errors import DictionaryError

PARTNERS = ("mi", "random", "random_anchor", "self")
"""What `infoaug.arm` may be: which patch is shown as the twin."""

# This many pixel files are kept mapped.
_OPEN_SHARDS = 512


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


class TwinDictionary:
    """Patches from video and their twins; opened with `load`, written by `mine`.

    Attributes:
        pixels: uint8 [N, S, 3, H, W]: S moments of each patch along its track, S >= 1.
        twins: int64 [N, K]: indices of each patch's twins, best first, -1 where there is none.
        mi: float32 [N, K], nats; 0 where there is no twin.
        p_value: float32 [N, K], of the hypothesis that the two move independently; 1 where there
            is no twin.
        patches: structured array [N]: `video` (index into `videos`), `shot` (counted through
            all videos), `window` (index into `windows`), `frame`, `x`, `y` (centre, pixels of that
            frame), `size`, `entropy` (nats).
        moment_frames: int32 [N, S]: the video's frame in which each moment was taken.
        anchors: int64 [A]: the patches that have a twin.
        without_twin: int64 [N − A]: the others.
        videos: names of the videos.
        windows: a record of each window in which there are twins.
        fingerprint: a short hash of the content, the same wherever the dictionary lies.
        info: the manifest: settings, provenance, what failed.
    """

    def __init__(self, path: Path, info: dict[str, Any], parts: Sequence[Part]) -> None:
        if not parts:
            raise DictionaryError(f"{path}: the dictionary holds no video")
        shapes = {
            (part.moment_frames.shape[1], part.shards[0].shape[-1], part.twins.shape[1])
            for part in parts
        }
        if len(shapes) > 1:
            raise DictionaryError(
                f"{path}: its videos differ in (moments, crop_size, top_k): {sorted(shapes)}"
            )
        self.path = path
        self.info = info
        self.videos = [part.name for part in parts]
        self.twins = torch.cat([part.twins for part in parts])
        self.mi = torch.cat([part.mi for part in parts])
        self.p_value = torch.cat([part.p_value for part in parts])
        self.moment_frames = torch.cat([part.moment_frames for part in parts])
        self.patches = np.concatenate([part.patches for part in parts])
        self.windows: list[WindowRecord] = []
        self._shards: list[_Shard] = []
        first = shots = 0
        for number, part in enumerate(parts):
            rows = slice(first, first + len(part.patches))
            twins = self.twins[rows]
            twins[twins >= 0] += first
            self.patches["video"][rows] = number
            self.patches["shot"][rows] += shots
            shots = int(self.patches["shot"][rows].max()) + 1
            self.patches["window"][rows] += len(self.windows)
            for window in part.windows:
                moved = range(window.patches.start + first, window.patches.stop + first)
                self.windows.append(dataclasses.replace(window, patches=moved))
            self._shards += part.shards
            first = rows.stop
        self._shard_starts = np.cumsum([0, *(shard.patches for shard in self._shards)])
        self.anchors = (self.twins[:, 0] >= 0).nonzero()[:, 0]
        self.without_twin = (self.twins[:, 0] < 0).nonzero()[:, 0]
        self.fingerprint = hashlib.sha256(
            "".join(digest for part in parts for digest in part.digests).encode()
        ).hexdigest()[:16]
        self._maps: dict[int, torch.Tensor] = {}
        self._opening = threading.Lock()
        self._window_of = torch.from_numpy(self.patches["window"].astype(np.int64))
        # Patches of a window are neighbours in `anchors` and in `without_twin`: first and how many
        self._anchors_of = self._runs(self.anchors)
        self._without_of = self._runs(self.without_twin)
        self._tracked_of = torch.tensor([window.tracked for window in self.windows])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TwinDictionary:
        """Open the dictionary in folder `path`. Pixels are mapped into memory, not read.

        Raises:
            DictionaryError: it is missing, unfinished, damaged, or of a newer format.
        """
        folder = Path(path)
        check_path(folder, "the dictionary")
        manifest = folder / MANIFEST
        if not manifest.is_file():
            what = f"no twin dictionary at {folder}"
            if folder.is_dir():
                what = f"{folder} holds no finished twin dictionary ({MANIFEST} is missing)"
            way = f"mine one with `solo-infoaug mine VIDEO_OR_DIR... -o {folder}`"
            raise DictionaryError(f"{what}: {way}")
        info = read_json(manifest)
        keys = info.get("videos")
        if not isinstance(keys, list) or not all(map(is_name, keys)):
            raise DictionaryError(f"{manifest}: damaged: `videos` is no list of names")
        for key, expected in (
            ("config", dict),
            ("failed", dict),
            ("twinless", dict),
            ("left_out", list),
        ):
            if not isinstance(info.get(key), (expected, type(None))):
                raise DictionaryError(f"{manifest}: damaged: `{key}` is {info[key]!r}")
        return cls(folder, info, [Part.read(folder / PARTS / key) for key in keys])

    def __len__(self) -> int:
        return len(self.patches)

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        """Copies and other processes open the folder again instead of copying the pixels."""
        return TwinDictionary.load, (self.path,)

    def __repr__(self) -> str:
        return f"TwinDictionary({self.summary})"

    @property
    def summary(self) -> str:
        """One line for people."""
        return (
            f"{self.path}: {len(self)} patches, {len(self.anchors)} with a twin, "
            f"{len(self.windows)} windows, {len(self.videos)} videos"
        )

    @property
    def pixels_shape(self) -> tuple[int, ...]:
        """(N, S, 3, H, W), without reading a pixel."""
        return (len(self), *self._shards[0].shape)

    @property
    def pixels(self) -> torch.Tensor:
        """uint8 [N, S, 3, H, W]. Reads everything; `crops` reads only what is asked for."""
        shards = [self._open(number) for number in range(len(self._shards))]
        return shards[0] if len(shards) == 1 else torch.cat(shards)

    def crops(self, index: torch.Tensor, moment: torch.Tensor | int = 0) -> torch.Tensor:
        """uint8 [B, 3, H, W]: patches `index` int64 [B] at `moment` (int, or int64 [B])."""
        places, moments = index.numpy(), torch.as_tensor(moment).expand(len(index)).numpy()
        crops = np.empty((len(index), *self.pixels_shape[2:]), np.uint8)
        shards = np.searchsorted(self._shard_starts, places, side="right") - 1
        inside = places - self._shard_starts[shards]
        order = np.argsort(shards, kind="stable")
        there, starts = np.unique(shards[order], return_index=True)
        # A batch of a large dictionary meets hundreds of files: few steps for each.
        for shard, rows in zip(there.tolist(), np.split(order, starts[1:]), strict=True):
            crops[rows] = self._open(shard).numpy()[inside[rows], moments[rows]]
        return torch.from_numpy(crops)

    def sample(
        self,
        batch_size: int,
        generator: torch.Generator,
        *,
        arm: str = "mi",
        top_k: int | None = None,
        temporal: bool = False,
        others: float = 0.0,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw patches that have a twin, and a partner for each.

        Args:
            batch_size: B. No patch comes twice in a batch unless there are fewer than B.
            generator: a CPU generator; the same state gives the same batch.
            arm: which partner: "mi" the twin, "random" any other patch of the same window (those
                without a twin stand for the ones that are not stored), "random_anchor" another one
                that has a twin, "self" the patch itself. The patches are the same ones for every
                arm.
            top_k: draw the twin among the best `top_k` instead of taking the best.
            temporal: take patch and partner each at a moment of its own along their tracks,
                instead of both in the same frame.
            others: this share of the batch, in [0, 1), are patches without a twin, each its own
                partner. They come last.

        Returns:
            patch uint8 [B, 3, H, W], partner uint8 [B, 3, H, W], index of the patch int64 [B].

        Raises:
            ConfigError: an argument cannot be used.
            DictionaryError: no patch has a twin.
        """
        for name, good, expected, value in (
            ("arm", arm in PARTNERS, f"one of {', '.join(PARTNERS)}", arm),
            ("batch_size", batch_size >= 1, "at least 1", batch_size),
            ("top_k", top_k is None or top_k >= 1, "at least 1 or None", top_k),
            ("others", 0 <= others < 1, "at least 0 and less than 1", others),
        ):
            require(good, name, expected, value)
        if len(self.anchors) == 0:
            raise DictionaryError(f"{self.path}: no patch has a twin; mine more or other video")
        lone = min(round(others * batch_size), batch_size - 1)
        if lone and len(self.without_twin) == 0:
            raise DictionaryError(f"{self.path}: every patch has a twin; others must be 0")
        index = self.anchors[draw(len(self.anchors), batch_size - lone, generator)]
        # Every random number is drawn for every arm, so that all arms see the same patches.
        choice = torch.rand(len(index), dtype=torch.float32, generator=generator)
        moments = torch.randint(self.pixels_shape[1], (2, len(index)), generator=generator)
        partner = self._partner(arm, index, top_k or 1, choice)
        if lone:
            more = self.without_twin[draw(len(self.without_twin), lone, generator)]
            index, partner = torch.cat([index, more]), torch.cat([partner, more])
            drawn = torch.randint(self.pixels_shape[1], (2, lone), generator=generator)
            moments = torch.cat([moments, drawn], dim=1)
        if not temporal:
            moments.zero_()
        return self.crops(index, moments[0]), self.crops(partner, moments[1]), index

    def _partner(
        self, arm: str, index: torch.Tensor, top_k: int, choice: torch.Tensor
    ) -> torch.Tensor:
        """int64 [B], by `choice` in [0, 1)."""
        if arm == "self":
            return index
        if arm != "mi":
            return self._window_mate(index, choice, arm == "random_anchor")
        twins = self.twins[index, :top_k]
        available = (twins >= 0).sum(dim=1)
        return twins.gather(1, (choice * available).long()[:, None])[:, 0]

    def _window_mate(
        self, index: torch.Tensor, choice: torch.Tensor, anchors: bool
    ) -> torch.Tensor:
        """Another patch of the same window, one with a twin if `anchors` and there is another.

        Otherwise each patch that was not lost is as likely: those without a twin stand for the many
        that were not stored, or most mates would have one and lie on the same object.
        """
        window = self._window_of[index]
        first, count = self._anchors_of[window].unbind(1)
        start, stored = self._without_of[window].unbind(1)
        if anchors:
            share = (count > 1).float()
        else:
            rest = torch.where(stored > 0, self._tracked_of[window] - count, 0)
            share = (count - 1).float() / (count - 1 + rest).clamp(min=1).float()
        has_twin, choice = two_from_one(choice, share)
        own = torch.searchsorted(self.anchors, index) - first
        mate = self.anchors[first + another(own, count, choice)]
        if len(self.without_twin) == 0:
            return mate
        place = (start + (choice * stored).long()).clamp(max=len(self.without_twin) - 1)
        return torch.where(has_twin | (stored == 0), mate, self.without_twin[place])

    def _runs(self, index: torch.Tensor) -> torch.Tensor:
        """int64 [windows, 2]: where each window's patches begin in `index`, and how many they
        are."""
        count = torch.bincount(self._window_of[index], minlength=len(self.windows))
        return torch.stack([count.cumsum(0) - count, count], dim=1)

    def _open(self, number: int) -> torch.Tensor:
        """uint8 [n, S, 3, H, W]: a shard's pixels, mapped; the latest stay open."""
        with self._opening:  # training reads ahead in a thread of its own
            if number not in self._maps:
                while len(self._maps) >= _OPEN_SHARDS:
                    self._maps.pop(next(iter(self._maps)))
                self._maps[number] = self._shards[number].map()
            return self._maps[number]

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        pixels: torch.Tensor,
        twins: torch.Tensor,
        mi: torch.Tensor,
        *,
        windows: Sequence[int] | None = None,
        name: str = "patches",
    ) -> TwinDictionary:
        """Write a dictionary of patches and twins that were found by other means.

        Args:
            path: the folder to write; it must not hold a dictionary.
            pixels: uint8 [N, S, 3, H, H].
            twins: int64 [N, K], indices into N within the same window, -1 for none.
            mi: float32 [N, K].
            windows: the window of each patch, 0, 1, … in ascending order; None for all in one.
            name: what the source is called.

        Raises:
            DictionaryError: the arrays do not fit together, or the folder is taken; nothing is
                written.
            OutputError: the folder cannot be written.
        """
        write_arrays(Path(path), pixels, twins, mi, windows, name)
        return cls.load(path)


# --- one video, as read; nothing in its files is trusted


@dataclass(frozen=True)
class _Shard:
    path: Path
    patches: int
    shape: tuple[int, ...]

    def map(self) -> torch.Tensor:
        """uint8 [n, S, 3, H, W], mapped."""
        tensors = read_tensors(self.path)
        return expect(self.path, tensors, "pixels", torch.uint8, (self.patches, *self.shape))


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
    windows: list[WindowRecord]
    shards: list[_Shard]
    digests: list[str]

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
        old = record["version"] == 1  # a window then was a shot, and was called so
        unit = "shot" if old else "window"
        patches = np.zeros(count, PATCH_COLUMNS)
        for column in STORED_COLUMNS:
            dtype = torch.int32 if column in ("window", "frame") else torch.float32
            stored = unit if column == "window" else column
            patches[column] = expect(path, tensors, stored, dtype, (count,)).numpy()
        if count == 0 or top_k == 0 or frames.shape[1] == 0:
            raise DictionaryError(f"{path}: damaged: patches and {unit}s do not fit")
        windows = _windows(folder, name, record, patches, unit)
        if fault := twins_fault(twins, patches["window"]):
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
            windows=windows,
            shards=shards,
            digests=[digest, *(str(entry["sha256"]) for entry in record["pixels"])],
        )


def _windows(
    folder: Path, name: str, record: Mapping[str, Any], patches: np.ndarray, unit: str
) -> list[WindowRecord]:
    """The windows of a video; the shots of its patches are filled in."""
    windows, first = [], 0
    for index, entry in enumerate(record[f"{unit}s"]):
        size = int(entry["patches"])
        rows = slice(first, first + size)
        patch_rows, stored = range(first, rows.stop), folder / f"{unit}s"
        window = WindowRecord(name, index, patch_rows, dict(entry), stored)
        window.tracked  # noqa: B018 - raises where the counts are no numbers
        if size < 0 or not (patches["window"][rows] == index).all():
            raise DictionaryError(f"{folder}: damaged: patches and {unit}s do not fit")
        patches["shot"][rows] = window.shot
        windows.append(window)
        first = rows.stop
    if first != len(patches):
        raise DictionaryError(f"{folder}: damaged: patches and {unit}s do not fit")
    return windows


def _shards(folder: Path, record: Mapping[str, Any], count: int, moments: int) -> list[_Shard]:
    shards = []
    for entry in record["pixels"]:
        if not is_name(entry["file"]):
            raise DictionaryError(f"{folder}: damaged: {entry['file']!r} is no file name")
        path = folder / entry["file"]
        shape = shape_of(path, "pixels")
        if len(shape) != 5 or shape[:3] != (int(entry["patches"]), moments, 3):
            raise DictionaryError(f"{path}: damaged: unexpected shape {shape}")
        shards.append(_Shard(path, shape[0], shape[1:]))
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
