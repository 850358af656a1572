"""One window: from frames to patches and their twins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from solo_infoaug import _jpeg
from solo_infoaug.mining.camera import CameraStep, camera_steps, own_motion, remove_parallax, rms
from solo_infoaug.mining.config import MineConfig
from solo_infoaug.mining.depth import DEFAULT_MODEL, depth_along
from solo_infoaug.mining.gate import (
    difference,
    distances,
    drift,
    error_ratio,
    explained_by_own,
    motion_threshold,
    smoothed,
    support,
)
from solo_infoaug.mining.signals import colour_changes, represent
from solo_infoaug.mining.trackers import Tracker, Tracks
from solo_infoaug.mining.twins import Partners, find_partners
from solo_infoaug.mining.windows import Window

# The result for each patch of the grid; the number is stored. A patch whose pixels follow the
# background as well as its own track is on the outline of an object or in a flat region.
REASONS = (
    "twin",
    "lost",
    "static",
    "border or flat",
    "not significant",
    "alone",
    "no background",
)
# A drift is at most 2; this bound allows any.
_ANY_DRIFT = 2
_TWIN, _LOST, _STATIC, _BORDER, _INSIGNIFICANT, _ALONE, _NO_BACKGROUND = range(len(REASONS))


@dataclass(frozen=True)
class Stored:
    """What a dictionary keeps of a window: P patches at S moments, and K twins of each.

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


@dataclass(frozen=True)
class Mined:
    """How many patches of a window had each result, and what is stored: None without a twin."""

    reasons: dict[str, int]
    stored: Stored | None


@dataclass(frozen=True)
class _Gated:
    """`reason` uint8 [P]; `moving` int64 [M], the patches that passed the gate.

    `samples` float64 [M, T, d] and `known` bool [M, T] are the estimator's input; `allowed`
    bool [M, M] says whether the second may be the twin of the first, and `min_mi` [M, M] how
    many nats they need.
    """

    reason: np.ndarray
    moving: np.ndarray
    samples: np.ndarray
    known: np.ndarray
    allowed: np.ndarray
    min_mi: np.ndarray
    record: dict[str, Any]


def follow(window: Window, tracker: Tracker, config: MineConfig) -> Tracks | None:
    """The tracks of a window's patches; None if the frames are too small for two of them."""
    size = patch_size(*window.size, config)
    if size > min(window.size):
        return None
    tracks = tracker.follow(window, size, config.grid_step, config.camera)
    return tracks if tracks.path.shape[1] >= 2 else None


def mine_window(window: Window, tracks: Tracks | None, config: MineConfig) -> Mined:
    """Mine one window: tracks → background → gate → partners → crops.

    Units are source pixels, of the active picture until patches are stored.
    """
    if tracks is None:
        return Mined({}, None)
    size = patch_size(*window.size, config)
    motion, known, record = _without_background(window, tracks, config)
    gated = _gate(window, tracks, motion, known, size, config)
    partners = find_partners(gated.samples, gated.known, gated.allowed, config, gated.min_mi)
    reason = gated.reason
    reason[gated.moving[partners.twins[:, 0] >= 0]] = _TWIN
    counts = {name: int((reason == number).sum()) for number, name in enumerate(REASONS)}
    if not counts["twin"]:
        return Mined(counts, None)
    record = {**record, **gated.record, "patch": size, "reasons": counts}
    if window.within is not None:
        record["picture"] = str(window.within)
    if tracks.overlay is not None:
        record["overlay"] = round(float(tracks.overlay.mean()), 4)
    return Mined(counts, _store(window, tracks, motion, gated, partners, record, config))


