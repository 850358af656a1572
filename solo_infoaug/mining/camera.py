"""Camera motion: one robust global model a frame pair, fitted to all tracks, and its removal.

A moving camera moves everything at once and makes all pairs of patches dependent. In the
stabilised frame, the background rests.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

# RANSAC's tolerance in pixels.
_TOLERANCE = 1.0
_LEAST_POINTS = 12
# A frame pair's model is trusted if so large a share of points follows it, and these points lie in
# so large a share of the cells along the frame's border, where the background is.
_LEAST_SHARE = 0.25
_LEAST_COVERAGE = 0.3
_CELLS = 4
# What a camera does at most from one frame to the next.
_STRETCH = 0.01
_ZOOM = 0.1
# Of the length of a vector whose two coordinates are normal: its RMS over its median.
_RMS_OF_MEDIAN = (2 / (2 * np.log(2))) ** 0.5
# A shot is stabilised if so large a share of its frame pairs can be.
_LEAST_PAIRS = 0.8


@dataclass(frozen=True)
class CameraMotion:
    """What the camera did in a shot.

    `to_first` float64 [T, 3, 3] maps the pixels of each frame to those of the first; identities
    where the motion is not removed. `record` says what was fitted, how well, and why not.
    """

    to_first: np.ndarray
    record: dict[str, object]
    # RMS miss of the points that follow the motion, pixels a frame: what the tracker adds. 0 where
    # nothing was fitted.
    noise: float = 0.0

    def stabilise(self, tracks: np.ndarray) -> np.ndarray:
        """float64 [T, N, 2]: where the points of `tracks` [T, N, 2] lie in the first frame."""
        flat = np.concatenate([tracks, np.ones((*tracks.shape[:2], 1))], axis=2)
        mapped = np.einsum("tij,tnj->tni", self.to_first, flat)
        return mapped[..., :2] / mapped[..., 2:]


def estimate_camera(
    tracks: np.ndarray, visible: np.ndarray, size: tuple[int, int], model: str = "affine"
) -> CameraMotion:
    """Fit the motion of the camera to the tracks of a shot.

    For each pair of successive frames a model is fitted to all points by RANSAC, and a second one
    to those that do not follow it; the background is the one whose points reach further around the
    frame's border. Where no model is convincing in too many frame pairs, because the foreground
    dominates, nothing is removed.

    Args:
        tracks: [T, N, 2], (x, y) in pixels.
        visible: bool [T, N].
        size: (height, width) of the frames in pixels.
        model: "none", "similarity", "affine" or "homography".
    """
    frames = len(tracks)
    still = np.repeat(np.eye(3)[None], frames, axis=0)
    if model == "none":
        return CameraMotion(still, {"model": "none"})
    steps = still.copy()  # of frame t onto frame t - 1
    shares, errors, fitted = [], [], 0
    for t in range(1, frames):
        both = visible[t] & visible[t - 1]
        found = _background(tracks[t][both], tracks[t - 1][both], size, model)
        if found is not None:
            steps[t], share, error = found
            shares.append(share)
            errors.append(error)
            fitted += 1
    noise = float(np.sqrt(np.mean(np.square(errors)))) if errors else 0.0
    record: dict[str, object] = {
        "model": model,
        "pairs": frames - 1,
        "fitted": fitted,
        "inliers": round(float(np.mean(shares)), 4) if shares else 0.0,
        "rms_px": round(noise, 4),
    }
    if fitted < _LEAST_PAIRS * (frames - 1):
        return CameraMotion(still, {**record, "removed": False, "why": "no common background"})
    to_first = still.copy()
    for t in range(1, frames):
        to_first[t] = to_first[t - 1] @ steps[t]
        to_first[t] /= to_first[t, 2, 2]
    return CameraMotion(to_first, {**record, "removed": True}, noise)


def _background(
    source: np.ndarray, target: np.ndarray, size: tuple[int, int], model: str
) -> tuple[np.ndarray, float, float] | None:
    """The background's motion, the share of points that follow it, their RMS miss in pixels."""
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    rest = np.arange(len(source))
    for _ in range(2):
        if len(rest) < _LEAST_POINTS:
            break
        matrix, inliers = _fit(source[rest], target[rest], model)
        if matrix is None:
            break
        coverage = _coverage(source[rest[inliers]], size)
        if best is None or coverage > best[0]:
            best = coverage, matrix, rest[inliers]
        rest = rest[~inliers]
    if best is None:
        return None
    coverage, matrix, followers = best
    share = len(followers) / len(source)
    if share < _LEAST_SHARE or coverage < _LEAST_COVERAGE:
        return None
    flat = np.concatenate([source[followers], np.ones((len(followers), 1))], axis=1) @ matrix.T
    miss = flat[:, :2] / flat[:, 2:] - target[followers]
    # From the median, so that slow objects among the followers do not count as noise.
    rms = float(np.median(np.linalg.norm(miss, axis=1))) * _RMS_OF_MEDIAN
    return matrix, share, rms


def _fit(
    source: np.ndarray, target: np.ndarray, model: str
) -> tuple[np.ndarray | None, np.ndarray]:
    """[3, 3] and which points follow it. OpenCV's RANSAC starts from a fixed seed."""
    a, b = source.astype(np.float64), target.astype(np.float64)
    if model == "homography":
        matrix, inliers = cv2.findHomography(a, b, cv2.RANSAC, _TOLERANCE)
    else:
        fit = cv2.estimateAffine2D if model == "affine" else cv2.estimateAffinePartial2D
        matrix, inliers = fit(a, b, method=cv2.RANSAC, ransacReprojThreshold=_TOLERANCE)
    if matrix is None or not np.isfinite(matrix).all():
        return None, np.zeros(len(source), bool)
    full = np.eye(3)
    full[: len(matrix)] = matrix
    if not _plausible(full):
        return None, np.zeros(len(source), bool)
    return full, inliers.reshape(-1).astype(bool)


def _plausible(matrix: np.ndarray) -> bool:
    """Whether a camera can do this from one frame to the next: hardly zoom, and not stretch.

    A stretch explains two objects that go different ways as well as a model of a camera would.
    """
    large, small = np.linalg.svd(matrix[:2, :2], compute_uv=False)
    return bool(small > 0 and large / small <= 1 + _STRETCH and abs(large - 1) <= _ZOOM)


def _coverage(points: np.ndarray, size: tuple[int, int]) -> float:
    """The share of the cells along the border of a 4×4 grid that hold one of `points`."""
    height, width = size
    column = np.clip(points[:, 0] / width * _CELLS, 0, _CELLS - 1).astype(int)
    row = np.clip(points[:, 1] / height * _CELLS, 0, _CELLS - 1).astype(int)
    hit = np.zeros((_CELLS, _CELLS), bool)
    hit[row, column] = True
    border = np.ones((_CELLS, _CELLS), bool)
    border[1:-1, 1:-1] = False
    return float(hit[border].mean())
