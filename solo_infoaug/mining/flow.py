"""Dense optical flow between successive frames, and patches that follow it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
# DIS takes no smaller frames.
_MIN_SIDE = 32


@dataclass(frozen=True)
class Flow:
    """The flow between two frames, `forth` and `back`, float32 [h, w, 2], in pixels of the frames.

    `back` starts in the second frame. `size` is (height, width) of the frames: the vectors may lie
    on a coarser grid than their pixels.
    """

    forth: np.ndarray
    back: np.ndarray
    size: tuple[int, int]

    def matches(self, max_error: float) -> tuple[np.ndarray, np.ndarray]:
        """Points of a lattice, float32 [N, 2], and where they lie in the second frame.

        Those whose way forth and back misses its start by more than `max_error` pixels (and a part
        of its length) are left out.
        """
        height, width = self.size
        y, x = np.mgrid[_INSET : height - _INSET : _SPACING, _INSET : width - _INSET : _SPACING]
        points = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)
        kept, ends = _follow(self.forth, self.back, self.size, points, max_error)
        return points[kept], ends[kept]


def flow_maker(preset: str = "fast") -> Callable[[np.ndarray, np.ndarray], Flow]:
    """A function from two grey frames, uint8 [h, w], to the flow between them.

    OpenCV's DIS: Kroeger et al. (2016), DOI 10.1007/978-3-319-46493-0_29. Its presets stop at a
    quarter of the resolution ("medium": at half) and enlarge the result. Here frames are halved
    before, so that it stops at the same scale, and the result is not enlarged.
    """
    number, finest, refinements = {
        "ultrafast": (cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST, 1, 0),
        # One step of variational refinement finds as many twins as five, in less time
        "fast": (cv2.DISOPTICAL_FLOW_PRESET_FAST, 1, 1),
        "medium": (cv2.DISOPTICAL_FLOW_PRESET_MEDIUM, 0, 5),
    }[preset]

    def engine() -> Any:
        made = cv2.DISOpticalFlow.create(number)
        made.setFinestScale(finest)
        made.setVariationalRefinementIterations(refinements)
        return made

    forth, back = engine(), engine()  # one each: they hold buffers, and run side by side
    pool = ThreadPoolExecutor(1, thread_name_prefix="flow")

    def estimate(before: np.ndarray, after: np.ndarray) -> Flow:
        empty: Any = None
        one, two = _halved(before), _halved(after)
        if cv2.getNumThreads() == 1:
            vectors = forth.calc(one, two, empty), back.calc(two, one, empty)
        else:
            coming = pool.submit(back.calc, two, one, empty)
            vectors = forth.calc(one, two, empty), coming.result()
        height, width = before.shape[:2]
        grow = np.array([width / one.shape[1], height / one.shape[0]], np.float32)
        return Flow(vectors[0] * grow, vectors[1] * grow, (height, width))

    return estimate


def _halved(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    half = (max(width // 2, _MIN_SIDE), max(height // 2, _MIN_SIDE))
    return cv2.resize(frame, half, interpolation=cv2.INTER_AREA)


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
        forth, back, size = flows[t].forth, flows[t].back, flows[t].size
        _step(forth, back, size, path[t], visible[t], side, max_error, path[t + 1], visible[t + 1])
    for t in range(seed, 0, -1):
        forth, back, size = flows[t - 1].back, flows[t - 1].forth, flows[t - 1].size
        _step(forth, back, size, path[t], visible[t], side, max_error, path[t - 1], visible[t - 1])
    return path, visible


@njit(nogil=True, cache=True)
def _bilinear(flow, size, x, y):  # type: ignore[no-untyped-def]
    """The flow at (x, y), held inside of the frame."""
    height, width = flow.shape[:2]
    half = np.float32(0.5)
    x = (x + half) * np.float32(width / size[1]) - half
    y = (y + half) * np.float32(height / size[0]) - half
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
def _agrees(forth, back, size, x, y, max_error):  # type: ignore[no-untyped-def]
    """Whether the flow from (x, y) ends in the frame and comes back, and the flow."""
    dx, dy = _bilinear(forth, size, x, y)
    ex, ey = x + dx, y + dy
    if ex < 0 or ey < 0 or ex > size[1] - 1 or ey > size[0] - 1:
        return False, dx, dy
    bx, by = _bilinear(back, size, ex, ey)
    error = (dx + bx) ** 2 + (dy + by) ** 2
    limit = _RELATIVE_ERROR * (dx * dx + dy * dy + bx * bx + by * by) + max_error**2
    return error < limit, dx, dy


@njit(nogil=True, cache=True)
def _follow(forth, back, size, points, max_error):  # type: ignore[no-untyped-def]
    """Which points the way forth and back agrees on, and where they go."""
    kept, ends = np.zeros(len(points), np.bool_), points.copy()
    for i in range(len(points)):
        kept[i], dx, dy = _agrees(forth, back, size, points[i, 0], points[i, 1], max_error)
        ends[i, 0] += dx
        ends[i, 1] += dy
    return kept, ends


@njit(nogil=True, cache=True)
def _middle(values):  # type: ignore[no-untyped-def]
    """The median, by insertion: they are few. Sorts in place."""
    for i in range(1, len(values)):
        value, j = values[i], i
        while j > 0 and values[j - 1] > value:
            values[j] = values[j - 1]
            j -= 1
        values[j] = value
    half = len(values) // 2
    return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2


@njit(nogil=True, cache=True)
def _step(forth, back, size, path, visible, side, max_error, next_path, next_visible):  # type: ignore[no-untyped-def]
    """One step of all patches that are visible, written to `next_path` and `next_visible`."""
    height, width = size
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
                good, dx, dy = _agrees(forth, back, size, x, y, max_error)
                if good:
                    xs[found], ys[found] = dx, dy
                    found += 1
        if found < _MIN_POINTS * count:
            continue
        next_path[p, 0] = path[p, 0] + _middle(xs[:found])
        next_path[p, 1] = path[p, 1] + _middle(ys[:found])
        next_visible[p] = True
