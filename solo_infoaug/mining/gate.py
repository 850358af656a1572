"""The entropy gate: which patches carry information of their own?

Patches at rest carry none, so their twins would mean nothing. A patch passes if it moves, if its
own motion explains its pixels better than the background's does, and if neighbours move alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from solo_infoaug._compile import compiled
from solo_infoaug.mining.medians import LANES, median, sort_columns

# Points along each side of the grid at which a patch is compared, and the share it covers.
_POINTS, _SPREAD = 6, 0.9
# Larger errors (grey levels) are occlusions and are clipped to this; the variance of the noise.
_MAX_ERROR, _NOISE = 20.0, 8.0
# Frames are first smoothed by a Gaussian of this many pixels, because compression leaves blocks.
_BLUR = 0.7
# Frames over which motion is averaged before it is compared with the noise: motion continues, while
# the errors of a track cancel.
_SMOOTHING = 5
# What rests moves by at most this multiple of the background's motion beyond it: then it is at a
# sixth of its distance.
_MAX_PARALLAX = 5.0
# The median of noise is hardly more than this many times its lower quartile.
_MEDIAN_OVER_QUARTILE = 1.5
# A neighbour moves alike if the difference has less than this share of the patch's energy.
_ALIKE = 0.25
# Neighbours are the patches within this many sides.
_NEAR = 1.5
# If this share of a patch's neighbours is explained by their own motion, a patch with an error
# ratio up to this counts as explained too: it is too flat or too noisy to tell by itself.
_MIN_AMID, _MAX_RATIO_AMID = 0.5, 0.9


def smoothed(motion: np.ndarray, known: np.ndarray) -> np.ndarray:
    """float64 [P, T, D]: the mean of `motion` [P, T, D] over the frames around each.

    The mean is over frames where the motion is `known`, bool [P, T]; 0 elsewhere.
    """
    reach = _SMOOTHING // 2
    frames = motion.shape[1]
    near = np.abs(np.subtract.outer(np.arange(frames), np.arange(frames))) <= reach
    weight = near.astype(np.float64)
    total = np.einsum("ptd,ts->psd", motion, weight, optimize=True)
    count = known.astype(np.float64) @ weight
    return np.asarray(total / np.maximum(count, 1)[..., None] * known[..., None])


def motion_threshold(
    speed: np.ndarray, fit_noise: float, min_speed: float, over_noise: float
) -> float:
    """The RMS motion above which a patch moves, pixels a frame.

    Args:
        speed: [P], RMS motion without the background's. Most patches are background, so its median
            is noise. It counts up to 1.5 times the lower quartile, for when most patches move, and
            up to three times the noise of the camera's fit.
        fit_noise: RMS residual of the camera's fit, pixels a frame.
        min_speed: the minimum threshold, pixels a frame.
        over_noise: the threshold as a multiple of the noise.
    """
    noise = fit_noise
    if len(speed):
        quartile, median_speed = np.quantile(speed, (0.25, 0.5)).tolist()
        noise = min(median_speed, _MEDIAN_OVER_QUARTILE * quartile, 3 * fit_noise)
    return max(min_speed, over_noise * noise)


def along_background(motion: np.ndarray, background: np.ndarray) -> np.ndarray:
    """float64 [P]: the share of a patch's own motion that looks like parallax.

    What rests and is nearer than the rest of the scene moves as the background does at its place,
    and further. This is the share of the energy of `motion` that a multiple of `background`
    explains, both [P, T, 2] and 0 where they are not known. It is 0 if the multiple is negative, as
    for a thing that the camera follows, or too large for parallax, as when the camera stands still.
    """
    shared = (motion * background).sum(axis=(1, 2))
    own, theirs = ((steps**2).sum(axis=(1, 2)) for steps in (motion, background))
    parallax = (shared > 0) & (shared <= _MAX_PARALLAX * theirs)
    return np.asarray(parallax * shared**2 / np.maximum(own * theirs, 1e-12))


def error_ratio(
    frames: Sequence[np.ndarray],
    path: np.ndarray,
    motion: np.ndarray,
    known: np.ndarray,
    side: float,
) -> np.ndarray:
    """How much worse a patch's pixels fit when it follows the background: a likelihood ratio.

    Flow bleeds over the outlines of objects and is arbitrary in flat regions. Such a patch seems to
    move, but its pixels follow the background as well as its track. From each frame to the next,
    the mean squared difference of the patch's pixels along its own track is compared with that
    along the background's motion.

    Args:
        frames: T grey frames, uint8 [h, w].
        path: [T, P, 2], (x, y) in their pixels.
        motion: [P, T − 1, 2], what the patches move beyond the background, pixels a frame.
        known: bool [P, T − 1].
        side: of the patches, pixels.

    Returns:
        float64 [P]: the error of the patch's own motion divided by that of the background's, with
        noise in both; 1 if both fit equally well.
    """
    smooth = [cv2.GaussianBlur(frame, (0, 0), _BLUR).astype(np.float32) for frame in frames]
    errors = np.zeros((2, len(motion)))
    grid = grid_points(np.zeros((1, 2)), side)[0]
    for t in range(len(frames) - 1):
        start, end = (path[u].astype(np.float32) for u in (t, t + 1))
        still = (path[t + 1] - motion[:, t]).astype(np.float32)
        _add_errors(smooth[t], smooth[t + 1], start, end, still, grid, known[:, t], errors)
    own, background = errors / np.maximum(known.sum(axis=1), 1)
    return np.asarray((own + _NOISE) / (background + _NOISE))


def explained_by_own(
    ratio: np.ndarray, moving: np.ndarray, centres: np.ndarray, side: float, max_ratio: float
) -> np.ndarray:
    """bool [M]: patches whose own motion explains their pixels, by itself or with neighbours.

    Args:
        ratio: [M], see `error_ratio`.
        moving: int [M], the numbers of these among all patches.
        centres: [P, 2], of all patches.
        side: of the patches, pixels as in `centres`.
        max_ratio: maximum ratio at which a patch is explained by itself.
    """
    by_themselves = ratio <= max_ratio
    own = np.zeros(len(centres), np.bool_)
    own[moving[by_themselves]] = True
    perhaps = np.flatnonzero(~by_themselves & (ratio <= _MAX_RATIO_AMID))
    explained = by_themselves.copy()
    explained[perhaps] = _amid(centres, own, moving[perhaps], _NEAR * side) >= _MIN_AMID
    return explained


@compiled()
def _amid(centres, own, patches, reach):  # type: ignore[no-untyped-def]
    """float64 [N]: the share of `own` among all the neighbours of each of `patches`."""
    share = np.zeros(len(patches))
    for n in range(len(patches)):
        x, y = centres[patches[n]]
        inside, count = 0, 0
        for p in range(len(centres)):
            near = abs(centres[p, 0] - x) < reach and abs(centres[p, 1] - y) < reach
            if near and p != patches[n]:
                count += 1
                inside += own[p]
        share[n] = inside / max(count, 1)
    return share


@compiled(fastmath=True)
def _bilinear(image, x, y):  # type: ignore[no-untyped-def]
    """The image at (x, y), float32; beyond its border, as on it."""
    x = min(max(x, np.float32(0)), np.float32(image.shape[1] - 1))
    y = min(max(y, np.float32(0)), np.float32(image.shape[0] - 1))
    left, top = min(np.int32(x), image.shape[1] - 2), min(np.int32(y), image.shape[0] - 2)
    u, v = x - np.float32(left), y - np.float32(top)
    above = image[top, left] + u * (image[top, left + 1] - image[top, left])
    below = image[top + 1, left] + u * (image[top + 1, left + 1] - image[top + 1, left])
    return above + v * (below - above)


@compiled(fastmath=True)
def _add_errors(before, after, start, end, still, grid, known, errors):  # type: ignore[no-untyped-def]
    """Add each patch's error along its own track to errors[0], along the background to [1]."""
    count = len(grid)
    residual = np.zeros((2, count, LANES), np.float32)
    ordered = np.empty((count, LANES), np.float32)
    for first in range(0, len(start), LANES):
        last = min(first + LANES, len(start))
        for p in range(first, last):
            if not known[p]:  # it may then lie anywhere
                continue
            for i in range(count):
                dx, dy = grid[i]
                was = _bilinear(before, start[p, 0] + dx, start[p, 1] + dy)
                own = _bilinear(after, end[p, 0] + dx, end[p, 1] + dy)
                background = _bilinear(after, still[p, 0] + dx, still[p, 1] + dy)
                residual[0, i, p - first] = own - was
                residual[1, i, p - first] = background - was
        for way in range(2):
            ordered[:] = residual[way]
            sort_columns(ordered)
            for p in range(first, last):
                # Without the change of brightness, and with outliers bounded
                brightness, total = median(ordered, p - first, count), np.float32(0)
                for i in range(count):
                    error = (residual[way, i, p - first] - brightness) ** 2
                    total += min(error, np.float32(_MAX_ERROR**2))
                if known[p]:
                    errors[way, p] += total / count


