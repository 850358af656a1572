"""The twin dictionary: patches, their twins, and where they come from, in a folder.

`format.py` describes the files, `writing.py` writes them, `opening.py` opens them. `sampling.py`
chooses the pairs of a batch.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from solo_infoaug._checks import is_number, require
from solo_infoaug.dictionary.files import PartFiles
from solo_infoaug.dictionary.format import INDEX, MANIFEST, links_fault
from solo_infoaug.dictionary.links import Chains
from solo_infoaug.dictionary.opening import Opened, open_place
from solo_infoaug.dictionary.pixels import LazyPixels
from solo_infoaug.dictionary.reading import Windows
from solo_infoaug.dictionary.sampling import (
    TwinPairs,
    WindowMates,
    at_least,
    draw,
    draw_apart,
    twin,
)
from solo_infoaug.dictionary.writing import write_arrays
from solo_infoaug.errors import ConfigError, DictionaryError

POSITIVES = ("twins", "random", "random_with_twin", "self")
"""The values of `infoaug.positives`: which patch is the partner of a patch."""

TEMPORAL = "true, false or a number of seconds > 0"


def is_temporal(value: object) -> bool:
    """Whether `infoaug.temporal` may be this."""
    return isinstance(value, bool) or (is_number(value, 0) and value not in (0, math.inf))


def _check_arguments(
    batch_size: int,
    positives: str,
    top_k: int | None,
    temporal: bool | float,
    without_twin_share: float,
    random_share: float,
) -> None:
    """Raise a ConfigError that names an argument of `TwinDictionary.sample` if it is wrong."""
    share = without_twin_share
    for name, good, expected, value in (
        ("positives", positives in POSITIVES, f"one of {', '.join(POSITIVES)}", positives),
        ("batch_size", batch_size >= 1, "at least 1", batch_size),
        ("top_k", top_k is None or top_k >= 1, "at least 1 or None", top_k),
        ("without_twin_share", 0 <= share < 1, "at least 0 and less than 1", share),
        ("temporal", is_temporal(temporal), TEMPORAL, temporal),
        ("random_share", 0 <= random_share <= 1, "at least 0 and at most 1", random_share),
    ):
        require(good, name, expected, value)


CACHE_GB = 50.0
"""Gigabytes of the local disk that a dictionary in a bucket may use by default."""


class TwinDictionary:
    """Patches from video and their twins; opened with `load`, written by `mine`.

    Attributes:
        pixels: uint8 [N, S, 3, H, W]: S moments of each patch along its track, S >= 1. A tensor; if
            crops are stored as JPEG, an array that decodes them when it is indexed.
        twins: int64 [N, K]: indices of each patch's twins, best first, -1 where there is none.
        mi: float32 [N, K], nats; 0 where there is no twin.
        p_value: float32 [N, K], of the hypothesis that the two move independently; 1 where there
            is no twin.
        patches: structured array [N]: `video` (index into `videos`), `shot` (counted through
            all videos), `window` (index into `windows`), `frame`, `x`, `y` (centre, pixels of that
            frame), `size`, `entropy` (nats).
        moment_frames: int32 [N, S]: the video's frame in which each moment was taken.
        next: int64 [N]: the patch of the next window that continues each one's track, -1 for none.
        anchors: int64 [A]: the patches that have a twin.
        without_twin: int64 [N − A]: the others.
        videos: names of the videos.
        windows: a record of each window in which there are twins, read when it is asked for.
        fingerprint: a short hash of the content, the same wherever the dictionary lies.
        info: the manifest: settings, provenance, what failed.
    """

    def __init__(self, opened: Opened) -> None:
        index = opened.index
        self.path, self.info, self.stream = opened.path, opened.info, opened.stream
        self.videos = index.names
        self.fingerprint = index.fingerprint
        self.twins, self.mi, self.p_value = (index[name] for name in ("twins", "mi", "p_value"))
        self.moment_frames, self.next = index["moment_frames"], index["next"]
        self.anchors, self.without_twin = index["anchors"], index["without_twin"]
        self.patches = index.patches
        first, of_video = (index[name].numpy() for name in ("window_first", "video_window"))
        self.windows = Windows(self.videos, first, len(self.patches), of_video, opened.files)
        self._opened, self._index, self._files = opened, index, opened.pixels
        self._chosen: dict[str, torch.Tensor] | None = None
        """What `apart` has put in the place of the index's."""

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, cache_gb: float = CACHE_GB, repeats: int = 1
    ) -> TwinDictionary:
        """Open a dictionary. Pixels are mapped into memory, not read.

        Args:
            path: its folder, or a URL that fsspec opens (`s3://bucket/twins`). From a URL, the
                index is fetched now and packs when they are needed, into the user's cache.
            cache_gb: for a URL, the gigabytes of local disk that the cache may use.
            repeats: for a URL with more packs than fit in the cache, how often each patch is drawn
                while its pack is cached.

        Raises:
            DictionaryError: the dictionary is missing, unfinished, damaged, or of a newer format.
            ConfigError: `cache_gb` is too small.
        """
        return cls(open_place(path, cache_gb, repeats))

    def __len__(self) -> int:
        return len(self.patches)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """Copies and other processes open the place again instead of copying the pixels."""
        stream = self.stream
        how = (CACHE_GB, 1) if stream is None else (stream.cache_gb, stream.repeats)
        return TwinDictionary._reopened, (self._chosen, self.place, *how)

    @classmethod
    def _reopened(
        cls, chosen: dict[str, torch.Tensor] | None, place: str, cache_gb: float, repeats: int
    ) -> TwinDictionary:
        return cls.load(place, cache_gb=cache_gb, repeats=repeats)._with(chosen)

    def _with(self, chosen: dict[str, torch.Tensor] | None) -> TwinDictionary:
        """Put what `apart` has chosen in the place of the index's."""
        vars(self).update(chosen or {}, _chosen=chosen)
        return self

    @property
    def written(self) -> str:
        """When its manifest was written, to the second; for a bucket, when it was first fetched."""
        file = self.path / (MANIFEST if self.stream is None else INDEX)
        return datetime.fromtimestamp(file.stat().st_mtime).isoformat(" ", "seconds")

    @property
    def place(self) -> str:
        """The folder, or the URL."""
        return str(self.path) if self.stream is None else self.stream.url

    def __repr__(self) -> str:
        return f"TwinDictionary({self.summary})"

    @property
    def summary(self) -> str:
        """One line for people."""
        return (
            f"{self.place}: {len(self)} patches, {len(self.anchors)} with a twin, "
            f"{len(self.windows)} windows, {len(self.videos)} videos"
        )

    @property
    def pixels_shape(self) -> tuple[int, ...]:
        """(N, S, 3, H, W), without reading a pixel."""
        return self._files.shape

    @property
    def pixels(self) -> torch.Tensor | LazyPixels:
        """uint8 [N, S, 3, H, W]. Raw crops are read all at once; `crops` reads only some."""
        if self._files.encoded:
            return LazyPixels(self._files)
        return self._files.raw()

    def part_files(self, video: int) -> PartFiles:
        """The files of a video, by its place in `videos`."""
        return self._opened.files(video)

    @functools.cached_property
    def seconds(self) -> np.ndarray:
        """float64 [N]: when each patch is, in its video."""
        return self.patches["frame"] / self._index.lookup("fps", self.patches["video"])

    @functools.cached_property
    def context(self) -> np.ndarray:
        """float64 [N]: how many sides of its patch each crop spans."""
        return self._index.lookup("window_context", self.patches["window"])

    @functools.cached_property
    def chains(self) -> Chains:
        """Which patches continue each other, by `next`."""
        fault = links_fault(self.next, self.patches["window"], self.patches["shot"])
        if fault:
            raise DictionaryError(f"{self._index.path}: damaged: {fault}")
        return Chains.of(self.next.numpy(), self.seconds)

    @functools.cached_property
    def _mates(self) -> WindowMates:
        window, tracked = self.patches["window"], self._index["window_tracked"]
        self._index.lookup("window_tracked", window)
        for rows in (self.anchors, self.without_twin):
            inside = len(rows) == 0 or (int(rows[0]) >= 0 and int(rows[-1]) < len(self))
            if not inside or not bool((rows[1:] > rows[:-1]).all()):
                raise DictionaryError(f"{self._index.path}: damaged: patches are out of order")
        window_of = torch.from_numpy(window.astype(np.int64))
        return WindowMates.of(window_of, self.anchors, self.without_twin, tracked)

    def crops(self, index: torch.Tensor, moment: torch.Tensor | int = 0) -> torch.Tensor:
        """uint8 [B, 3, H, W]: patches `index` int64 [B] at `moment` (int, or int64 [B])."""
        moments = torch.as_tensor(moment).expand(len(index)).numpy()
        return torch.from_numpy(self._files.crops(index.numpy(), moments))

    def sample(
        self,
        batch_size: int,
        generator: torch.Generator,
        *,
        positives: str = "twins",
        top_k: int | None = None,
        temporal: bool | float = False,
        without_twin_share: float = 0.0,
        order: tuple[int, int] | None = None,
        random_share: float = 0.0,
        distinct_windows: bool = False,
    ) -> TwinPairs:
        """Draw patches that have a twin, and a partner for each.

        Args:
            batch_size: B. No patch comes twice in a batch unless there are fewer than B.
            generator: a CPU generator; the same state gives the same batch.
            positives: which partner: "twins" the twin, "random" any other patch of the same window
                (the stored patches without a twin stand for the ones that are not stored),
                "random_with_twin" another patch that has a twin, "self" the patch itself. The
                patches are the same for all four.
            top_k: draw the twin among the best `top_k` instead of taking the best.
            temporal: show patch and partner at different moments of their tracks, instead of in the
                same frame. A number: also in other windows that continue their tracks, at most this
                many seconds away.
            without_twin_share: share of the batch, in [0, 1), that are patches without a twin, each
                its own partner. They come last.
            order: seed of the run, and the number of this batch among those of all processes. It
                matters only if packs are fetched from a bucket and do not all fit in the cache. The
                patches then follow from it instead of the generator, and each is drawn `repeats`
                times in a pass through all. Without it, batches are counted as they are drawn.
            random_share: share, in [0, 1], of the patches with a twin that get the partner of
                "random" instead. They come first.
            distinct_windows: draw no second patch from a window while another window is left.

        Returns:
            patch uint8 [B, 3, H, W], partner uint8 [B, 3, H, W], patch_index int64 [B]: a named
            tuple.

        Raises:
            ConfigError: an argument cannot be used.
            DictionaryError: no patch has a twin.

        Examples:
            >>> dictionary = TwinDictionary.load("twins/")
            >>> pairs = dictionary.sample(8, torch.Generator().manual_seed(0))
            >>> pairs.patch.shape, pairs.partner.dtype
            (torch.Size([8, 3, 20, 20]), torch.uint8)
            >>> patch, twin, patch_index = pairs  # the same
        """
        _check_arguments(batch_size, positives, top_k, temporal, without_twin_share, random_share)
        if len(self.anchors) == 0:
            raise DictionaryError(f"{self.path}: no patch has a twin; mine more or other video")
        lone = min(round(without_twin_share * batch_size), batch_size - 1)
        if lone and len(self.without_twin) == 0:
            raise DictionaryError(
                f"{self.path}: every patch has a twin; use without_twin_share=0, "
                f"got {without_twin_share}"
            )
        streamed = self.stream is not None and self.stream.partial
        if self.stream is not None and streamed:
            index, more = self.stream.draw(order, batch_size - lone, lone, generator)
        else:
            index = self._drawn(self.anchors, batch_size - lone, generator, distinct_windows)
        self._inside(index)
        # Every random number is drawn for all `positives`, so that they see the same patches.
        choice = torch.rand(len(index), dtype=torch.float32, generator=generator)
        moments = torch.randint(self.pixels_shape[1], (2, len(index)), generator=generator)
        partner = self._partner(positives, index, top_k or 1, choice)
        if lone:
            if not streamed:
                more = self._drawn(self.without_twin, lone, generator, distinct_windows, index)
            index, partner = torch.cat([index, more]), torch.cat([partner, more])
            drawn = torch.randint(self.pixels_shape[1], (2, lone), generator=generator)
            moments = torch.cat([moments, drawn], dim=1)
        if count := round(random_share * len(choice)):
            mates = self._mates.mate(index[:count], choice[:count], False)
            partner = torch.cat([mates, partner[count:]])
        if not temporal:
            moments.zero_()
        shown = self._inside(torch.stack([index, partner]))
        if not isinstance(temporal, bool):
            choice = torch.rand(shown.shape, dtype=torch.float32, generator=generator)
            shown = self.chains.draw(shown.flatten(), temporal, choice.flatten()).view_as(shown)
        patch, partner = map(self.crops, shown, moments)
        return TwinPairs(patch, partner, index)

    def _drawn(
        self,
        rows: torch.Tensor,
        size: int,
        generator: torch.Generator,
        distinct: bool,
        before: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`size` of the patches `rows`; `before` are in the batch already."""
        if not distinct:
            return rows[draw(len(rows), size, generator)]
        window = self._mates.window_of
        taken = None if before is None else window[before]
        return rows[draw_apart(window[rows], size, generator, taken)]

    def apart(self, distance: float) -> TwinDictionary:
        """The same dictionary with those twins that are this many patches away, or more.

        A patch whose twins are all nearer is one without a twin, for all `positives`.

        Raises:
            ConfigError: packs are fetched from a bucket and not all have room.
            DictionaryError: no patch keeps a twin.
        """
        if self.stream is not None and self.stream.partial:
            raise ConfigError(
                f"min_distance: expected all of {self.place} on the local disk; raise cache_gb, or "
                "copy it"
            )
        x, y, size = (self.patches[name].astype(np.float64) for name in ("x", "y", "size"))
        far = at_least(self.twins, x, y, size, distance)
        if not far.any():
            raise DictionaryError(
                f"{self.place}: no patch has a twin at a min_distance of {distance:g} patches; "
                "choose less"
            )
        first = torch.argsort((~far).to(torch.uint8), dim=1, stable=True)
        there = far.gather(1, first)
        known, own = far.any(dim=1), torch.arange(len(self))
        chosen = {
            "twins": torch.where(there, self.twins.gather(1, first), -1),
            "mi": torch.where(there, self.mi.gather(1, first), 0.0),
            "p_value": torch.where(there, self.p_value.gather(1, first), 1.0),
            "anchors": own[known],
            "without_twin": own[~known],
        }
        return TwinDictionary(self._opened)._with(chosen)

    def _inside(self, index: torch.Tensor) -> torch.Tensor:
        """The same, once its range is checked: a mapped index is not read in full when it is
        opened."""
        if int(index.min()) < 0 or int(index.max()) >= len(self):
            raise DictionaryError(f"{self._index.path}: damaged: a twin's index is out of range")
        return index

    def _partner(
        self, positives: str, index: torch.Tensor, top_k: int, choice: torch.Tensor
    ) -> torch.Tensor:
        """int64 [B], by `choice` in [0, 1)."""
        if positives == "self":
            return index
        if positives != "twins":
            return self._mates.mate(index, choice, positives == "random_with_twin")
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
        """Write a dictionary of your own patches and twins.

        Args:
            path: the folder to write; it must not hold a dictionary.
            pixels: uint8 [N, S, 3, H, H].
            twins: int64 [N, K], indices into N within the same window, -1 for none.
            mi: float32 [N, K].
            windows: the window of each patch, 0, 1, … in ascending order; None for all in one.
            name: what the source is called.
            jpeg: store the crops as JPEG, which loses fine detail, instead of raw.

        Raises:
            DictionaryError: the arrays do not fit together, or the folder is taken; nothing is
                written.
            OutputError: the folder cannot be written.
        """
        write_arrays(Path(path), pixels, twins, mi, windows, name, jpeg)
        return cls.load(path)
