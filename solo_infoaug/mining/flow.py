"""Dense optical flow between successive frames, and patches that follow it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from solo_infoaug._compile import compiled
from solo_infoaug.mining.medians import LANES, median, sort_columns

# The forward-backward error may be this share of the lengths of both vectors (squared), plus a
# constant: Sundaram, Brox and Keutzer (2010), DOI 10.1007/978-3-642-15549-9_32.
_RELATIVE_ERROR = 0.01
# Points along each side of a patch, whose step is the median of theirs; the share of the points
# that it needs; and the share of its side over which they spread.
_POINTS = 3
_MIN_POINTS = 0.5
_SPREAD = 0.9
# The camera is fitted to vectors on a lattice of this spacing, pixels of the shrunk frame.
_SPACING, _INSET = 18, 9
# The smallest side that DIS accepts.
_MIN_SIDE = 32


@dataclass(frozen=True)
class Flow:
    """The flow between two frames, `forth` and `back`, float32 [h, w, 2], in pixels of the frames.

    `forth` is the forward flow, `back` the backward flow, which starts in the second frame. `size`
    is (height, width) of the frames: the vectors may lie on a coarser grid than their pixels.
    """

    forth: np.ndarray
    back: np.ndarray
    size: tuple[int, int]

    def matches(
        self, max_error: float, overlay: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Points of a lattice, float32 [N, 2], and where they lie in the second frame.

        Points are left out if they leave the frame, if their forward-backward error exceeds
        `max_error` pixels (plus a part of the flow's length), or if they lie on an `overlay`,
        bool [., .].
        """
        (height, width), (rows, columns) = self.size, self.forth.shape[:2]
        unit = np.array([width / columns, height / rows])
        first, every = (np.maximum(np.round(n / unit), 1).astype(int) for n in (_INSET, _SPACING))
        y = np.arange(first[1], rows - first[1] + 1, every[1])
        x = np.arange(first[0], columns - first[0] + 1, every[0])
        agree = _agreeing(self.forth, self.back, self.size, np.float32(max_error), y, x)
        if overlay is not None:
            agree &= ~_at_flow(overlay, self.forth)[np.ix_(y, x)]
        row, column = np.nonzero(agree)
        lattice = np.stack([x[column], y[row]], axis=1)
        points = ((lattice + 0.5) * unit - 0.5).astype(np.float32)
        return points, points + self.forth[lattice[:, 1], lattice[:, 0]]


def flow_maker(preset: str = "fast") -> Callable[[np.ndarray, np.ndarray], Flow]:
    """A function from two grey frames, uint8 [h, w], to the flow between them.

    OpenCV's DIS: Kroeger et al. (2016), DOI 10.1007/978-3-319-46493-0_29. Its presets stop at a
    quarter of the resolution ("medium": at half) and enlarge the result. Here the frames are halved
    first, so that it stops at the same scale, and the result is not enlarged.
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

    forth, back = engine(), engine()  # one each: they hold buffers and run at the same time
    pool = ThreadPoolExecutor(1, thread_name_prefix="flow")

    last: tuple[Any, Any] = (None, None)

    def estimate(before: np.ndarray, after: np.ndarray) -> Flow:
        nonlocal last
        empty: Any = None
        # The second frame of a pair is the first of the next
        one = last[1] if last[0] is before else _halved(before)
        two = _halved(after)
        last = after, two
        if cv2.getNumThreads() == 1:
            vectors = forth.calc(one, two, empty), back.calc(two, one, empty)
        else:
            coming = pool.submit(back.calc, two, one, empty)
            vectors = forth.calc(one, two, empty), coming.result()
        height, width = before.shape[:2]
        grow = (width / one.shape[1], height / one.shape[0], 0.0, 0.0)
        there, home = (cv2.multiply(vector, grow, vector) for vector in vectors)
        return Flow(there, home, (height, width))

    return estimate


def _at_flow(overlay: np.ndarray | None, flow: np.ndarray) -> np.ndarray:
    """bool [h, w]: where the vectors of `flow` [h, w, 2] lie on an overlay."""
    rows, columns = flow.shape[:2]
    if overlay is None:
        return np.zeros((rows, columns), np.bool_)
    mask = overlay.astype(np.uint8)
    fitted = cv2.resize(mask, (columns, rows), interpolation=cv2.INTER_NEAREST)
    return np.asarray(fitted.astype(np.bool_))


def _halved(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    half = (max(width // 2, _MIN_SIDE), max(height // 2, _MIN_SIDE))
    return cv2.resize(frame, half, interpolation=cv2.INTER_AREA)


def follow_patches(
    flows: Sequence[Flow],
    centres: np.ndarray,
    side: float,
    seed: int,
    max_error: float,
    overlay: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Patches that follow the flow from frame `seed` to both ends of a window.

    At each step a patch moves by the median flow of a grid of points in it. Points whose forward
    and backward flow disagree, or that lie on an overlay, are left out. With too few points left,
    the patch is lost.

    Args:
        flows: the T − 1 flows of the window.
        centres: float32 [P, 2], (x, y) in frame `seed`.
        side: side of the patches, pixels.
        seed: number of the frame in the window.
        max_error: see `Flow.matches`.
        overlay: bool mask of the whole frame at any resolution.

    Returns:
        Tracks float32 [T, P, 2] and visibility bool [T, P]. A lost patch stays lost; its track
        rests at its last visible position.
    """
    frames = len(flows) + 1
    path = np.repeat(centres[None].astype(np.float32), frames, axis=0)
    visible = np.zeros((frames, len(centres)), np.bool_)
    visible[seed] = True
    steps = [(t, t + 1, flows[t].forth, flows[t].back) for t in range(seed, frames - 1)]
    steps += [(t, t - 1, flows[t - 1].back, flows[t - 1].forth) for t in range(seed, 0, -1)]
    hidden = _at_flow(overlay, flows[0].forth) if flows else np.zeros((0, 0), np.bool_)
    for t, then, forth, back in steps:
        size = flows[min(t, then)].size
        here, there = (path[t], visible[t]), (path[then], visible[then])
        _step(forth, back, hidden, size, np.float32(max_error), *here, side, *there)
    return path, visible


