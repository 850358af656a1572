"""The twin dictionary: patches, their twins, and where they come from, in a folder.

Layout (format 2; 1 had one window a shot), everything safetensors, JSON or JPEG:

    dictionary.json                     which videos, in which order, settings, what failed
    parts/KEY/video.json               provenance, records of the windows, names, hashes
    parts/KEY/index.safetensors        one row a patch: where it is, its twins, their MI
    parts/KEY/pixels-0000.safetensors  crops, some thousand patches a file
    parts/KEY/windows/0000.jpg         the frame of each window whose patches these are
    parts/KEY/windows/0000.safetensors tracks and MI matrix of each window

A video's folder appears under its final name only when it is complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors

from solo_infoaug.errors import ConfigError, DictionaryError
from solo_infoaug.paths import check_output_folder

FORMAT = "solo-infoaug twin dictionary"
VERSION = 2
MANIFEST = "dictionary.json"
PARTS = "parts"
WINDOWS = "windows"
LOCK = ".lock"
# What was read of a video, and what was not: see docs/dictionary-format.md.
COUNTS = ("frames", "windows_mined", "damaged_packets", "frames_left_out")
ARMS = ("mi", "random", "random_anchor", "self")

# A pixel file is closed once it holds this many patches.
_SHARD_PATCHES = 4096
# This many pixel files are kept mapped.
_OPEN_SHARDS = 512
# JSON files larger than this are not ours.
_JSON_LIMIT = 256 << 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
_PATCH = np.dtype(
    [
        ("video", np.int32),
        ("shot", np.int32),
        ("window", np.int32),
        ("frame", np.int32),
        ("x", np.float32),
        ("y", np.float32),
        ("size", np.float32),
        ("entropy", np.float32),
    ]
)
_STORED = [name for name in _PATCH.names or () if name not in ("video", "shot")]


@dataclass(frozen=True)
class Window:
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
    def shot(self) -> int:
        """Which shot of the video it is from."""
        return int(self.record.get("shot", self.index))

    @property
    def first(self) -> int:
        """Number of the window's first frame in the video."""
        return int(self.record.get("first", self.record["frame"]))

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
        found = _read_tensors(self._folder / f"{self.index:04d}.safetensors")
        for name, shape in (
            ("tracks", (-1, len(self.patches), 2)),
            ("mi", (len(self.patches),) * 2),
        ):
            _expect(self._folder, found, name, torch.float32, shape)
        return {name: tensor.numpy() for name, tensor in found.items()}


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
        videos: names of the videos.
        windows: a record of each window in which there are twins.
        fingerprint: a short hash of the content, the same wherever the dictionary lies.
        info: the manifest: settings, provenance, what failed.
    """

    def __init__(self, path: Path, info: dict[str, Any], parts: Sequence[Part]) -> None:
        if not parts:
            raise DictionaryError(f"{path}: the dictionary holds no video")
        shapes = {(part.moments, part.crop_size, part.top_k) for part in parts}
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
        self.windows: list[Window] = []
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
        self.fingerprint = hashlib.sha256(
            "".join(digest for part in parts for digest in part.digests).encode()
        ).hexdigest()[:16]
        self._maps: dict[int, torch.Tensor] = {}
        self._opening = threading.Lock()
        self._window_of = torch.from_numpy(self.patches["window"].astype(np.int64))
        # Patches of each window are neighbours, and so are its anchors: first and how many
        self._patches_of = torch.tensor([(w.patches.start, len(w.patches)) for w in self.windows])
        count = torch.bincount(self._window_of[self.anchors], minlength=len(self.windows))
        self._anchors_of = torch.stack([count.cumsum(0) - count, count], dim=1)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TwinDictionary:
        """Open the dictionary in folder `path`. Pixels are mapped into memory, not read.

        Raises:
            DictionaryError: it is missing, unfinished, damaged, or of a newer format.
        """
        folder = Path(path)
        _check_path(folder, "the dictionary")
        if not folder.is_dir():
            raise DictionaryError(
                f"no twin dictionary at {folder}: mine one with "
                f"`solo-infoaug mine VIDEO_OR_DIR... -o {folder}`"
            )
        manifest = folder / MANIFEST
        if not manifest.is_file():
            raise DictionaryError(
                f"{folder} holds no finished twin dictionary ({MANIFEST} is missing): "
                f"mine one with `solo-infoaug mine VIDEO_OR_DIR... -o {folder}`"
            )
        info = read_json(manifest)
        keys = info.get("videos")
        if not isinstance(keys, list) or not all(map(_is_name, keys)):
            raise DictionaryError(f"{manifest}: damaged: `videos` is no list of names")
        for key, kind in (("config", dict), ("failed", dict), ("left_out", list)):
            if not isinstance(info.get(key), (kind, type(None))):
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
        found = np.empty((len(index), *self.pixels_shape[2:]), np.uint8)
        shards = np.searchsorted(self._shard_starts, places, side="right") - 1
        inside = places - self._shard_starts[shards]
        order = np.argsort(shards, kind="stable")
        there, starts = np.unique(shards[order], return_index=True)
        # A batch of a large dictionary meets hundreds of files: few steps for each.
        for shard, rows in zip(there.tolist(), np.split(order, starts[1:]), strict=True):
            found[rows] = self._open(shard).numpy()[inside[rows], moments[rows]]
        return torch.from_numpy(found)

    def sample(
        self,
        batch_size: int,
        generator: torch.Generator,
        *,
        arm: str = "mi",
        top_k: int | None = None,
        temporal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw patches that have a twin, and a partner for each.

        Args:
            batch_size: B. No patch comes twice in a batch unless there are fewer than B.
            generator: a CPU generator; the same state gives the same batch.
            arm: which partner: "mi" the twin, "random" any other patch of the same window,
                "random_anchor" another one that has a twin, "self" the patch itself. The patches
                are the same ones for every arm.
            top_k: draw the twin among the best `top_k` instead of taking the best.
            temporal: take patch and partner each at a moment of its own along their tracks,
                instead of both in the same frame.

        Returns:
            patch uint8 [B, 3, H, W], partner uint8 [B, 3, H, W], index of the patch int64 [B].

        Raises:
            ConfigError: an argument cannot be used.
            DictionaryError: no patch has a twin.
        """
        if arm not in ARMS:
            raise ConfigError(f"arm must be one of {', '.join(ARMS)}, not {arm!r}")
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size!r}")
        if top_k is not None and top_k < 1:
            raise ConfigError(f"top_k must be at least 1 or None, not {top_k!r}")
        if len(self.anchors) == 0:
            raise DictionaryError(f"{self.path}: no patch has a twin; mine more or other video")
        index = self.anchors[_draw(len(self.anchors), batch_size, generator)]
        # Every random number is drawn for every arm, so that all arms see the same patches.
        choice = torch.rand(batch_size, dtype=torch.float32, generator=generator)
        moments = torch.randint(self.pixels_shape[1], (2, batch_size), generator=generator)
        if not temporal:
            moments.zero_()
        if arm == "mi":
            partner = self._twin(index, top_k or 1, choice)
        elif arm == "self":
            partner = index
        else:
            partner = self._window_mate(index, choice, arm == "random_anchor")
        return self.crops(index, moments[0]), self.crops(partner, moments[1]), index

    def _twin(self, index: torch.Tensor, top_k: int, choice: torch.Tensor) -> torch.Tensor:
        twins = self.twins[index, :top_k]
        available = (twins >= 0).sum(dim=1)
        return twins.gather(1, (choice * available).long()[:, None])[:, 0]

    def _window_mate(
        self, index: torch.Tensor, choice: torch.Tensor, anchors: bool
    ) -> torch.Tensor:
        """Another patch of the same window, one with a twin if `anchors` and there is another."""
        window = self._window_of[index]
        first, count = self._patches_of[window].unbind(1)
        partner = first + _another(index - first, count, choice)
        if anchors:
            first, count = self._anchors_of[window].unbind(1)
            own = torch.searchsorted(self.anchors, index) - first
            mate = self.anchors[first + _another(own, count, choice)]
            partner = torch.where(count > 1, mate, partner)
        return partner

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
        folder = Path(path)
        window_of = np.zeros(len(pixels), np.int64) if windows is None else np.asarray(windows)
        _check_arrays(pixels, twins, mi, window_of)
        check_target(folder, "path")
        with only_writer(folder):
            cls._create(folder, pixels, twins, mi, window_of, name)
        return cls.load(folder)

    @staticmethod
    def _create(
        folder: Path,
        pixels: torch.Tensor,
        twins: torch.Tensor,
        mi: torch.Tensor,
        window_of: np.ndarray,
        name: str,
    ) -> None:
        if (folder / MANIFEST).exists():
            raise DictionaryError(f"{folder} holds a dictionary already")
        _, moments, _, side, _ = pixels.shape
        source = {"sha256": hashlib.sha256(pixels.numpy().tobytes()).hexdigest()}
        writer = VideoWriter(folder, safe_name(name), name, source)
        for window in np.unique(window_of):
            rows = np.flatnonzero(window_of == window)
            local = twins[rows].clone()
            local[local >= 0] -= int(rows[0])
            writer.add_window(
                {"frame": 0, "frames": 1},
                image=np.zeros((side, side, 3), np.uint8),
                patches={
                    "frame": np.zeros(len(rows), np.int32),
                    "x": np.full(len(rows), side / 2, np.float32),
                    "y": np.full(len(rows), side / 2, np.float32),
                    "size": np.full(len(rows), side, np.float32),
                    "entropy": np.zeros(len(rows), np.float32),
                },
                pixels=pixels[rows].numpy(),
                twins=local.numpy(),
                mi=mi[rows].numpy(),
                p_value=np.where(local.numpy() >= 0, 0, 1).astype(np.float32),
                moment_frames=np.zeros((len(rows), moments), np.int32),
                arrays={
                    "tracks": np.full((1, len(rows), 2), side / 2, np.float32),
                    "mi": np.full((len(rows), len(rows)), np.nan, np.float32),
                },
            )
        writer.finish()
        write_manifest(folder, [writer.key], {})


