"""The background's motion: a model of the camera for each frame pair, and parallax.

A moving camera moves everything at once and makes all pairs of patches dependent. A patch's steps
minus those of the background are the patch's own motion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from solo_infoaug._compile import compiled

# Degrees of freedom of the camera's models.
_FREEDOM = {"similarity": 4, "affine": 6, "homography": 8}
# RANSAC's tolerance: pixels, or this share of the median step, because fast motion is blurred.
_TOLERANCE, _RELATIVE_TOLERANCE = 0.7, 0.03
_ITERATIONS = 500
# Least-squares rounds after RANSAC; residuals below this many pixels count as equal.
_REFITS, _MIN_RESIDUAL = 4, 0.05
_MIN_POINTS = 20
# A frame pair's model is trusted if the first share of the points follows it. The second share is
# enough if they lie all around the frame's border, as when an object fills the frame. Of two
# candidates, the background is the one whose points lie in more of the cells along the border.
_MIN_SHARE, _MIN_SHARE_AROUND = 0.45, 0.2
_CELLS = 4
# RMS over median of the length of a vector whose two coordinates are normal.
_RMS_OF_MEDIAN = (2 / (2 * np.log(2))) ** 0.5
# Parallax: the number of patches that are tried as its pattern, and of those they are tried on. A
# pattern explains a patch if the rest of its motion is below this share, or this times the noise.
_CANDIDATES, _SAMPLE = 150, 800
_LEFT_SHARE, _LEFT_NOISE = 0.3, 1.5
# Minimum number of patches that a pattern explains, and minimum share of the cells along the border
# that they are in; minimum share of the moving patches, or of all. A pattern that explains fewer is
# of things that happen to move alike.
_MIN_EXPLAINED, _MIN_COVERAGE = 12, 0.3
_MIN_OF_MOVING, _MIN_OF_ALL = 0.27, 0.1
# Minimum share of the pattern's energy that the camera's own steps and a constant explain, and
# minimum sum of that and of the share of the moving patches that follow the pattern: a thing may
# happen to sway as the camera does.
_MIN_OF_CAMERA, _MIN_TOGETHER = 0.5, 0.95
_REFINEMENTS = 5
# Patches this near to the border, in frame heights, bound the strength of parallax.
_RING = 0.2


@dataclass(frozen=True)
class CameraStep:
    """What the camera did between two frames.

    `matrix` float64 [3, 3] maps pixels of the first to those of the second; `noise` is the RMS
    residual of the points that follow it, pixels, and `share` their share of all points.
    """

    matrix: np.ndarray
    noise: float
    share: float

    def apply(self, points: np.ndarray) -> np.ndarray:
        """float64 [N, 2]: where `points` [N, 2] go."""
        mapped = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ self.matrix.T
        return np.asarray(mapped[:, :2] / mapped[:, 2:])

    def scaled(self, scale: np.ndarray) -> CameraStep:
        """The same step in frames with `scale` [2] times the pixels along x and y."""
        grow = np.diag([*scale, 1.0])
        matrix = grow @ self.matrix @ np.linalg.inv(grow)
        return CameraStep(matrix, self.noise * float(scale.mean()), self.share)


def fit_camera(
    source: np.ndarray, target: np.ndarray, size: tuple[int, int], model: str = "homography"
) -> CameraStep | None:
    """Fit the camera's motion between two frames to matched points; None if no model fits.

    RANSAC fits a model to all points, and a second one to those that do not follow the first. The
    background is the one whose points reach further around the frame's border.

    Args:
        source: [N, 2], (x, y) in pixels of the first frame.
        target: [N, 2], of the second.
        size: (height, width) of the frames in pixels.
        model: "none" (nothing moves), "similarity", "affine" or "homography".
    """
    if model == "none":
        return CameraStep(np.eye(3), 0.0, 1.0)
    source, target = source.astype(np.float64), target.astype(np.float64)
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    rest = np.arange(len(source))
    steps = np.linalg.norm(target - source, axis=1)
    tolerance = max(_TOLERANCE, _RELATIVE_TOLERANCE * float(np.median(steps)) if len(rest) else 0)
    for _ in range(2):
        if len(rest) < _MIN_POINTS:
            break
        # The rest cannot win, whatever it agrees on; always so if most points follow the first
        if best and _coverage(source[rest], size) + 0.25 * len(rest) / len(source) <= best[0]:
            break
        matrix, inliers = _fit(source[rest], target[rest], model, tolerance)
        if matrix is None or inliers.sum() < _MIN_POINTS:
            break
        score = _coverage(source[rest[inliers]], size) + 0.25 * inliers.sum() / len(source)
        if best is None or score > best[0]:
            best = score, matrix, rest[inliers]
        rest = rest[~inliers]
    if best is None:
        return None
    _, matrix, followers = best
    share = len(followers) / len(source)
    around = share < _MIN_SHARE and _coverage(source[followers], size) == 1
    if share < (_MIN_SHARE_AROUND if around else _MIN_SHARE):
        return None
    # RANSAC bends towards slow objects within its tolerance, so refit to the nearest points only
    matrix, residual = _refitted(matrix, source, target, followers, _FREEDOM[model])
    # From the median, so that slow objects among the followers do not count as noise
    return CameraStep(matrix, residual * _RMS_OF_MEDIAN, share)


def least_squares_step(source: np.ndarray, target: np.ndarray, model: str) -> CameraStep | None:
    """Fit the camera's motion to points [N, 2] of the background; None if there are too few.

    Arguments and units are those of `fit_camera`. Outliers may be few.
    """
    if len(source) < _MIN_POINTS:
        return None
    matrix = _least_squares(source, target, _FREEDOM[model])
    if not np.isfinite(matrix).all():
        return None
    followers = np.arange(len(source))
    matrix, residual = _refitted(matrix, source, target, followers, _FREEDOM[model])
    return CameraStep(matrix, residual * _RMS_OF_MEDIAN, 1.0)


def fit_noise(camera: Sequence[CameraStep | None]) -> float:
    """RMS residual of the camera's fit over a window, pixels a frame."""
    noise = [step.noise for step in camera if step is not None]
    return float(np.sqrt(np.mean(np.square(noise)))) if noise else 0.0


