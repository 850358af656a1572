"""What a dictionary keeps of a window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from solo_infoaug import _jpeg
from solo_infoaug.mining.background import Patches
from solo_infoaug.mining.candidates import LOST, TWIN
from solo_infoaug.mining.config import MineConfig
from solo_infoaug.mining.crops import crops, pick_frames, squares
from solo_infoaug.mining.twins import Twins


@dataclass(frozen=True)
class Stored:
    """What a dictionary keeps of a window: P patches with S crops, and K twins of each.

    `frame` int32, `x`, `y`, `size`, `entropy` float32 [P] as in the dictionary; `pixels` uint8
    [P, S, 3, H, H], or JPEG files [P][S]; `twins` int64 [P, K], places in the window; `mi`,
    `p_value` float32 [P, K]; `moment_frames` int32 [P, S]; `image` uint8 [H, W, 3], the seed frame.
    docs/dictionary-format.md describes `arrays`.
    """

    record: dict[str, Any]
    image: np.ndarray
    patches: dict[str, np.ndarray]
    pixels: np.ndarray | list[list[bytes]]
    twins: np.ndarray
    mi: np.ndarray
    p_value: np.ndarray
    moment_frames: np.ndarray
    arrays: dict[str, np.ndarray]


def store(
    patches: Patches,
    found: Twins,
    record: dict[str, Any],
    config: MineConfig,
) -> Stored:
    """Collect the patches with a twin, their twins, and some patches without, for random pairs."""
    window, tracks = patches.window, patches.tracks
    seed, size = window.seed, patches.size
    kept = _kept(found, window.numbers[seed], config)
    paired = _Renumbered(found, kept, config.top_k)
    times = pick_frames(
        tracks.visible[:, kept], sorted(window.keyframes), seed, config.temporal_crops
    )
    # From here on, units are pixels of the whole frame
    path, numbers = tracks.path[:, kept] + window.corner, np.asarray(window.numbers, np.int32)
    return Stored(
        record=_record(patches, record, config),
        image=window.keyframes[seed],
        patches={
            "frame": np.full(len(kept), window.numbers[seed], np.int32),
            "x": path[seed, :, 0].astype(np.float32),
            "y": path[seed, :, 1].astype(np.float32),
            "size": np.full(len(kept), size, np.float32),
            "entropy": paired.entropies,
        },
        pixels=_pixels(patches, kept, times, config),
        twins=paired.twins,
        mi=paired.mi,
        p_value=paired.p_value,
        moment_frames=numbers[times],
        arrays={
            "tracks": path.astype(np.float32),
            "numbers": numbers,
            "visible": tracks.visible[:, kept],
            "motion": patches.motion[kept].astype(np.float32),
            "mi": paired.pairs,
            "null": found.partners.null,
            "centres": (patches.centres + window.corner).astype(np.float32),
            "reason": found.reason,
        },
    )


def _kept(found: Twins, frame: int, config: MineConfig) -> np.ndarray:
    """int64: the patches with a twin, their twins, and `extra_patches` more, drawn by the seed."""
    # Some patches are twins of others and have none themselves: their partners are not certain
    paired, twins = found.reason == TWIN, found.partners.twins
    paired[found.moving[twins[twins >= 0]]] = True
    extra = np.flatnonzero(~paired & (found.reason != LOST))
    extra = np.random.default_rng([config.seed, frame]).permutation(extra)[: config.extra_patches]
    return np.sort(np.concatenate([np.flatnonzero(paired), extra]))


class _Renumbered:
    """The partners of the patches that are `kept`, by their numbers among these."""

    def __init__(self, twins: Twins, kept: np.ndarray, top_k: int) -> None:
        partners, place, count = twins.partners, np.full(len(twins.reason), -1), len(kept)
        place[kept] = np.arange(count)
        rows = place[twins.moving]
        stored = rows >= 0
        to, found = rows[stored], partners.twins
        self.twins = np.full((count, top_k), -1, np.int64)
        self.twins[to] = np.where(found >= 0, rows[np.maximum(found, 0)], -1)[stored]
        self.mi, self.p_value = np.zeros((2, count, top_k), np.float32)
        self.mi[to], self.p_value[to] = partners.mi[stored], partners.p_value[stored]
        self.p_value[self.twins < 0] = 1.0
        self.entropies = np.full(count, -np.inf, np.float32)
        self.entropies[to] = partners.entropies[stored]
        self.pairs = np.full((count, count), np.nan, np.float32)
        self.pairs[np.ix_(to, to)] = partners.pairs[np.ix_(stored, stored)]


def _record(patches: Patches, record: dict[str, Any], config: MineConfig) -> dict[str, Any]:
    window = patches.window
    return {
        "shot": window.shot,
        "frame": window.numbers[window.seed],
        "first": window.numbers[0],
        "frames": len(window),
        "height": window.frame_size[0],
        "width": window.frame_size[1],
        "context": config.context,
        **record,
    }


def _pixels(
    patches: Patches, kept: np.ndarray, times: np.ndarray, config: MineConfig
) -> np.ndarray | list[list[bytes]]:
    """The `crops` in the form that a dictionary stores."""
    window = patches.window
    images = {t: window.picture.of(window.keyframes[t]) for t in np.unique(times).tolist()}
    how = images, times, patches.tracks.path[:, kept], patches.size, config.crop_size
    if not config.jpeg:
        return crops(*how, config.context)
    # One by one, because a window's raw crops of 224 pixels can take a gigabyte
    cut = squares(*how, config.context)
    return [[_jpeg.encode(next(cut)) for _ in row] for row in times]