def _another(own: torch.Tensor, count: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
    """int64 [B]: a place below `count` that is not the `own`, by `choice` in [0, 1)."""
    place = (choice * (count - 1).clamp(min=1)).long()
    return torch.where(count > 1, place + (place >= own), own)


def check_target(folder: Path, name: str) -> None:
    """Know before the work that a dictionary can be written to `folder`, and read again.

    Raises:
        OutputError: it cannot be written to.
        DictionaryError: its path cannot be read again.
    """
    check_output_folder(folder, name)
    _check_path(folder, name)


def _check_path(folder: Path, name: str) -> None:
    try:
        str(folder.absolute()).encode("utf-8")
    except UnicodeEncodeError as error:
        raise DictionaryError(
            f"{name}: {folder} is not UTF-8, and safetensors opens no other path; choose another"
        ) from error


def _check_arrays(
    pixels: torch.Tensor, twins: torch.Tensor, mi: torch.Tensor, windows: np.ndarray
) -> None:
    """What `TwinDictionary.create` is given, before anything is written."""

    def require(good: bool, name: str, expected: str, value: torch.Tensor | np.ndarray) -> None:
        if not good:
            came = f"{value.dtype} {list(value.shape)}"
            raise DictionaryError(f"{name}: expected {expected}, got {came}")

    shape = pixels.shape
    require(
        pixels.dtype == torch.uint8
        and len(shape) == 5
        and shape[2] == 3
        and shape[3] == shape[4]
        and min(shape) > 0,
        "pixels",
        "uint8 [N, S, 3, H, H]",
        pixels,
    )
    count = len(pixels)
    require(
        twins.dtype == torch.int64
        and twins.ndim == 2
        and len(twins) == count
        and twins.numel() > 0,
        "twins",
        f"int64 [{count}, K]",
        twins,
    )
    require(
        mi.dtype == torch.float32 and mi.shape == twins.shape,
        "mi",
        f"float32 {list(twins.shape)}",
        mi,
    )
    require(
        windows.shape == (count,)
        and np.issubdtype(windows.dtype, np.integer)
        and bool((np.diff(windows, prepend=0) >= 0).all()),
        "windows",
        f"{count} whole numbers ≥ 0 in ascending order",
        windows,
    )
    there = twins >= 0
    require(
        int(twins.min()) >= -1 and int(twins.max()) < count, "twins", f"-1 to {count - 1}", twins
    )
    require(not bool((there[:, 1:] & ~there[:, :-1]).any()), "twins", "-1 behind the others", twins)
    own = torch.from_numpy(windows.astype(np.int64))
    require(
        not bool(((own[twins.clamp(min=0)] != own[:, None]) & there).any()),
        "twins",
        "patches of the same window",
        twins,
    )


def _draw(count: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """`size` of `count` numbers, without repetition where that is possible and cheap."""
    if size > count or count > 1 << 16:
        return torch.randint(count, (size,), generator=generator)
    return torch.randperm(count, generator=generator)[:size]


# --- writing


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Make the folder `out` and let nobody else write a dictionary there meanwhile.

    The operating system ends the lock with the process that holds it, so that whatever else lies in
    the folder is what others left, and not what they are working on.

    Raises:
        DictionaryError: another run is writing there, or the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise DictionaryError(
            f"{out}: another run is writing its dictionary here; wait until it has ended, or "
            "choose another folder"
        ) from None
    except (OSError, NotImplementedError) as error:
        raise DictionaryError(f"{out}: cannot be written: {_reason(error)}") from error
    try:
        yield
    finally:
        lock.release()


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class VideoWriter:
    """Writes one video's part of a dictionary; it appears when `finish` is called."""

    def __init__(self, out: Path, key: str, name: str, source: Mapping[str, Any]) -> None:
        self.key = key
        self._final = out / PARTS / key
        self._folder = out / PARTS / f".{key}.{os.getpid()}"
        shutil.rmtree(self._folder, ignore_errors=True)
        (self._folder / WINDOWS).mkdir(parents=True)
        self._record: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            # a file name need not be text in any encoding, and is drawn and printed
            "name": name.encode("utf-8", "backslashreplace").decode("utf-8"),
            "source": dict(source),
            "windows": [],
            "pixels": [],
        }
        self._columns: dict[str, list[np.ndarray]] = {}
        self._pixels: list[np.ndarray] = []
        self._count = 0

    def add_window(
        self,
        record: Mapping[str, Any],
        *,
        image: np.ndarray,
        patches: Mapping[str, np.ndarray],
        pixels: np.ndarray,
        twins: np.ndarray,
        mi: np.ndarray,
        p_value: np.ndarray,
        moment_frames: np.ndarray,
        arrays: Mapping[str, np.ndarray],
    ) -> None:
        """Add a window's P patches: `twins` [P, K] count within the window. Writes full shards."""
        index, count = len(self._record["windows"]), len(pixels)
        self._record["windows"].append({**record, "patches": count})
        columns = {
            **patches,
            "window": np.full(count, index, np.int32),
            "twins": np.where(twins >= 0, twins + self._count, -1),
            "mi": mi,
            "p_value": p_value,
            "moment_frames": moment_frames,
        }
        for name, column in columns.items():
            self._columns.setdefault(name, []).append(column)
        self._count += count
        self._pixels.append(pixels)
        if sum(map(len, self._pixels)) >= _SHARD_PATCHES:
            self._flush()
        encoded = io.BytesIO()
        Image.fromarray(image).save(encoded, "JPEG", quality=85)
        (self._folder / WINDOWS / f"{index:04d}.jpg").write_bytes(encoded.getvalue())
        self._write(f"{WINDOWS}/{index:04d}.safetensors", arrays)

    def finish(
        self, source: Mapping[str, Any] | None = None, counts: Mapping[str, Any] | None = None
    ) -> None:
        """Write what is left, and give the folder its final name.

        Args:
            source: more about the source, known only now.
            counts: those of `COUNTS` that are known, and `reasons`.
        """
        self._record["source"].update(source or {})
        self._record.update(counts or {})
        if not self._record["windows"]:
            raise ValueError("a video without a window is not written")
        self._flush()
        joined = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        digest = self._write("index.safetensors", joined)
        self._record["index"] = {"patches": self._count, "sha256": digest}
        _write_json(self._folder / "video.json", self._record)
        if self._final.exists():
            shutil.rmtree(self._final)
        self._folder.replace(self._final)

    def discard(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _flush(self) -> None:
        if not self._pixels:
            return
        name = f"pixels-{len(self._record['pixels']):04d}.safetensors"
        pixels = np.concatenate(self._pixels)
        self._pixels = []
        digest = self._write(name, {"pixels": pixels})
        self._record["pixels"].append({"file": name, "patches": len(pixels), "sha256": digest})

    def _write(self, name: str, arrays: Mapping[str, np.ndarray]) -> str:
        tensors = {
            key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in arrays.items()
        }
        data = to_safetensors(tensors)
        (self._folder / name).write_bytes(data)
        return hashlib.sha256(data).hexdigest()


def write_manifest(out: Path, keys: Sequence[str], info: Mapping[str, Any]) -> None:
    """Make the videos `keys`, in this order, a dictionary."""
    content = {"format": FORMAT, "version": VERSION, **info, "videos": list(keys)}
    _write_json(out / MANIFEST, content)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    fresh.replace(path)


def safe_name(name: str) -> str:
    """`name` with nothing in it but what every file system takes."""
    return re.sub(r"[^A-Za-z0-9_\-]+", "-", name).strip("-") or "video"


# --- reading; nothing in these files is trusted


@dataclass(frozen=True)
class _Shard:
    path: Path
    patches: int
    shape: tuple[int, ...]

    def map(self) -> torch.Tensor:
        """uint8 [n, S, 3, H, W], mapped."""
        found = _read_tensors(self.path)
        return _expect(self.path, found, "pixels", torch.uint8, (self.patches, *self.shape))


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
    windows: list[Window]
    shards: list[_Shard]
    digests: list[str]
    moments: int
    crop_size: int
    top_k: int

    @classmethod
    def read(cls, folder: Path) -> Part:
        """One video's part; a DictionaryError names the folder if anything in it is wrong."""
        record = read_json(folder / "video.json")
        try:
            return cls._read(folder, record)
        except (
            KeyError,
            TypeError,
            ValueError,
            IndexError,
            AttributeError,
            OverflowError,
        ) as error:
            raise DictionaryError(
                f"{folder / 'video.json'}: damaged: {type(error).__name__}: {error}"
            ) from error

    @classmethod
    def _read(cls, folder: Path, record: dict[str, Any]) -> Part:
        name = str(record["name"])
        _check_counts(record)
        path = folder / "index.safetensors"
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise DictionaryError(f"{path}: cannot be read: {error.strerror}") from error
        if digest != record["index"]["sha256"]:
            raise DictionaryError(f"{path}: damaged: its content is not what video.json says")
        found = _read_tensors(path)
        count = int(record["index"]["patches"])
        twins = _expect(path, found, "twins", torch.int64, (count, -1)).clone()
        top_k = twins.shape[1]
        mi = _expect(path, found, "mi", torch.float32, (count, top_k))
        p_value = _expect(path, found, "p_value", torch.float32, (count, top_k))
        frames = _expect(path, found, "moment_frames", torch.int32, (count, -1))
        old = record["version"] == 1  # a window then was a shot, and was called so
        unit = "shot" if old else "window"
        patches = np.zeros(count, _PATCH)
        for column in _STORED:
            dtype = torch.int32 if column in ("window", "frame") else torch.float32
            stored = unit if column == "window" else column
            patches[column] = _expect(path, found, stored, dtype, (count,)).numpy()

        windows, first = [], 0
        for index, entry in enumerate(record[f"{unit}s"]):
            size = int(entry["patches"])
            rows = slice(first, first + size)
            window = Window(name, index, range(first, rows.stop), dict(entry), folder / f"{unit}s")
            if size < 0 or not (patches["window"][rows] == index).all():
                raise DictionaryError(f"{path}: damaged: patches and {unit}s do not fit")
            patches["shot"][rows] = window.shot
            windows.append(window)
            first = rows.stop
        inside = twins[twins >= 0]
        if first != count or count == 0 or top_k == 0 or frames.shape[1] == 0:
            raise DictionaryError(f"{path}: damaged: patches and {unit}s do not fit")
        if (len(inside) and int(inside.max()) >= count) or bool((twins < -1).any()):
            raise DictionaryError(f"{path}: damaged: a twin's index is out of range")
        own = torch.from_numpy(patches["window"].astype(np.int64))
        if bool(((own[twins.clamp(min=0)] != own[:, None]) & (twins >= 0)).any()):
            raise DictionaryError(f"{path}: damaged: a twin lies in another {unit}")
        if bool(((twins[:, 1:] >= 0) & (twins[:, :-1] < 0)).any()):
            raise DictionaryError(f"{path}: damaged: a twin follows on a missing one")

        shards, sides = [], set()
        for entry in record["pixels"]:
            if not _is_name(entry["file"]):
                raise DictionaryError(f"{folder}: damaged: {entry['file']!r} is no file name")
            shard_path = folder / entry["file"]
            shape = _shape_of(shard_path, "pixels")
            if len(shape) != 5 or shape[:3] != (int(entry["patches"]), frames.shape[1], 3):
                raise DictionaryError(f"{shard_path}: damaged: unexpected shape {shape}")
            sides.add(shape[3:])
            shards.append(_Shard(shard_path, shape[0], shape[1:]))
        if sum(shard.patches for shard in shards) != count or len(sides) != 1:
            raise DictionaryError(f"{folder}: damaged: pixels and patches do not fit")
        height, width = sides.pop()
        if height != width or height < 1:
            raise DictionaryError(f"{folder}: damaged: crops of {height}×{width} pixels")
        digests = [digest, *(str(entry["sha256"]) for entry in record["pixels"])]
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
            digests=digests,
            moments=frames.shape[1],
            crop_size=height,
            top_k=top_k,
        )


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


def _is_name(name: object) -> bool:
    """A plain file name: no path, nothing hidden."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; anything else there is a DictionaryError."""
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise DictionaryError(f"{path}: damaged: larger than any such file")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DictionaryError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DictionaryError(f"{path}: damaged: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DictionaryError(f"{path}: not a {FORMAT}")
    version = content.get("version")
    if not isinstance(version, int) or version < 1:
        raise DictionaryError(f"{path}: damaged: format version {version!r}")
    if version > VERSION:
        raise DictionaryError(
            f"{path}: format version {version} is newer than this solo-infoaug reads ({VERSION}); "
            "update it with: pip install -U solo-infoaug"
        )
    return content


def _open_safetensors(path: Path) -> Any:
    if not path.is_file():
        raise DictionaryError(f"{path}: missing")
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise DictionaryError(f"{path}: damaged: {error}") from error


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    with _open_safetensors(path) as file:
        try:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
            raise DictionaryError(f"{path}: damaged: {error}") from error


def _shape_of(path: Path, name: str) -> tuple[int, ...]:
    with _open_safetensors(path) as file:
        try:
            return tuple(file.get_slice(name).get_shape())
        except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
            raise DictionaryError(f"{path}: damaged: {error}") from error


def _expect(
    path: Path,
    found: Mapping[str, torch.Tensor],
    name: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
) -> torch.Tensor:
    tensor = found.get(name)
    good = (
        tensor is not None
        and tensor.dtype == dtype
        and tensor.ndim == len(shape)
        and all(want in (-1, have) for want, have in zip(shape, tensor.shape, strict=True))
    )
    if tensor is None or not good:
        came = "nothing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
        raise DictionaryError(
            f"{path}: damaged: `{name}` should be {dtype} {list(shape)}, but is {came}"
        )
    return tensor