def own_motion(
    path: np.ndarray, visible: np.ndarray, camera: Sequence[CameraStep | None]
) -> tuple[np.ndarray, np.ndarray]:
    """The patches' own motion: their steps minus the camera's steps at the same places.

    Args:
        path: float64 [T, P, 2].
        visible: bool [T, P].
        camera: T − 1 steps; None if unknown, and then no patch has a known motion there.

    Returns:
        float64 [P, T − 1, 2], pixels a frame, 0 where it is not known; and bool [P, T − 1].
    """
    motion = np.zeros((path.shape[1], len(camera), 2))
    known = (visible[1:] & visible[:-1]).T.copy()
    for t, step in enumerate(camera):
        if step is None:
            known[:, t] = False
        else:
            motion[:, t] = path[t + 1] - step.apply(path[t])
    return motion * known[..., None], known


def camera_steps(camera: Sequence[CameraStep | None], size: tuple[int, int]) -> np.ndarray:
    """float64 [T, 4, 2]: how far each step moves the middles of the frame's quarters, pixels; NaN
    if the step is unknown. `size` is (height, width) in pixels."""
    points = np.array([[x, y] for x in (0.25, 0.75) for y in (0.25, 0.75)]) * size[::-1]
    steps = np.full((len(camera), *points.shape), np.nan)
    for t, step in enumerate(camera):
        if step is not None:
            steps[t] = step.apply(points) - points
    return steps


def remove_parallax(
    motion: np.ndarray,
    known: np.ndarray,
    centres: np.ndarray,
    size: tuple[int, int],
    noise: float,
    camera: np.ndarray,
    modes: int = 1,
) -> tuple[np.ndarray, int]:
    """Remove the motion that the background shares in different strength.

    No single model of the camera fits a scene of several depths. A patch at rest then keeps a
    pattern over time that all such patches share, times a strength that depends on its depth. The
    pattern is found among those of the patches, by consensus. It must reach around the frame's
    border and follow the camera: it is constant for a steady hand and sways with a swaying one. Its
    strength is bounded by that of the patches near the border. A patch that moves faster than any
    part of the scene, or the other way, keeps the rest of its motion.

    Args:
        motion: float64 [P, T, 2], pixels a frame, 0 where it is not known.
        known: bool [P, T].
        centres: [P, 2], (x, y) in pixels.
        size: (height, width) of the frame in pixels.
        noise: RMS of the apparent motion of resting patches, pixels a frame.
        camera: [T, 2], the camera's own steps, pixels; NaN if unknown.
        modes: maximum number of patterns.

    Returns:
        The remaining motion, float64 [P, T, 2], and the number of patterns that were removed.
    """
    for mode in range(modes):
        left = _without_mode(motion, known, centres, size, noise, camera)
        if left is None:
            return motion, mode
        motion = left
    return motion, modes


