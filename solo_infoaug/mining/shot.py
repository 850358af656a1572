"""One shot: from frames to patches and their twins."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from solo_infoaug.mining.camera import estimate_camera
from solo_infoaug.mining.config import MineConfig
from solo_infoaug.mining.depth import DEFAULT_MODEL, depth_along
from solo_infoaug.mining.shots import Shot
from solo_infoaug.mining.significance import false_discovery, pair_p_values
from solo_infoaug.mining.trackers import Tracker
from solo_infoaug.mining.tracking import agreement, patch_tracks
from solo_infoaug.mining.twins import (
    apart,
    best_partners,
    information,
    motion_noise,
    trajectories,
)

# What became of each patch of the first frame; the number is stored.
REASONS = ("twin", "lost", "static", "border", "not significant")
_TWIN, _LOST, _STATIC, _BORDER, _INSIGNIFICANT = range(len(REASONS))


@dataclass
class Stopwatch:
    """Seconds spent in each stage of mining."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the time inside the `with` block for `stage`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start


def mine_shot(
    shot: Shot, tracker: Tracker, config: MineConfig, watch: Stopwatch | None = None
) -> dict[str, Any] | None:
    """Mine one shot: what `VideoWriter.add_shot` takes, or None if nothing could be tracked."""
    watch = watch or Stopwatch()
    size = patch_size(*shot.size, config)
    if size > min(shot.size):
        return None

    # Patches of the first frame, and the tracks of the points in each
    with watch("track"):
        tracks = tracker.follow(shot, size, config.grid_step)
    if len(tracks.centres) < 2:
        return None

    # The same without the camera's motion
    with watch("camera"):
        flat, seen_flat = _flat(tracks.points), _flat(tracks.visible)
        camera = estimate_camera(flat, seen_flat, shot.small[0].shape[:2], config.camera)
        still = camera.stabilise(flat).reshape(tracks.points.shape)
    path, seen = patch_tracks(tracks.centres, tracks.points, tracks.visible)
    motion, _ = patch_tracks(tracks.centres, still, tracks.visible)
    path, motion = path * shot.scale, motion * shot.scale

    # Which patches carry information: tracked long enough, moving, on one object
    least = max(
        config.min_motion * min(shot.size),
        config.motion_over_noise * camera.noise * float(shot.scale.mean()),
    )
    reason = np.full(len(path[0]), _INSIGNIFICANT, np.uint8)
    agree = agreement(motion / shot.scale, still, tracks.visible, camera.noise)
    reason[agree < config.min_agreement] = _BORDER
    reason[motion_noise(motion, seen) < least] = _STATIC
    reason[seen.sum(axis=0) < config.min_frames] = _LOST
    moving = np.flatnonzero(reason == _INSIGNIFICANT)
    kept = np.flatnonzero(reason != _LOST)
    if len(kept) < 2:
        return None

    # Their mutual information and the partners that are significant
    if config.depth and len(moving) >= 2:
        with watch("depth"):
            model = DEFAULT_MODEL if config.depth == "default" else config.depth
            at = path / shot.scale
            depth = depth_along(shot.small, at, seen, model, config.device)
            motion = np.concatenate([motion, depth[..., None] * shot.scale.mean()], axis=2)
    found = _twins(motion[:, moving], seen[:, moving], path[0, moving], size, config, watch)
    reason[moving[found.twins[:, 0] >= 0]] = _TWIN

    # Crops along the tracks
    with watch("crop"):
        moments = pick_moments(seen[:, kept], sorted(shot.keyframes), config.moments)
        pixels = crops(shot.keyframes, moments, path[:, kept], size, config.crop_size)

    # `moving` counts among all patches; what is stored counts among those kept
    place = np.full(len(reason), -1)
    place[kept] = np.arange(len(kept))
    rows, count = place[moving], len(kept)
    twins = np.full((count, config.top_k), -1, np.int64)
    twins[rows] = np.where(found.twins >= 0, rows[found.twins] if len(rows) else -1, -1)
    best, p_value = np.zeros((2, count, config.top_k), np.float32)
    best[rows], p_value[rows] = found.mi, found.p_value
    p_value[twins < 0] = 1.0
    entropies = np.full(count, -np.inf, np.float32)
    entropies[rows] = found.entropies
    pairs = np.full((count, count), np.nan, np.float32)
    pairs[np.ix_(rows, rows)] = found.pairs
    numbers = np.asarray(shot.numbers, np.int32)
    return {
        "record": {
            "frame": int(numbers[0]),
            "frames": len(shot),
            "height": shot.size[0],
            "width": shot.size[1],
            "patch": size,
            "reasons": {name: int((reason == number).sum()) for number, name in enumerate(REASONS)},
            "least_motion": round(float(least), 4),
            "camera": camera.record,
        },
        "first_frame": shot.keyframes[0],
        "patches": {
            "frame": np.full(count, numbers[0], np.int32),
            "x": path[0, kept, 0].astype(np.float32),
            "y": path[0, kept, 1].astype(np.float32),
            "size": np.full(count, size, np.float32),
            "entropy": entropies,
        },
        "pixels": pixels,
        "twins": twins,
        "mi": best,
        "p_value": p_value,
        "moment_frames": numbers[moments],
        "arrays": {
            "tracks": path[:, kept].astype(np.float32),
            "stabilised": motion[:, kept].astype(np.float32),
            "seen": seen[:, kept],
            "mi": pairs,
            "null": found.null,
            "centres": path[0].astype(np.float32),
            "reason": reason,
        },
    }


