"""Patches and points: a grid of patches, points in each, and tracks of patches from points'."""

from __future__ import annotations

import math

import cv2
import numpy as np

from solo_infoaug.mining.config import MineConfig
from solo_infoaug.mining.frame import grey

# Points this near the border are lost, pixels.
_BORDER = 2
# A patch has 2×2 cells; the strongest corner of each is tracked.
_CELLS = 2
# Share of each cell that is searched, so that the points spread over the patch.
_INNER = 0.6


def patch_size(height: int, width: int, config: MineConfig) -> int:
    """Side of a patch in pixels of a frame of this size."""
    return max(config.min_patch, round(config.patch_fraction * min(height, width)))


def grid(height: int, width: int, size: int, step: float = 1.0) -> np.ndarray:
    """float32 [P, 2]: centres (x, y) of square patches of `size` pixels, centred in the frame.

    Neighbours are `step` patches apart, rounded up: with steps of half a patch, every second one
    touches without overlap, whatever the size. No patch crosses the border; P is 0 if none fits.
    """
    distance = max(1, math.ceil(size * step - 1e-9))

    def centres(length: int) -> np.ndarray:
        count = (length - size) // distance + 1 if length >= size else 0
        margin = (length - size - (count - 1) * distance) / 2
        return margin + size / 2 + distance * np.arange(count)

    x, y = np.meshgrid(centres(width), centres(height))
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)


def corners(image: np.ndarray, centres: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The strongest corner (Shi-Tomasi) in the middle of each of the 2×2 cells of each patch.

    `image` is uint8 [h, w] or [h, w, 3] RGB; `centres` [P, 2] and `size` [2] are in its pixels,
    (x, y). Returns float32 [P, 4, 2].
    """
    strength = cv2.cornerMinEigenVal(grey(image), 5)
    limit = np.array(image.shape[1::-1])
    middle = (np.arange(_CELLS) + 0.5) / _CELLS - 0.5
    offsets = np.stack(np.meshgrid(middle, middle), axis=-1).reshape(-1, 2) * size
    cells = centres[:, None] + offsets  # [P, 4, 2]
    half = _INNER * size / _CELLS / 2
    first = np.clip(np.round(cells - half).astype(int), 0, limit - 1)
    last = np.clip(np.round(cells + half).astype(int), first + 1, limit)
    found = np.empty(cells.shape, np.float32)
    for place in np.ndindex(cells.shape[:2]):
        (x0, y0), (x1, y1) = first[place], last[place]
        dy, dx = divmod(int(strength[y0:y1, x0:x1].argmax()), x1 - x0)
        found[place] = x0 + dx, y0 + dy
    return found


def inside(points: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """bool [...]: which points [..., 2] lie in a frame of this shape, off its border.

    Trackers call points valid that have left the frame, and collect them at its border.
    """
    limit = np.array([shape[1] - 1, shape[0] - 1]) - _BORDER
    return np.asarray(((points >= _BORDER) & (points <= limit)).all(axis=-1))


def patch_tracks(
    centres: np.ndarray, tracks: np.ndarray, visible: np.ndarray, min_points: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Tracks of patches, float32 [T, P, 2], from the median step of their points; bool [T, P].

    `centres` [P, 2] are (x, y) at the first frame, `tracks` [T, P, Q, 2] those of the Q points of
    each patch, `visible` bool [T, P, Q]. A patch is lost, and stays lost, if fewer than
    `min_points` are visible.
    """
    steps = np.diff(tracks.astype(np.float64), axis=0)
    both = visible[1:] & visible[:-1]
    steps[~both] = np.nan
    enough = both.sum(axis=2) >= min(min_points, tracks.shape[2])
    kept = np.concatenate([visible[:1].any(axis=2), np.logical_and.accumulate(enough)])
    # Sorting puts NaN last: the middle of the first `number` is the median of the visible ones.
    ordered = np.sort(steps, axis=2)
    number = both.sum(axis=2)[..., None, None]
    low = np.take_along_axis(ordered, np.maximum(number - 1, 0) // 2, axis=2)
    high = np.take_along_axis(ordered, np.minimum(number // 2, tracks.shape[2] - 1), axis=2)
    median = np.where(number > 0, 0.5 * (low + high), 0.0)[:, :, 0]
    path = np.concatenate([np.zeros_like(median[:1]), median.cumsum(axis=0)]) + centres
    return path.astype(np.float32), kept