def _without_mode(
    motion: np.ndarray,
    known: np.ndarray,
    centres: np.ndarray,
    size: tuple[int, int],
    noise: float,
    camera: np.ndarray,
) -> np.ndarray | None:
    speed = rms(motion, known)
    moving = np.flatnonzero(speed > _LEFT_NOISE * noise)
    if len(moving) < _MIN_EXPLAINED:
        return None
    rng = np.random.default_rng(0)
    flat = motion.reshape(len(motion), -1).astype(np.float32)
    # 1 where a coordinate is known, else 0
    weight = np.repeat(known, 2, axis=1).astype(np.float32)
    allowed = np.maximum(_LEFT_NOISE * noise, _LEFT_SHARE * speed)

    # The candidate that explains most of the border: residuals of all pairs at once
    tried = rng.permutation(moving)[:_CANDIDATES]
    sample = rng.permutation(moving)[:_SAMPLE]
    pattern, own, own_weight = flat[tried], flat[sample], weight[sample]
    energy = own_weight @ (pattern**2).T
    shared = own @ pattern.T
    common = own_weight @ weight[tried].T
    strength = shared / np.maximum(energy, 1e-9)
    left = (own**2) @ weight[tried].T - strength * shared
    left = np.sqrt(np.maximum(left, 0) / np.maximum(common / 2, 1))
    explains = left < allowed[sample, None]
    explains &= common > 0.6 * own_weight.sum(axis=1, keepdims=True)
    scores = [
        _coverage(centres[sample[column]], size) + 0.5 * column.mean() for column in explains.T
    ]
    best = int(np.argmax(scores))
    followers = sample[explains[:, best]]
    needed = min(_MIN_OF_MOVING, _MIN_OF_ALL * len(motion) / len(moving))
    min_followers = max(_MIN_EXPLAINED / len(moving), needed) * len(sample)
    if len(followers) < min_followers or _coverage(centres[followers], size) < _MIN_COVERAGE:
        return None

    # The pattern and its strengths, by alternating least squares
    mode = flat[tried[best]]
    for _ in range(_REFINEMENTS):
        factor = _strength(flat[followers], weight[followers], mode)[:, None]
        mode = (flat[followers] * factor).sum(axis=0)
        mode /= np.maximum((weight[followers] * factor**2).sum(axis=0), 1e-9)
    by_camera = _explained(mode.reshape(-1, 2), camera)
    if by_camera < max(_MIN_OF_CAMERA, _MIN_TOGETHER - len(followers) / len(sample)):
        return None
    factor = _strength(flat, weight, mode)

    # No stronger than near the border
    edge = np.minimum(centres, np.array(size[::-1]) - centres).min(axis=1) < _RING * size[0]
    rest = flat - factor[:, None] * mode * weight
    edge &= np.sqrt((rest**2).sum(axis=1) / np.maximum(known.sum(axis=1), 1)) < allowed
    if edge.sum() < _MIN_EXPLAINED:
        return None
    factor = np.clip(factor, min(factor[edge].min(), 0.0), max(factor[edge].max(), 0.0))
    found = motion - (factor[:, None] * mode * weight).reshape(motion.shape)
    return np.asarray(found, np.float64)


def rms(motion: np.ndarray, known: np.ndarray) -> np.ndarray:
    """float64 [P]: the RMS length of `motion` [P, T, D] where it is `known`, bool [P, T]."""
    return np.sqrt((motion**2).sum(axis=(1, 2)) / np.maximum(known.sum(axis=1), 1))


def _explained(mode: np.ndarray, camera: np.ndarray) -> float:
    """The share of the energy of `mode` [T, 2] that is an affine function of `camera` [T, 2]."""
    there = np.isfinite(camera).all(axis=1)
    steps = np.concatenate([camera[there], np.ones((there.sum(), 1))], axis=1)
    mode = mode[there]
    left = mode - steps @ np.linalg.lstsq(steps, mode, rcond=None)[0]
    return 1 - float((left**2).sum() / max(float((mode**2).sum()), 1e-12))


def _strength(motion: np.ndarray, weight: np.ndarray, mode: np.ndarray) -> np.ndarray:
    """[P]: the multiple of `mode` [2T] that is nearest to `motion` [P, 2T] where `weight` is 1."""
    return np.asarray((motion @ mode) / np.maximum(weight @ mode**2, 1e-9))


@compiled(error_model="numpy")
def _refitted(matrix, source, target, followers, freedom):  # type: ignore[no-untyped-def]
    """Refit the model to the points nearest to it, until these stay the same.

    Returns [3, 3] and the median residual of those points, pixels.
    """
    fitted_to = np.zeros(len(source), np.bool_)
    for _ in range(_REFITS):
        residual = _residuals(matrix, source, target)
        near = residual <= max(2.5 * np.median(residual[followers]), _MIN_RESIDUAL)
        if near.sum() < _MIN_POINTS or (near == fitted_to).all():
            break
        found = _least_squares(source[near], target[near], freedom)
        if not np.isfinite(found).all():
            break
        matrix, followers, fitted_to = found, np.flatnonzero(near), near
    return matrix, np.median(_residuals(matrix, source, target)[followers])


