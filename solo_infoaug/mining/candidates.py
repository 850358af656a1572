"""The candidates of a window: patches that carry information of their own, and allowed pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from solo_infoaug.mining.background import Patches
from solo_infoaug.mining.camera import fit_noise, rms
from solo_infoaug.mining.config import MineConfig
from solo_infoaug.mining.depth import DEFAULT_MODEL, depth_along
from solo_infoaug.mining.gate import (
    along_background,
    difference,
    distances,
    drift,
    error_ratio,
    explained_by_own,
    motion_threshold,
    smoothed,
    support,
    surrounded,
)
from solo_infoaug.mining.signals import colour_changes, represent

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
TWIN, LOST, STATIC, BORDER, INSIGNIFICANT, ALONE, NO_BACKGROUND = range(len(REASONS))
# A drift is at most 2; this bound allows any.
_ANY_DRIFT = 2


@dataclass(frozen=True)
class Candidates:
    """`reason` uint8 [P]; `moving` int64 [M], the patches that passed the gate.

    `samples` float64 [M, T, d] and `known` bool [M, T] are the estimator's input; `allowed`
    bool [M, M] says whether the second may be the twin of the first, and `min_mi` [M, M] how
    many nats they need. `depth` int [M]: see `surrounded`. `record` has the thresholds.
    """

    reason: np.ndarray
    moving: np.ndarray
    samples: np.ndarray
    known: np.ndarray
    allowed: np.ndarray
    min_mi: np.ndarray
    depth: np.ndarray
    record: dict[str, Any]


@dataclass(frozen=True)
class _Passed:
    """Of P patches: `passed`, those that move or change their colour; `unclear`, those that only
    seem to; `certain`, those that may be a twin: others may have one. `steps` float64 [P, T − 1, D]
    is the signal, in units of its threshold."""

    passed: np.ndarray
    unclear: np.ndarray
    certain: np.ndarray
    steps: np.ndarray
    record: dict[str, Any]


def find_candidates(patches: Patches, config: MineConfig, signal: str) -> Candidates:
    """Which patches carry information of their own, which pairs may be twins, and their signal,
    "motion" or "colour"."""
    reason = _tracked(patches, config.min_frames - 1)
    tracked, colour = reason == INSIGNIFICANT, signal == "colour"
    found = (_by_colour if colour else _by_motion)(patches, tracked, config)
    reason[tracked & ~found.passed] = STATIC
    reason[found.unclear] = BORDER

    # Patches need neighbours that move in the same way
    chosen = np.flatnonzero(found.passed)
    apart = distances(patches.centres[chosen])
    differences, energy = difference(found.steps[chosen], patches.known[chosen])
    supported = support(apart, patches.size, differences, energy) >= config.min_support
    reason[chosen[~supported]] = ALONE
    chosen, pairs = chosen[supported], np.ix_(supported, supported)
    relative = differences / np.maximum(np.sqrt(energy * energy.T), 1e-12)
    most = config.max_colour_difference if colour else config.max_difference
    alike, apart = (relative < most)[pairs], apart[pairs]
    max_drift = _ANY_DRIFT if colour else config.max_drift
    certain = found.certain[chosen]
    allowed = _allowed(alike & certain, apart, patches, chosen, config.min_distance, max_drift)
    # Nats; more each time the distance doubles from that of touching patches
    min_mi = config.min_mi + config.mi_of_distance * np.log2(np.maximum(apart / patches.size, 1.0))
    samples, known = represent(found.steps[chosen], patches.known[chosen], config.representation)
    depth = surrounded(apart, patches.size, certain)
    return Candidates(reason, chosen, samples, known, allowed, min_mi, depth, found.record)


def _tracked(patches: Patches, min_steps: int) -> np.ndarray:
    """uint8 [P]: `LOST`, `NO_BACKGROUND`, or for now `INSIGNIFICANT`."""
    reason = np.full(len(patches.motion), INSIGNIFICANT, np.uint8)
    reason[patches.known.sum(axis=1) < min_steps] = NO_BACKGROUND
    visible = patches.tracks.visible
    reason[(visible[1:] & visible[:-1]).sum(axis=0) < min_steps] = LOST
    return reason


def _by_motion(patches: Patches, tracked: np.ndarray, config: MineConfig) -> _Passed:
    moving, ratio, threshold = _movers(patches, tracked, config)
    own = explained_by_own(ratio, moving, patches.centres, patches.size, config.max_error_ratio)
    background = patches.background[moving]
    own &= along_background(patches.motion[moving], background) <= config.max_along_background
    passed, unclear, certain = np.zeros((3, len(patches.motion)), bool)
    passed[moving[own]] = unclear[moving[~own]] = True
    certain[moving] = ratio <= config.max_twin_error_ratio
    steps = patches.motion
    if config.depth:
        steps = np.concatenate([steps, _depth_steps(patches, config)], axis=2)
    record = {"least_motion": round(threshold, 4)}
    return _Passed(passed, unclear, certain, steps / (threshold or 1.0), record)


def _movers(
    patches: Patches, tracked: np.ndarray, config: MineConfig
) -> tuple[np.ndarray, np.ndarray, float]:
    """The patches that move, int [M]; their `error_ratio` [M]; and the threshold, source pixels a
    frame."""
    window, motion, known = patches.window, patches.motion, patches.known
    speed, scale = rms(smoothed(motion, known), known), window.scale
    threshold = motion_threshold(
        speed[tracked],
        fit_noise(patches.tracks.camera),
        config.min_motion * min(window.size),
        config.motion_over_noise,
    )
    moving = np.flatnonzero(tracked & (speed >= threshold))
    ratio = error_ratio(
        window.grey,
        patches.tracks.path[:, moving] / scale,
        motion[moving] / scale,
        known[moving],
        patches.size / float(scale.mean()),
    )
    return moving, ratio, threshold


def _depth_steps(patches: Patches, config: MineConfig) -> np.ndarray:
    """float64 [P, T − 1, 1]: how depth changes along the tracks, source pixels a frame."""
    window, tracks = patches.window, patches.tracks
    model = DEFAULT_MODEL if config.depth == "default" else config.depth
    at = tracks.path / window.scale
    depth = depth_along(window.small, at, tracks.visible, model, config.device)
    steps = np.diff(depth, axis=0).T[..., None] * window.scale.mean()
    return np.asarray(steps * patches.known[..., None])


def _by_colour(patches: Patches, tracked: np.ndarray, config: MineConfig) -> _Passed:
    window, known = patches.window, patches.known
    at, side = patches.tracks.path / window.scale, patches.size / window.scale.mean()
    colour = colour_changes(window.small, at, known, side)
    change = rms(smoothed(colour, known), known)
    threshold = motion_threshold(
        change[tracked], np.inf, config.min_colour, config.motion_over_noise
    )
    passed = tracked & (change >= threshold)
    nothing, record = np.zeros(len(passed), bool), {"least_colour": round(threshold, 5)}
    return _Passed(passed, nothing, ~nothing, colour / (threshold or 1.0), record)


def _allowed(
    allowed: np.ndarray,
    apart: np.ndarray,
    patches: Patches,
    chosen: np.ndarray,
    min_distance: float,
    max_drift: float,
) -> np.ndarray:
    """bool [M, M]: those of the `allowed` pairs that do not overlap and do not drift apart.

    `apart` [M, M] are the distances of the `chosen` patches [M].
    """
    if min_distance:
        allowed = allowed & (apart >= min_distance * patches.size - 0.5)
    if max_drift < _ANY_DRIFT:
        pairs = np.argwhere(np.triu(allowed | allowed.T, 1))
        far = drift(patches.motion[chosen], patches.known[chosen], pairs) >= max_drift
        allowed[tuple(pairs[far].T)] = allowed[tuple(pairs[far].T[::-1])] = False
    return allowed