def difference(motion: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How differently patches move: squared differences and energies, over steps known for both.

    Args:
        motion: [P, T, D], 0 where it is not known.
        known: bool [P, T].

    Returns:
        float64 [P, P], Σ_t |m_i − m_j|², and [P, P], Σ_t |m_i|² over the same t.
    """
    there = known.astype(np.float64)
    energy = (motion**2).sum(axis=2) @ there.T
    flat = motion.reshape(len(motion), motion.shape[1] * motion.shape[2])
    return energy + energy.T - 2 * flat @ flat.T, energy


def drift(motion: np.ndarray, known: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """float64 [N]: how far the patches of each pair drift apart, as a share of how far they go.

    Two people who walk in step differ little from frame to frame and still end up in different
    places. This is the extent of two patches' relative displacement over the window, divided by
    the larger extent of their own, in the frames in which both are known: 0 for parts of a thing
    that does not turn, about 1 for patches with nothing in common, and at most 2.

    Args:
        motion: [P, T, 2], 0 where it is not known.
        known: bool [P, T].
        pairs: int [N, 2].
    """
    return np.asarray(_drift(motion.astype(np.float64), known, pairs))


@compiled()
def _drift(motion, known, pairs):  # type: ignore[no-untyped-def]
    frames = motion.shape[1]
    found = np.zeros(len(pairs))
    # Where each of the two and their difference are, and the bounds of where they were
    place, low, high = np.empty((3, 2)), np.empty((3, 2)), np.empty((3, 2))
    for n in range(len(pairs)):
        i, j = pairs[n]
        place[:], low[:], high[:] = 0, 0, 0
        for t in range(frames):
            if not (known[i, t] and known[j, t]):
                continue
            for axis in range(2):
                one, other = motion[i, t, axis], motion[j, t, axis]
                place[0, axis] += one
                place[1, axis] += other
                place[2, axis] += one - other
                for which in range(3):
                    low[which, axis] = min(low[which, axis], place[which, axis])
                    high[which, axis] = max(high[which, axis], place[which, axis])
        extent = np.zeros(3)
        for which in range(3):
            x, y = high[which, 0] - low[which, 0], high[which, 1] - low[which, 1]
            extent[which] = np.sqrt(x * x + y * y)
        found[n] = extent[2] / max(extent[0], extent[1], 1e-12)
    return found


def support(
    distance: np.ndarray, side: float, differences: np.ndarray, energy: np.ndarray
) -> np.ndarray:
    """int64 [P]: how many of a patch's neighbours move alike; see `distances`, `difference`."""
    near = (distance < _NEAR * side) & (distance > 0)
    return np.asarray((near & (differences < _ALIKE * energy)).sum(axis=1))


def surrounded(apart: np.ndarray, side: float, certain: np.ndarray) -> np.ndarray:
    """int64 [P]: how many of a patch's neighbours are `certain`, bool [P], to move by themselves.

    `apart` [P, P] are the patches' distances. Inside of a thing all are, at its outline half.
    """
    near = (apart < _NEAR * side) & (apart > 0)
    return np.asarray((near & certain).sum(axis=1))


def distances(centres: np.ndarray) -> np.ndarray:
    """[P, P]: L∞ distances between centres [P, 2]."""
    x, y = (np.abs(np.subtract.outer(along, along)) for along in centres.T)
    return np.maximum(x, y, out=x)


def grid_points(centres: np.ndarray, side: float) -> np.ndarray:
    """float32 [P, N, 2]: a grid of points in each patch of `centres` [P, 2]."""
    reach = ((np.arange(_POINTS) + 0.5) / _POINTS - 0.5) * side * _SPREAD
    offsets = np.stack(np.meshgrid(reach, reach), axis=-1).reshape(-1, 2)
    return (centres[:, None] + offsets).astype(np.float32)


def sample(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """float32 [P, N] or [P, N, C]: `image` [h, w] or [h, w, C] at `points` float32 [P, N, 2].

    OpenCV's remap takes at most 32767 rows at a time.
    """
    rows = 32000
    parts = [
        cv2.remap(
            image, part[..., 0], part[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        for part in (points[start : start + rows] for start in range(0, len(points), rows))
    ]
    return np.concatenate(parts) if parts else np.zeros((*points.shape[:2], *image.shape[2:]))