@compiled(error_model="numpy")
def _least_squares(source, target, freedom):  # type: ignore[no-untyped-def]
    """[3, 3]: the model of 4, 6 or 8 degrees of freedom that fits all points best, or NaN.

    For a homography, this is the normalised linear solution, solved again with weights by its
    denominators, which must be positive: Hartley and Zisserman (2004), "Multiple View Geometry",
    4.1 and 4.4.
    """
    mean = np.array([source[:, 0].mean(), source[:, 1].mean()])
    spread = max(source.std(), 1e-9)
    a, b = (source - mean) / spread, (target - mean) / spread
    weight = np.ones(len(a))
    row, inner = np.zeros(freedom), np.eye(3)
    for _ in range(2 if freedom == 8 else 1):
        left, right = np.zeros((freedom, freedom)), np.zeros(freedom)
        for n in range(len(a)):
            x, y = a[n]
            for i in range(2):
                if freedom == 4:  # a rotation and a scale
                    row[0], row[1] = (x, -y) if i == 0 else (y, x)
                    row[2], row[3] = 1 - i, i
                else:
                    row[:6] = 0
                    row[3 * i], row[3 * i + 1], row[3 * i + 2] = x, y, 1
                    if freedom == 8:
                        row[6], row[7] = -b[n, i] * x, -b[n, i] * y
                for j in range(freedom):
                    scaled = weight[n] ** 2 * row[j]
                    right[j] += scaled * b[n, i]
                    for k in range(freedom):
                        left[j, k] += scaled * row[k]
        try:
            p = np.linalg.solve(left, right)
        except Exception:  # singular; numba knows no narrower ones
            return np.full((3, 3), np.nan)
        if freedom == 4:
            inner[0], inner[1] = np.array([p[0], -p[1], p[2]]), np.array([p[1], p[0], p[3]])
        else:
            inner[0], inner[1] = p[:3], p[3:6]
        if freedom == 8:
            inner[2, :2] = p[6:]
            weight = 1 / (a @ p[6:] + 1)
            if not (weight > 0).all() or weight.max() > 1e3:
                return np.full((3, 3), np.nan)
    normal = np.array([[1, 0, -mean[0]], [0, 1, -mean[1]], [0, 0, spread]]) / spread
    return np.linalg.inv(normal) @ inner @ normal


@compiled(error_model="numpy")
def _residuals(matrix, source, target):  # type: ignore[no-untyped-def]
    """float64 [N]: how far `matrix` takes the points of `source` from those of `target`."""
    found = np.empty(len(source))
    for n in range(len(source)):
        x, y = source[n]
        depth = matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2]
        dx = (matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]) / depth - target[n, 0]
        dy = (matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]) / depth - target[n, 1]
        found[n] = np.sqrt(dx**2 + dy**2)
    return found


def _fit(
    source: np.ndarray, target: np.ndarray, model: str, tolerance: float
) -> tuple[np.ndarray | None, np.ndarray]:
    """[3, 3] and which points follow it. OpenCV's RANSAC starts from a fixed seed."""
    if model == "homography":
        matrix, inliers = cv2.findHomography(
            source, target, cv2.RANSAC, tolerance, maxIters=_ITERATIONS
        )
    else:
        fit = cv2.estimateAffine2D if model == "affine" else cv2.estimateAffinePartial2D
        matrix, inliers = fit(
            source, target, method=cv2.RANSAC, ransacReprojThreshold=tolerance, maxIters=_ITERATIONS
        )
    if matrix is None or not np.isfinite(matrix).all():
        return None, np.zeros(len(source), bool)
    full = np.eye(3)
    full[: len(matrix)] = matrix
    return full, inliers.reshape(-1).astype(bool)


@compiled()
def _coverage(points, size):  # type: ignore[no-untyped-def]
    """The share of the cells along the border of a 4×4 grid that hold one of `points` [N, 2]."""
    height, width = size
    hit = np.zeros((_CELLS, _CELLS), np.bool_)
    for n in range(len(points)):
        column = min(max(int(points[n, 0] / width * _CELLS), 0), _CELLS - 1)
        row = min(max(int(points[n, 1] / height * _CELLS), 0), _CELLS - 1)
        hit[row, column] = True
    hit[1:-1, 1:-1] = False
    return hit.sum() / (4 * (_CELLS - 1))
