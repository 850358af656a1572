"""Overlays: logos, clocks and subtitles, which rest in the frame while the scene moves behind them.

An overlay is not part of the scene. While the camera moves, it seems to move against the
background, all of it in the same way, and would be full of twins.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import cv2
import numpy as np

# Number of frames of a window that are compared, and of those in a row in which an edge must rest.
_FRAMES, _RUN = 8, 5
# Minimum gradient of an edge, grey levels per pixel of the halved frame. A resting edge changes by
# at most this many levels plus this share of its gradient: a sixteenth of a pixel.
_EDGE, _LEVELS, _SHARE = 14.0, 2.0, 0.06
# The scene shows behind transparent overlays and between thin letters. There, the sum of an edge's
# gradients has at least this share of their lengths: over all frames, or over the first or the last
# ones. The scene itself reaches .93.
_STEADY, _STEADY_RUN = 0.98, 0.99
# The scene moves if this share of the edges do not rest, and if most do not rest in this share of
# the cells along the border of a 4×4 grid.
_MOVING, _MOVING_CELLS, _CELLS, _MIN_EDGES = 0.8, 0.8, 4, 20
# Minimum number of an overlay's resting pixels, minimum share of edges in either direction among
# them, minimum share of the pixels around them, and maximum share of the frame.
_MIN_PIXELS, _MIN_DIRECTION, _DENSITY, _MOST = 24, 0.15, 0.15, 0.15
# Narrower ones (pixels) are posts at the border that slide along themselves.
_MIN_SIDE = 8
# Resting pixels this near to each other belong together; the mask reaches this much further.
_NEAR, _AROUND = 7, 2
# A patch is on an overlay if this share of its square is.
_TOUCHED = 0.05


def find_overlay(frames: Sequence[np.ndarray]) -> np.ndarray | None:
    """Which pixels of a window's grey frames, uint8 [h, w], belong to an overlay.

    Overlays can only be told while the scene moves all around. None if it does not, or if nothing
    rests.

    Returns:
        bool [h / 2, w / 2], of the halved frames, or None.
    """
    if len(frames) < _RUN:
        return None
    chosen = np.unique(np.linspace(0, len(frames) - 1, _FRAMES).round().astype(int))
    height, width = frames[0].shape
    half = (max(1, width // 2), max(1, height // 2))
    # Even sides make halving exact and several times as fast
    even = np.s_[: max(1, height - height % 2), : max(1, width - width % 2)]
    small = [cv2.resize(frames[t][even], half, interpolation=cv2.INTER_AREA) for t in chosen]
    slopes = [_gradient(image) for image in small]
    strengths = [cv2.magnitude(*slope) for slope in slopes]
    resting, edges, moving = _resting(small, strengths)
    if not _scene_moves(moving, edges):
        return None
    resting |= _steady(slopes, strengths)
    return _components(resting, small)


def covered(
    overlay: np.ndarray | None, size: tuple[int, int], points: np.ndarray, side: float = 0.0
) -> np.ndarray:
    """bool [...]: which points [..., 2] lie on an overlay, or squares of `side` around them do.

    `size` is (height, width) of the frames that the points are in. A square is on an overlay if a
    twentieth of it is.
    """
    if overlay is None:
        return np.zeros(points.shape[:-1], bool)
    height, width = overlay.shape
    unit = np.array([width / size[1], height / size[0]])
    limit = np.array([width, height])
    first = np.clip(np.floor((points - side / 2) * unit).astype(int), 0, limit - 1)
    last = np.clip(np.ceil((points + side / 2) * unit).astype(int), first + 1, limit)
    sums = cv2.integral(overlay.astype(np.uint8))
    (x0, y0), (x1, y1) = np.moveaxis(first, -1, 0), np.moveaxis(last, -1, 0)
    inside = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    return np.asarray(inside > _TOUCHED * (x1 - x0) * (y1 - y0))


def _gradient(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Grey levels per pixel, along x and along y."""
    # Scharr's kernel has 16 on either side of a pixel
    across = cv2.Scharr(image, cv2.CV_32F, 1, 0, scale=1 / 32)
    return across, cv2.Scharr(image, cv2.CV_32F, 0, 1, scale=1 / 32)