# In single precision throughout, which is nine times as fast as numba's mixture of both
@compiled(fastmath=True)
def _bilinear(flow, x, y):  # type: ignore[no-untyped-def]
    """The flow at (x, y), float32 and inside of it, in its own pixels."""
    rows, columns = flow.shape[:2]
    left, top = min(np.int32(x), columns - 2), min(np.int32(y), rows - 2)
    u, v = x - np.float32(left), y - np.float32(top)
    one = np.float32(1)
    a, b, c, d = (one - u) * (one - v), u * (one - v), (one - u) * v, u * v
    dx = a * flow[top, left, 0] + b * flow[top, left + 1, 0]
    dy = a * flow[top, left, 1] + b * flow[top, left + 1, 1]
    dx += c * flow[top + 1, left, 0] + d * flow[top + 1, left + 1, 0]
    dy += c * flow[top + 1, left, 1] + d * flow[top + 1, left + 1, 1]
    return dx, dy


@compiled(fastmath=True)
def _agrees(forth, back, row, column, down, across, max_error):  # type: ignore[no-untyped-def]
    """Whether the flow from a pixel ends in the frame, and the backward flow returns to it."""
    rows, columns = forth.shape[:2]
    half = np.float32(0.5)
    dx, dy = forth[row, column, 0], forth[row, column, 1]
    # Where it ends, in the flow's pixels, held inside of them
    end_x, end_y = np.float32(column) + dx * across, np.float32(row) + dy * down
    x = min(max(end_x, np.float32(0)), np.float32(columns - 1))
    y = min(max(end_y, np.float32(0)), np.float32(rows - 1))
    # The frame ends half a pixel beyond its pixels' middles
    if abs(end_x - x) > half or abs(end_y - y) > half:
        return False
    bx, by = _bilinear(back, x, y)
    error = (dx + bx) ** 2 + (dy + by) ** 2
    lengths = dx * dx + dy * dy + bx * bx + by * by
    return error < np.float32(_RELATIVE_ERROR) * lengths + max_error * max_error


@compiled()
def _agreeing(forth, back, size, max_error, ys, xs):  # type: ignore[no-untyped-def]
    """bool [len(ys), len(xs)]: `_agrees` of the flow's pixels in these rows and columns."""
    down = np.float32(forth.shape[0]) / np.float32(size[0])
    across = np.float32(forth.shape[1]) / np.float32(size[1])
    agree = np.empty((len(ys), len(xs)), np.bool_)
    for i in range(len(ys)):
        for j in range(len(xs)):
            agree[i, j] = _agrees(forth, back, ys[i], xs[j], down, across, max_error)
    return agree


@compiled()
def _step(forth, back, hidden, size, max_error, path, visible, side, next_path, next_visible):  # type: ignore[no-untyped-def]
    """One step of all patches that are visible, written to `next_path` and `next_visible`."""
    rows, columns = forth.shape[:2]
    height, width = np.float32(size[0]), np.float32(size[1])
    down, across = np.float32(rows) / height, np.float32(columns) / width
    half, zero, one = np.float32(0.5), np.float32(0), np.float32(1)
    count = _POINTS * _POINTS
    offset = np.empty(_POINTS, np.float32)
    for i in range(_POINTS):
        offset[i] = ((i + 0.5) / _POINTS - 0.5) * side * _SPREAD
    xs, ys = np.empty((count, LANES), np.float32), np.empty((count, LANES), np.float32)
    found = np.empty(LANES, np.int64)
    for first in range(0, len(path), LANES):
        last = min(first + LANES, len(path))
        xs[:], ys[:], found[:] = np.inf, np.inf, 0
        for p in range(first, last):
            if not visible[p]:
                continue
            for i in range(_POINTS):
                y = path[p, 1] + offset[i]
                if y < zero or y > height - one:
                    continue
                y = min(max((y + half) * down - half, zero), np.float32(rows - 1))
                for j in range(_POINTS):
                    x = path[p, 0] + offset[j]
                    if x < zero or x > width - one:
                        continue
                    x = min(max((x + half) * across - half, zero), np.float32(columns - 1))
                    row, column = np.int32(y + half), np.int32(x + half)
                    if hidden[row, column]:
                        continue
                    if _agrees(forth, back, row, column, down, across, max_error):
                        at = found[p - first], p - first
                        xs[at], ys[at] = _bilinear(forth, x, y)
                        found[p - first] += 1
        sort_columns(xs)
        sort_columns(ys)
        for p in range(first, last):
            next_path[p] = path[p]
            if found[p - first] >= _MIN_POINTS * count:
                next_path[p, 0] += median(xs, p - first, found[p - first])
                next_path[p, 1] += median(ys, p - first, found[p - first])
                next_visible[p] = True
