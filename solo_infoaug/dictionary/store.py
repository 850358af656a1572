"""The twin dictionary: patches, their twins, and where they come from, in a folder.

How it lies on disk is said in `format.py`; `reading.py` reads it, `writing.py` writes it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from solo_infoaug._checks import is_number, require
from solo_infoaug.dictionary.format import MANIFEST, PARTS, check_path, is_name, read_json
from solo_infoaug.dictionary.links import Chains
from solo_infoaug.dictionary.pixels import LazyPixels, PixelFiles
from solo_infoaug.dictionary.reading import Part, WindowRecord
from solo_infoaug.dictionary.sampling import WindowMates, draw, twin
from solo_infoaug.dictionary.writing import write_arrays
from solo_infoaug.errors import DictionaryError

PARTNERS = ("mi", "random", "random_anchor", "self")
"""What `infoaug.arm` may be: which patch is shown as the twin."""

TEMPORAL = "true, false or a number of seconds > 0"


def is_temporal(value: object) -> bool:
    """Whether `infoaug.temporal` may be this."""
    return isinstance(value, bool) or (is_number(value, 0) and value not in (0, math.inf))


class TwinDictionary:
    """Patches from video and their twins; opened with `load`, written by `mine`.

    Attributes:
        pixels: uint8 [N, S, 3, H, W]: S moments of each patch along its track, S >= 1. A tensor;
            where crops are stored as JPEG, what is decoded when it is indexed like one.
        twins: int64 [N, K]: indices of each patch's twins, best first, -1 where there is none.
        mi: float32 [N, K], nats; 0 where there is no twin.
        p_value: float32 [N, K], of the hypothesis that the two move independently; 1 where there
            is no twin.
        patches: structured array [N]: `video` (index into `videos`), `shot` (counted through
            all videos), `window` (index into `windows`), `frame`, `x`, `y` (centre, pixels of that
            frame), `size`, `entropy` (nats).
        moment_frames: int32 [N, S]: the video's frame in which each moment was taken.
        next: int64 [N]: the patch of the next window that continues each one's track, -1 for none.
        seconds: float64 [N]: when each patch is, in its video.
        context: float64 [N]: how many sides of its patch each crop spans.
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
        self.next = torch.cat([part.next for part in parts])
        self.patches = np.concatenate([part.patches for part in parts])
        self.seconds = np.concatenate([part.patches["frame"] / part.fps for part in parts])
        self.windows: list[WindowRecord] = []
        first = shots = 0
        for number, part in enumerate(parts):
            rows = slice(first, first + len(part.patches))
            twins = self.twins[rows]
            twins[twins >= 0] += first
            following = self.next[rows]
            following[following >= 0] += first
            self.patches["video"][rows] = number
            self.patches["shot"][rows] += shots
            shots = int(self.patches["shot"][rows].max()) + 1
            self.patches["window"][rows] += len(self.windows)
            for window in part.windows:
                moved = range(window.patches.start + first, window.patches.stop + first)
                self.windows.append(dataclasses.replace(window, patches=moved))
            first = rows.stop
        self._files = PixelFiles([shard for part in parts for shard in part.shards])
        of_window = np.array([window.context for window in self.windows])
        self.context = of_window[self.patches["window"]]
        self.anchors = (self.twins[:, 0] >= 0).nonzero()[:, 0]
        self.without_twin = (self.twins[:, 0] < 0).nonzero()[:, 0]
        self.fingerprint = hashlib.sha256(
            "".join(digest for part in parts for digest in part.digests).encode()
        ).hexdigest()[:16]
        self._mates = WindowMates.of(
            torch.from_numpy(self.patches["window"].astype(np.int64)),
            self.anchors,
            self.without_twin,
            [window.tracked for window in self.windows],
        )

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
        return self._files.shape

    @property
    def pixels(self) -> torch.Tensor | LazyPixels:
        """uint8 [N, S, 3, H, W]. All of what is stored raw; `crops` reads what is asked for."""
        if self._files.encoded:
            return LazyPixels(self._files)
        return self._files.raw()

    @functools.cached_property
    def chains(self) -> Chains:
        """Which patches continue each other, by `next`."""
        return Chains.of(self.next.numpy(), self.seconds)

    def crops(self, index: torch.Tensor, moment: torch.Tensor | int = 0) -> torch.Tensor:
        """uint8 [B, 3, H, W]: patches `index` int64 [B] at `moment` (int, or int64 [B])."""
        moments = torch.as_tensor(moment).expand(len(index)).numpy()
        return torch.from_numpy(self._files.crops(index.numpy(), moments))

    def sample(
        self,
        batch_size: int,
        generator: torch.Generator,
        *,
        arm: str = "mi",
        top_k: int | None = None,
        temporal: bool | float = False,
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
                instead of both in the same frame. A number: also along what continues them in other
                windows, this many seconds away at most.
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
            ("temporal", is_temporal(temporal), TEMPORAL, temporal),
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
        shown = torch.stack([index, partner])
        if not isinstance(temporal, bool):
            choice = torch.rand(shown.shape, dtype=torch.float32, generator=generator)
            shown = self.chains.draw(shown.flatten(), temporal, choice.flatten()).view_as(shown)
        return self.crops(shown[0], moments[0]), self.crops(shown[1], moments[1]), index

    def _partner(
        self, arm: str, index: torch.Tensor, top_k: int, choice: torch.Tensor
    ) -> torch.Tensor:
        """int64 [B], by `choice` in [0, 1)."""
        if arm == "self":
            return index
        if arm != "mi":
            return self._mates.mate(index, choice, arm == "random_anchor")
        return twin(self.twins[index, :top_k], choice)

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
        jpeg: bool = False,
    ) -> TwinDictionary:
        """Write a dictionary of patches and twins that were found by other means.

        Args:
            path: the folder to write; it must not hold a dictionary.
            pixels: uint8 [N, S, 3, H, H].
            twins: int64 [N, K], indices into N within the same window, -1 for none.
            mi: float32 [N, K].
            windows: the window of each patch, 0, 1, … in ascending order; None for all in one.
            name: what the source is called.
            jpeg: store the crops as JPEG, which loses what is fine in them; else as they are.

        Raises:
            DictionaryError: the arrays do not fit together, or the folder is taken; nothing is
                written.
            OutputError: the folder cannot be written.
        """
        write_arrays(Path(path), pixels, twins, mi, windows, name, jpeg)
        return cls.load(path)
