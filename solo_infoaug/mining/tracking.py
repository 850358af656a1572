"""Tracking: a grid of patches, a few points in each, followed through a window."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import cv2
import numpy as np

from solo_infoaug.mining.frame import grey
from solo_infoaug.mining.gate import sample

# Lucas-Kanade's window and how often the image is halved: steps up to about 60 pixels.
_WINDOW = (21, 21)
_LEVELS = 3
_CRITERIA = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 0.01)
# A point's surroundings must correlate this much with those of so many frames ago.
_LIKENESS = 0.6
_MEMORY = 8
# Points this near the border are lost; points this near each other have merged. Pixels.
_BORDER = 2
_MERGED = 0.5
# A patch has 2×2 cells; the strongest corner of each is tracked.
_CELLS = 2
# Of each cell only so large a part is searched, so that the points spread over the patch.
_INNER = 0.6


def grid(height: int, width: int, size: int, step: float = 1.0) -> np.ndarray:
    """float32 [P, 2]: centres (x, y) of square patches of `size` pixels, centred in the frame.

    Neighbours are `step` patches apart, rounded up, so that those of half a patch have others that
    they touch and do not overlap, whatever the size. No patch reaches over the border; P is 0 where none fits.
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


def track_lk(
    frames: Sequence[np.ndarray], points: np.ndarray, max_roundtrip: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Pyramidal Lucas-Kanade; points that are not found again, or look different, are lost.

    A point is lost when tracking it forth and back misses its start, when its surroundings no
    longer resemble those of some frames ago (it slid onto what occludes it), when it comes close
    to the border, or when it falls in with another point.

    Args:
        frames: T images, uint8 [h, w] or [h, w, 3] RGB.
        points: float32 [N, 2], (x, y) in pixels of the first frame.
        max_roundtrip: the largest miss, forth and back, in pixels.

    Returns:
        Tracks float32 [T, N, 2] and visibility bool [T, N]. A lost point stays lost; its track
        rests where it was last seen.
    """
    count = len(points)
    tracks = np.repeat(points[None].astype(np.float32), len(frames), axis=0)
    visible = np.zeros((len(frames), count), bool)
    visible[0] = True
    alive = np.arange(count)
    before = grey(frames[0])
    looks = deque([_surroundings(before, tracks[0])], maxlen=_MEMORY)
    for t in range(1, len(frames)):
        after = grey(frames[t])
        tracks[t] = tracks[t - 1]
        look = np.zeros_like(looks[0])
        if len(alive):
            start = tracks[t - 1, alive]
            end, forth = _flow(before, after, start)
            back, found = _flow(after, before, end)
            good = forth & found & (np.abs(back - start).max(axis=1) <= max_roundtrip)
            good &= inside(end, after.shape)
            alive, end = alive[good], end[good]
            look[alive] = _surroundings(after, end)
            same = (look[alive] * looks[0][alive]).sum(axis=1) >= _LIKENESS
            same &= ~_merged(points[alive], end)
            alive, end = alive[same], end[same]
            tracks[t, alive] = end
            visible[t, alive] = True
        looks.append(look)
        before = after
    return tracks, visible


def inside(points: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """bool [...]: which points [..., 2] lie in a frame of this shape, off its border.

    Trackers call points valid that have left the frame, and let them pile up there.
    """
    limit = np.array([shape[1] - 1, shape[0] - 1]) - _BORDER
    return np.asarray(((points >= _BORDER) & (points <= limit)).all(axis=-1))


def _surroundings(gray: np.ndarray, points: np.ndarray) -> np.ndarray:
    """float32 [N, 121]: the 11×11 pixels around each point, of mean 0 and norm 1."""
    if len(points) == 0:
        return np.zeros((0, 121), np.float32)
    reach = np.arange(-5, 6, dtype=np.float32)
    around = np.stack(np.meshgrid(reach, reach), axis=-1).reshape(-1, 2)
    cut = sample(gray, (points[:, None] + around).astype(np.float32)).astype(np.float32)
    cut -= cut.mean(axis=1, keepdims=True)
    return cut / np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), 1e-6)


def _merged(start: np.ndarray, now: np.ndarray) -> np.ndarray:
    """bool [N]: points that lie on another point now and did not at the start."""
    order = np.argsort(now[:, 0], kind="stable")
    merged = np.zeros(len(now), bool)
    for gap in range(1, 9):  # neighbours along x are enough: a pile has its own neighbours
        one, two = order[:-gap], order[gap:]
        near = np.abs(now[one] - now[two]).max(axis=1) < _MERGED
        near &= np.abs(start[one] - start[two]).max(axis=1) > 4 * _MERGED
        merged[one[near]] = merged[two[near]] = True
    return merged


def _flow(
    source: np.ndarray, target: np.ndarray, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    end, status, _ = cv2.calcOpticalFlowPyrLK(
        source,
        target,
        points[:, None],
        None,
        winSize=_WINDOW,
        maxLevel=_LEVELS,
        criteria=_CRITERIA,
        minEigThreshold=1e-4,
    )
    return end.reshape(-1, 2), status.reshape(-1).astype(bool)


def patch_tracks(
    centres: np.ndarray, tracks: np.ndarray, visible: np.ndarray, min_points: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Patches follow the median step of their points.

    Args:
        centres: [P, 2], (x, y) at the first frame.
        tracks: [T, P, Q, 2] of the Q points of each patch.
        visible: bool [T, P, Q].
        min_points: a patch is lost when fewer of its points are seen.

    Returns:
        float32 [T, P, 2] and bool [T, P]. A lost patch stays lost.
    """
    steps = np.diff(tracks.astype(np.float64), axis=0)
    both = visible[1:] & visible[:-1]
    steps[~both] = np.nan
    enough = both.sum(axis=2) >= min(min_points, tracks.shape[2])
    seen = np.concatenate([visible[:1].any(axis=2), np.logical_and.accumulate(enough)])
    # Sorting puts NaN last: the middle of the first `number` is the median of those seen.
    ordered = np.sort(steps, axis=2)
    number = both.sum(axis=2)[..., None, None]
    low = np.take_along_axis(ordered, np.maximum(number - 1, 0) // 2, axis=2)
    high = np.take_along_axis(ordered, np.minimum(number // 2, tracks.shape[2] - 1), axis=2)
    median = np.where(number > 0, 0.5 * (low + high), 0.0)[:, :, 0]
    path = np.concatenate([np.zeros_like(median[:1]), median.cumsum(axis=0)]) + centres
    return path.astype(np.float32), seen