def _without_background(
    window: Window, tracks: Tracks, config: MineConfig
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """The patches' own motion [P, T − 1, 2] and where it is known, and a record of the camera."""
    motion, known = own_motion(tracks.path, tracks.visible, tracks.camera)
    tracked = known.sum(axis=1) >= config.min_frames - 1
    modes = 0
    steps = camera_steps(tracks.camera, window.size)
    # If the camera moves less than what counts as motion, so does its parallax
    moves = float(np.sqrt(np.nanmean((steps**2).sum(axis=2)))) if np.isfinite(steps).any() else 0.0
    if config.parallax and tracked.any() and moves >= config.min_motion * min(window.size):
        # Half of the least motion that counts: slower parallax does no harm
        noise = max(_fit_noise(tracks.camera), 0.5 * config.min_motion * min(window.size))
        centres = tracks.path[window.seed]
        motion[tracked], modes = remove_parallax(
            motion[tracked],
            known[tracked],
            centres[tracked],
            window.size,
            noise,
            steps.mean(axis=1),
            config.parallax,
        )
    fitted = [step for step in tracks.camera if step is not None]
    camera = {
        "model": config.camera,
        "pairs": len(tracks.camera),
        "fitted": len(fitted),
        "inliers": round(float(np.mean([step.share for step in fitted])), 4) if fitted else 0.0,
        "rms_px": round(_fit_noise(tracks.camera), 4),
        "parallax": modes,
    }
    return motion, known, {"camera": camera}


def _fit_noise(camera: list[CameraStep | None]) -> float:
    """RMS residual of the camera's fit over a window, pixels a frame."""
    noise = [step.noise for step in camera if step is not None]
    return float(np.sqrt(np.mean(np.square(noise)))) if noise else 0.0


def _gate(
    window: Window,
    tracks: Tracks,
    motion: np.ndarray,
    known: np.ndarray,
    size: int,
    config: MineConfig,
) -> _Gated:
    """Find the patches that carry information of their own, and the estimator's input from them."""
    min_steps = config.min_frames - 1
    reason = np.full(len(motion), _INSIGNIFICANT, np.uint8)
    reason[known.sum(axis=1) < min_steps] = _NO_BACKGROUND
    both = tracks.visible[1:] & tracks.visible[:-1]
    reason[both.sum(axis=0) < min_steps] = _LOST
    tracked = reason == _INSIGNIFICANT

    # For each signal: which patches pass its gate, and its steps in units of its threshold. A patch
    # that is not `certain` has twins and is the twin of none
    passed, certain = np.zeros(len(motion), bool), np.ones(len(motion), bool)
    steps: list[np.ndarray] = []
    record: dict[str, Any] = {}
    if config.signal != "colour":
        moving, ratio, threshold = _movers(window, tracks, motion, known, tracked, size, config)
        own = explained_by_own(
            ratio, moving, tracks.path[window.seed], size, config.max_error_ratio
        )
        reason[moving[~own]] = _BORDER
        certain[moving] = ratio <= config.max_twin_error_ratio
        passed[moving[own]] = True
        steps.append(motion / (threshold or 1.0))
        record["least_motion"] = round(threshold, 4)
        if config.depth:
            steps.append(_depth_steps(window, tracks, known, config) / (threshold or 1.0))
    if config.signal != "motion":
        colour = colour_changes(
            window.small, tracks.path / window.scale, known, size / window.scale.mean()
        )
        change = rms(smoothed(colour, known), known)
        threshold = motion_threshold(
            change[tracked], np.inf, config.min_colour, config.motion_over_noise
        )
        passed |= tracked & (change >= threshold)
        steps.append(colour / (threshold or 1.0))
        record["least_colour"] = round(threshold, 5)
    reason[tracked & ~passed & (reason == _INSIGNIFICANT)] = _STATIC
    reason[passed] = _INSIGNIFICANT

    # Patches need neighbours that move in the same way
    chosen, signal = np.flatnonzero(passed), np.concatenate(steps, axis=2)
    centres = tracks.path[window.seed]
    differences, energy = difference(signal[chosen], known[chosen])
    supported = support(centres[chosen], size, differences, energy) >= config.min_support
    reason[chosen[~supported]] = _ALONE
    chosen = chosen[supported]
    relative = differences / np.maximum(np.sqrt(energy * energy.T), 1e-12)
    allowed = relative[np.ix_(supported, supported)] < config.max_difference
    allowed &= certain[chosen]
    apart = distances(centres[chosen])
    if config.min_distance:
        allowed &= apart >= config.min_distance * size - 0.5
    if config.signal == "motion" and config.max_drift < _ANY_DRIFT:
        pairs = np.argwhere(np.triu(allowed | allowed.T, 1))
        far = drift(motion[chosen], known[chosen], pairs) >= config.max_drift
        allowed[tuple(pairs[far].T)] = allowed[tuple(pairs[far].T[::-1])] = False
    # Nats; more each time the distance doubles from that of touching patches
    min_mi = config.min_mi + config.mi_of_distance * np.log2(np.maximum(apart / size, 1.0))
    samples, there = represent(signal[chosen], known[chosen], config.representation)
    return _Gated(reason, chosen, samples, there, allowed, min_mi, record)


def _movers(
    window: Window,
    tracks: Tracks,
    motion: np.ndarray,
    known: np.ndarray,
    tracked: np.ndarray,
    size: int,
    config: MineConfig,
) -> tuple[np.ndarray, np.ndarray, float]:
    """The patches that move, int [M]; their `error_ratio` [M]; and the threshold, source pixels a
    frame."""
    speed, scale = rms(smoothed(motion, known), known), window.scale
    threshold = motion_threshold(
        speed[tracked],
        _fit_noise(tracks.camera),
        config.min_motion * min(window.size),
        config.motion_over_noise,
    )
    moving = np.flatnonzero(tracked & (speed >= threshold))
    ratio = error_ratio(
        window.grey,
        tracks.path[:, moving] / scale,
        motion[moving] / scale,
        known[moving],
        size / float(scale.mean()),
    )
    return moving, ratio, threshold


def _depth_steps(
    window: Window, tracks: Tracks, known: np.ndarray, config: MineConfig
) -> np.ndarray:
    """float64 [P, T − 1, 1]: how depth changes along the tracks, source pixels a frame."""
    model = DEFAULT_MODEL if config.depth == "default" else config.depth
    at = tracks.path / window.scale
    depth = depth_along(window.small, at, tracks.visible, model, config.device)
    steps = np.diff(depth, axis=0).T[..., None] * window.scale.mean()
    return np.asarray(steps * known[..., None])


def _store(
    window: Window,
    tracks: Tracks,
    motion: np.ndarray,
    gated: _Gated,
    partners: Partners,
    record: dict[str, Any],
    config: MineConfig,
) -> Stored:
    """Collect the patches with a twin, their twins, and some of the others for the random arm."""
    reason, seed, size = gated.reason, window.seed, record["patch"]
    # Some patches are twins of others and have none themselves: their partners are not certain
    paired = reason == _TWIN
    paired[gated.moving[partners.twins[partners.twins >= 0]]] = True
    others = np.flatnonzero(~paired & (reason != _LOST))
    rng = np.random.default_rng([config.seed, window.numbers[seed]])
    others = rng.permutation(others)[: config.extra_patches]
    kept = np.sort(np.concatenate([np.flatnonzero(paired), others]))
    # `moving` numbers all patches; stored numbers count only the patches that are kept
    place = np.full(len(reason), -1)
    place[kept] = np.arange(len(kept))
    rows, count = place[gated.moving], len(kept)
    stored = rows >= 0
    twins = np.full((count, config.top_k), -1, np.int64)
    found = partners.twins
    twins[rows[stored]] = np.where(found >= 0, rows[np.maximum(found, 0)], -1)[stored]
    mi, p_value = np.zeros((2, count, config.top_k), np.float32)
    mi[rows[stored]], p_value[rows[stored]] = partners.mi[stored], partners.p_value[stored]
    p_value[twins < 0] = 1.0
    entropies = np.full(count, -np.inf, np.float32)
    entropies[rows[stored]] = partners.entropies[stored]
    pairs = np.full((count, count), np.nan, np.float32)
    pairs[np.ix_(rows[stored], rows[stored])] = partners.pairs[np.ix_(stored, stored)]
    moments = pick_moments(
        tracks.visible[:, kept], sorted(window.keyframes), seed, config.temporal_crops
    )
    # From here on, units are pixels of the whole frame
    path, numbers = tracks.path[:, kept] + window.corner, np.asarray(window.numbers, np.int32)
    return Stored(
        record={
            "shot": window.shot,
            "frame": window.numbers[seed],
            "first": window.numbers[0],
            "frames": len(window),
            "height": window.frame_size[0],
            "width": window.frame_size[1],
            "context": config.context,
            **record,
        },
        image=window.keyframes[seed],
        patches={
            "frame": np.full(count, window.numbers[seed], np.int32),
            "x": path[seed, :, 0].astype(np.float32),
            "y": path[seed, :, 1].astype(np.float32),
            "size": np.full(count, size, np.float32),
            "entropy": entropies,
        },
        pixels=_pixels(
            {t: window.picture.of(image) for t, image in window.keyframes.items()},
            moments,
            tracks.path[:, kept],
            size,
            config,
        ),
        twins=twins,
        mi=mi,
        p_value=p_value,
        moment_frames=numbers[moments],
        arrays={
            "tracks": path.astype(np.float32),
            "numbers": numbers,
            "visible": tracks.visible[:, kept],
            "motion": motion[kept].astype(np.float32),
            "mi": pairs,
            "null": partners.null,
            "centres": (tracks.path[seed] + window.corner).astype(np.float32),
            "reason": reason,
        },
    )


def patch_size(height: int, width: int, config: MineConfig) -> int:
    """Side of a patch in pixels of a frame of this size."""
    return max(config.min_patch, round(config.patch_fraction * min(height, width)))


def pick_moments(visible: np.ndarray, keyframes: list[int], seed: int, count: int) -> np.ndarray:
    """int64 [P, S]: `count` of `keyframes` for each patch, spread over where it is visible.

    `visible` is bool [T, P]. The first is the seed frame. If a patch is visible in fewer keyframes
    than `count`, some occur twice.
    """
    patterns, which = np.unique(visible[keyframes].T, axis=0, return_inverse=True)
    found = np.empty((len(patterns), count), np.int64)
    for row, there in zip(found, patterns, strict=True):
        rest = [t for t, seen in zip(keyframes, there, strict=True) if seen and t != seed]
        spread = np.linspace(0, max(len(rest) - 1, 0), max(count - 1, 0)).round().astype(int)
        row[:] = [seed, *(rest[i] if rest else seed for i in spread)]
    return found[which]


def _pixels(
    images: dict[int, np.ndarray],
    moments: np.ndarray,
    path: np.ndarray,
    size: int,
    config: MineConfig,
) -> np.ndarray | list[list[bytes]]:
    """The `crops` in the form that a dictionary stores."""
    if not config.jpeg:
        return crops(images, moments, path, size, config.crop_size, config.context)
    # One by one, because a window's raw crops of 224 pixels can take a gigabyte
    cut = _squares(images, moments, path, size, config.crop_size, config.context)
    return [[_jpeg.encode(next(cut)) for _ in row] for row in moments]


def crops(
    images: dict[int, np.ndarray],
    moments: np.ndarray,
    path: np.ndarray,
    size: int,
    side: int,
    context: float = 1.0,
) -> np.ndarray:
    """Square crops of patches along their tracks.

    A patch is shifted to lie inside the image. Its context beyond the border is reflected, so that
    the patch is always in the middle of its crop. If crops were shifted instead, neighbours at the
    border would have identical crops.

    Args:
        images: uint8 [H, W, 3] by time.
        moments: int [P, S] times.
        path: [T, P, 2] centres (x, y).
        size: side of the patches in pixels, at most min(H, W).
        side: side of the resized crops, pixels.
        context: side of a crop before resizing, in sides of a patch.

    Returns:
        uint8 [P, S, 3, side, side].
    """
    found = np.empty((*moments.shape, 3, side, side), np.uint8)
    cut = _squares(images, moments, path, size, side, context)
    for place, square in zip(np.ndindex(moments.shape), cut, strict=True):
        found[place] = square.transpose(2, 0, 1)
    return found


def _squares(
    images: dict[int, np.ndarray],
    moments: np.ndarray,
    path: np.ndarray,
    size: int,
    side: int,
    context: float,
) -> Iterator[np.ndarray]:
    """uint8 [side, side, 3] of each patch and moment, in the order of `moments`."""
    height, width = next(iter(images.values())).shape[:2]
    centres = path[moments, np.arange(len(moments))[:, None]]
    corners = np.clip(np.round(centres - size / 2).astype(int), 0, (width - size, height - size))
    span = round(context * size)
    corners -= (span - size) // 2
    for t, (x, y) in zip(moments.ravel().tolist(), corners.reshape(-1, 2).tolist(), strict=True):
        yield crop(images[t], x, y, span, side)


def crop(image: np.ndarray, left: int, top: int, span: int, side: int) -> np.ndarray:
    """A square of an image, resized; beyond the border the image is reflected.

    Args:
        image: uint8 [H, W, 3].
        left: left edge of the square, pixels; it may be outside the image.
        top: top edge of the square, pixels; it may be outside the image.
        span: side of the square, pixels.
        side: side of the resized square, pixels.

    Returns:
        uint8 [side, side, 3].
    """
    height, width = image.shape[:2]
    if 0 <= top <= height - span and 0 <= left <= width - span:
        square = image[top : top + span, left : left + span]
    else:
        square = image[np.ix_(_reflected(top, span, height), _reflected(left, span, width))]
    # When shrinking by less than 2, bilinear skips hardly any pixel and takes a sixth of the time
    how = cv2.INTER_AREA if span >= 2 * side else cv2.INTER_LINEAR
    return cv2.resize(square, (side, side), interpolation=how)


def _reflected(first: int, count: int, length: int) -> np.ndarray:
    """int64 [count]: places from `first` on, reflected into [0, length)."""
    last = length - 1
    there = np.abs(np.arange(first, first + count)) % max(2 * last, 1)
    return np.minimum(there, 2 * last - there)
