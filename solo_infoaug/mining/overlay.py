"""Overlays: logos, clocks and subtitles, which rest in the frame while the scene moves behind them.

What is burnt into the frame is no part of the scene. While the camera moves it seems to move
against the background, all of it alike, and would be full of twins.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import cv2
import numpy as np

# So many frames of a window are compared; what rests in so many in a row counts.
_FRAMES, _RUN = 8, 5
# An edge: grey levels per pixel of the halved frame. One that rests changes by at most so many
# levels and so large a share of its gradient: a sixteenth of a pixel.
_EDGE, _LEVELS, _SHARE = 14.0, 2.0, 0.06
# Behind transparent ones, and between thin letters, the scene shows: over all the frames, or the
# first or the last of them, the sum of an edge's gradients has so large a share of their lengths.
# What the scene itself reaches is .93.
_STEADY, _STEADY_RUN = 0.98, 0.99
# The scene moves: so large a share of the edges do not rest, and in so large a share of the cells
# along the border, of a 4×4 grid, most do not.
_MOVING, _MOVING_CELLS, _CELLS, _MIN_EDGES = 0.8, 0.8, 4, 20
# An overlay has so many resting pixels at least, edges in both directions among them, this share
# of the pixels around them at least, and this share of the frame at most.
_MIN_PIXELS, _MIN_DIRECTION, _DENSITY, _MOST = 24, 0.15, 0.15, 0.15
# Narrower ones, pixels, are posts at the border that slide along themselves.
_MIN_SIDE = 8
# Resting pixels this near to each other belong together; the mask reaches so much further.
_NEAR, _AROUND = 7, 2
# A patch lies on it with so large a share of its square.
_TOUCHED = 0.05


def find_overlay(frames: Sequence[np.ndarray]) -> np.ndarray | None:
    """Which pixels of a window's grey frames, uint8 [h, w], belong to an overlay.

    Only told while the scene moves all around; None where it does not, or nothing rests.

    Returns:
        bool [h / 2, w / 2], of the halved frames, or None.
    """
    if len(frames) < _RUN:
        return None
    chosen = np.unique(np.linspace(0, len(frames) - 1, _FRAMES).round().astype(int))
    height, width = frames[0].shape
    half = (max(1, width // 2), max(1, height // 2))
    # Of even sides: halving is exact then, and several times as fast
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

    `size` is (height, width) of the frames that the points are in. A square lies on it if a
    twentieth of it does.
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
    """bool [h, w], edges that rest in a run of frames; and [h, w] counts of edges, and of those
    that do not rest until the next frame."""
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
    """bool [h, w]: edges that keep their direction, whatever moves behind them."""
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
    """The rectangles around resting pixels that lie together and are edges in all directions."""
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