def _resting(
    small: list[np.ndarray], strengths: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """bool [h, w], edges that rest in a run of frames; and counts [h, w] of edges, and of edges
    that move before the next frame."""
    shape = small[0].shape
    run, found = np.zeros(shape, np.uint8), np.zeros(shape, bool)
    edges, moving = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for before, after, strength in zip(small[:-1], small[1:], strengths[:-1], strict=True):
        edge = strength >= _EDGE
        rests = edge & (cv2.absdiff(before, after) <= _LEVELS + _SHARE * strength)
        run += 1
        run *= rests
        found |= run >= _RUN - 1
        edges += edge
        moving += edge & ~rests
    return found, edges, moving


def _steady(slopes: list[tuple[np.ndarray, np.ndarray]], strengths: list[np.ndarray]) -> np.ndarray:
    """bool [h, w]: edges that keep their direction while the scene moves behind them."""
    count = len(strengths)
    bounds = [0, count - _RUN, _RUN, count]
    layers = [
        (across, down, strength) for (across, down), strength in zip(slopes, strengths, strict=True)
    ]
    nothing = np.zeros((3, *strengths[0].shape), np.float32)
    head, middle, tail = (
        np.sum(layers[begin:end], axis=0) if end > begin else nothing
        for begin, end in itertools.pairwise(bounds)
    )
    first, last = head + middle, middle + tail
    found = np.zeros(strengths[0].shape, bool)
    for (across, down, strength), frames, least in (
        (first + tail, count, _STEADY),
        (first, _RUN, _STEADY_RUN),
        (last, _RUN, _STEADY_RUN),
    ):
        kept = cv2.magnitude(across, down) >= least * strength
        found |= kept & (strength >= _EDGE * frames)
    return found


def _scene_moves(moving: np.ndarray, edges: np.ndarray) -> bool:
    if moving.sum() < _MOVING * edges.sum():
        return False
    height, width = edges.shape
    rows, columns = (np.arange(_CELLS) * length // _CELLS for length in (height, width))
    of = [
        np.add.reduceat(np.add.reduceat(counts, rows, axis=0), columns, axis=1)
        for counts in (moving, edges)
    ]
    border = np.ones((_CELLS, _CELLS), bool)
    border[1:-1, 1:-1] = False
    told = border & (of[1] >= _MIN_EDGES * (_FRAMES - 1))
    share = of[0][told] / of[1][told]
    return bool(told.sum() >= 4 and np.mean(share > 0.5) >= _MOVING_CELLS)


def _components(resting: np.ndarray, small: list[np.ndarray]) -> np.ndarray | None:
    """The rectangles around groups of resting pixels that are edges in all directions."""
    near = cv2.dilate(resting.astype(np.uint8), np.ones((_NEAR, _NEAR), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(near)
    across, down = (np.abs(part) for part in _gradient(small[len(small) // 2]))
    mask = np.zeros(resting.shape, bool)
    grow = _NEAR // 2 - _AROUND
    for number in range(1, count):
        left, top, width, height, _ = stats[number]
        box = np.s_[
            max(top + grow, 0) : top + height - grow, max(left + grow, 0) : left + width - grow
        ]
        there = resting[box] & (labels[box] == number)
        pixels = there.sum()
        upright = (across[box][there] > down[box][there]).mean() if pixels else 0
        if (
            pixels >= _MIN_PIXELS
            and min(there.shape) >= _MIN_SIDE
            and pixels >= _DENSITY * there.size
            and _MIN_DIRECTION <= upright <= 1 - _MIN_DIRECTION
        ):
            mask[box] = True
    return mask if 0 < mask.mean() <= _MOST else None