@dataclass(frozen=True)
class _Found:
    """Twins of M patches: `twins`, `mi`, `p_value` [M, K], `entropies` [M], `pairs` [M, M],
    `null` [...] the MI of surrogates; nats."""

    twins: np.ndarray
    mi: np.ndarray
    p_value: np.ndarray
    entropies: np.ndarray
    pairs: np.ndarray
    null: np.ndarray


def _twins(
    motion: np.ndarray,
    seen: np.ndarray,
    centres: np.ndarray,
    size: int,
    config: MineConfig,
    watch: Stopwatch,
) -> _Found:
    count, top_k = len(centres), config.top_k
    if count < 2:
        return _Found(
            np.full((count, top_k), -1, np.int64),
            np.zeros((count, top_k), np.float32),
            np.ones((count, top_k), np.float32),
            np.full(count, -np.inf, np.float32),
            np.full((count, count), np.nan, np.float32),
            np.zeros((0,), np.float32),
        )
    with watch("information"):
        samples, known = trajectories(motion, seen, config.representation)
        mi, entropies = information(samples, known, config.estimator, config.k)
        allowed = apart(centres, size)
        twins, best = best_partners(mi, allowed, top_k, config.min_mi)
    if config.fdr == 1.0:
        return _Found(twins, best, np.zeros_like(best), entropies, mi, np.zeros(0, np.float32))
    with watch("significance"):
        row, column = np.nonzero(twins >= 0)
        tested = np.sort(np.stack([row, twins[row, column]], axis=1), axis=1)
        tested, inverse = np.unique(tested, axis=0, return_inverse=True)
        p_value, null = np.ones_like(best), np.zeros((0, 0), np.float32)
        if len(tested):
            p, null = pair_p_values(
                samples,
                known,
                mi,
                tested,
                estimator=config.estimator,
                k=config.k,
                surrogates=config.surrogates,
                rng=np.random.default_rng(config.seed),
            )
            possible = int(np.triu(allowed, 1).sum())
            good = false_discovery(p, possible) <= config.fdr
            p_value[row, column] = p[inverse.ravel()]
            passed = np.zeros_like(allowed)
            passed[tuple(tested[good].T)] = True
            twins, best = best_partners(mi, passed | passed.T, top_k, config.min_mi)
            p_of = np.ones(mi.shape, np.float32)
            p_of[tuple(tested.T)] = p_of[tuple(tested.T[::-1])] = p
            p_value = np.where(
                twins >= 0, np.take_along_axis(p_of, np.maximum(twins, 0), axis=1), 1.0
            ).astype(np.float32)
    return _Found(twins, best, p_value, entropies, mi, null.reshape(-1))


def patch_size(height: int, width: int, config: MineConfig) -> int:
    """Side of a patch in pixels of a frame of this size."""
    return max(config.min_patch, round(config.patch_fraction * min(height, width)))


def pick_moments(seen: np.ndarray, keyframes: list[int], count: int) -> np.ndarray:
    """int64 [P, S]: `count` of `keyframes` for each patch, evenly spread over where it is seen.

    `seen` is bool [T, P]. The first is the shot's first frame; where a patch is seen in fewer
    keyframes than `count`, some come twice.
    """
    available = seen[keyframes].sum(axis=0)  # a lost patch stays lost: these are the first ones
    spread = np.linspace(0, 1, count)[None] * (available - 1)[:, None]
    return np.asarray(keyframes)[spread.round().astype(int)]


def crops(
    images: dict[int, np.ndarray], moments: np.ndarray, path: np.ndarray, size: int, side: int
) -> np.ndarray:
    """Square crops of patches along their tracks, shifted to lie inside the image.

    Args:
        images: uint8 [H, W, 3] by time.
        moments: int [P, S] times.
        path: [T, P, 2] centres (x, y).
        size: side of the squares in pixels, at most min(H, W).
        side: what they are resized to.

    Returns:
        uint8 [P, S, 3, side, side].
    """
    found = np.empty((*moments.shape, 3, side, side), np.uint8)
    how = cv2.INTER_AREA if size >= side else cv2.INTER_LINEAR
    for patch, times in enumerate(moments):
        for moment, t in enumerate(times):
            image = images[int(t)]
            corner = np.round(path[t, patch] - size / 2).astype(int)
            x, y = np.clip(corner, 0, (image.shape[1] - size, image.shape[0] - size))
            square = cv2.resize(image[y : y + size, x : x + size], (side, side), interpolation=how)
            found[patch, moment] = square.transpose(2, 0, 1)
    return found


def _flat(array: np.ndarray) -> np.ndarray:
    """[T, P, Q, ...] -> [T, P·Q, ...]."""
    return array.reshape(len(array), -1, *array.shape[3:])
