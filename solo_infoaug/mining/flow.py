"""Dense optical flow between successive frames, and patches that follow it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numba import njit

PRESETS = ("ultrafast", "fast", "medium")
# Forth and back, the flow may miss by so much of the lengths of both vectors (squared), beside a
# constant: Sundaram, Brox and Keutzer (2010), DOI 10.1007/978-3-642-15549-9_32.
_RELATIVE_ERROR = 0.01
# A patch has so many points along each side, and its step is the median of theirs; it is lost with
# fewer than this share of them. They spread over so much of its side.
_POINTS = 4
_MIN_POINTS = 0.5
_SPREAD = 0.9
# The camera is fitted to vectors on a lattice of this spacing, pixels of the shrunk frame.
_SPACING, _INSET = 14, 8


@dataclass(frozen=True)
class Flow:
    """The flow between two frames: `forth` and `back` float32 [h, w, 2], pixels of these frames.

    `back` starts in the second frame.
    """

    forth: np.ndarray
    back: np.ndarray

    def matches(self, max_error: float) -> tuple[np.ndarray, np.ndarray]:
        """Points of a lattice, float32 [N, 2], and where they lie in the second frame.

        Those whose way forth and back misses its start by more than `max_error` pixels (and a part
        of its length) are left out.
        """
        height, width = self.forth.shape[:2]
        y, x = np.mgrid[_INSET : height - _INSET : _SPACING, _INSET : width - _INSET : _SPACING]
        points = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)
        ends = points + self.forth[y.ravel(), x.ravel()]
        kept = _consistent(self.forth, self.back, points, max_error)
        return points[kept], ends[kept]


def flow_maker(preset: str = "fast") -> Callable[[np.ndarray, np.ndarray], Flow]:
    """A function from two grey frames, uint8 [h, w], to the flow between them.

    OpenCV's DIS: Kroeger et al. (2016), DOI 10.1007/978-3-319-46493-0_29.
    """
    engine: Any = cv2.DISOpticalFlow.create(
        {
            "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
            "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
            "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
        }[preset]
    )

    if preset == "fast":
        # One step of variational refinement finds as many twins as five, in two thirds of the time
        engine.setVariationalRefinementIterations(1)

    def estimate(before: np.ndarray, after: np.ndarray) -> Flow:
        empty: Any = None
        return Flow(engine.calc(before, after, empty), engine.calc(after, before, empty))

    return estimate


def follow_patches(
    flows: Sequence[Flow], centres: np.ndarray, side: float, seed: int, max_error: float
) -> tuple[np.ndarray, np.ndarray]:
    """Patches that follow the flow from frame `seed` to both ends of a window.

    At each step a patch moves by the median flow of the points of a grid in it, leaving out those
    whose way forth and back disagrees; it is lost where too few are left.

    Args:
        flows: T − 1 of them.
        centres: float32 [P, 2], (x, y) in frame `seed`.
        side: of the patches, pixels.
        seed: which frame.
        max_error: see `Flow.matches`.

    Returns:
        Tracks float32 [T, P, 2] and visibility bool [T, P]. A lost patch stays lost; its track
        rests where it was last seen.
    """
    frames = len(flows) + 1
    path = np.repeat(centres[None].astype(np.float32), frames, axis=0)
    visible = np.zeros((frames, len(centres)), np.bool_)
    visible[seed] = True
    for t in range(seed, frames - 1):
        forth, back = flows[t].forth, flows[t].back
        _step(forth, back, path[t], visible[t], side, max_error, path[t + 1], visible[t + 1])
    for t in range(seed, 0, -1):
        forth, back = flows[t - 1].back, flows[t - 1].forth
        _step(forth, back, path[t], visible[t], side, max_error, path[t - 1], visible[t - 1])
    return path, visible


@njit(nogil=True, cache=True)
def _bilinear(flow, x, y):  # type: ignore[no-untyped-def]
    """The flow at (x, y), held inside of the frame."""
    height, width = flow.shape[:2]
    x = min(max(x, np.float32(0)), np.float32(width - 1))
    y = min(max(y, np.float32(0)), np.float32(height - 1))
    left, top = min(int(x), width - 2), min(int(y), height - 2)
    u, v = x - left, y - top
    a, b = (1 - u) * (1 - v), u * (1 - v)
    c, d = (1 - u) * v, u * v
    one, two = flow[top, left], flow[top, left + 1]
    three, four = flow[top + 1, left], flow[top + 1, left + 1]
    return (
        a * one[0] + b * two[0] + c * three[0] + d * four[0],
        a * one[1] + b * two[1] + c * three[1] + d * four[1],
    )


@njit(nogil=True, cache=True)
def _agrees(forth, back, x, y, max_error):  # type: ignore[no-untyped-def]
    """Whether the flow from (x, y) ends in the frame and comes back, and the flow."""
    height, width = forth.shape[:2]
    dx, dy = _bilinear(forth, x, y)
    ex, ey = x + dx, y + dy
    if ex < 0 or ey < 0 or ex > width - 1 or ey > height - 1:
        return False, dx, dy
    bx, by = _bilinear(back, ex, ey)
    error = (dx + bx) ** 2 + (dy + by) ** 2
    limit = _RELATIVE_ERROR * (dx * dx + dy * dy + bx * bx + by * by) + max_error**2
    return error < limit, dx, dy


@njit(nogil=True, cache=True)
def _consistent(forth, back, points, max_error):  # type: ignore[no-untyped-def]
    kept = np.zeros(len(points), np.bool_)
    for i in range(len(points)):
        kept[i] = _agrees(forth, back, points[i, 0], points[i, 1], max_error)[0]
    return kept


@njit(nogil=True, cache=True)
def _step(forth, back, path, visible, side, max_error, next_path, next_visible):  # type: ignore[no-untyped-def]
    """One step of all patches that are visible, written to `next_path` and `next_visible`."""
    height, width = forth.shape[:2]
    count = _POINTS * _POINTS
    xs, ys = np.empty(count, np.float32), np.empty(count, np.float32)
    for p in range(len(path)):
        next_path[p] = path[p]
        if not visible[p]:
            continue
        found = 0
        for i in range(_POINTS):
            y = path[p, 1] + np.float32(((i + 0.5) / _POINTS - 0.5) * side * _SPREAD)
            for j in range(_POINTS):
                x = path[p, 0] + np.float32(((j + 0.5) / _POINTS - 0.5) * side * _SPREAD)
                if x < 0 or y < 0 or x > width - 1 or y > height - 1:
                    continue
                good, dx, dy = _agrees(forth, back, x, y, max_error)
                if good:
                    xs[found], ys[found] = dx, dy
                    found += 1
        if found < _MIN_POINTS * count:
            continue
        next_path[p, 0] = path[p, 0] + np.median(xs[:found])
        next_path[p, 1] = path[p, 1] + np.median(ys[:found])
        next_visible[p] = True
