"""The camera's motion when moving things fill half of the frame: least trimmed squares.

Within a pair of frames, a homography can bend to things that move little, so it follows neither
them nor the background. Over a window, what rests is easily told: it is what keeps moving as the
camera does, in all pairs of frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from solo_infoaug.mining.camera import (
    CameraStep,
    fit_noise,
    least_squares_step,
    own_motion,
    rms,
)
from solo_infoaug.mining.gate import smoothed

# If more of the points than this share follow the pairs' own fits, these are good.
_MAX_SHARE = 2 / 3
# The camera is first fitted to this share of the patches, those nearest to the border, and then to
# those that move least beyond it.
_BORDER, _QUIET = 0.3, 0.4
# Half of those near the border must be among the latter. They must also leave this much of the
# noise of the pairs' fits: on real video, most windows are left with .75 to .95 of it, because
# patches average their points. Or the pairs' fits follow what is in the middle of the frame, and
# hold still no more than this share of the border that the new ones hold still.
_MIN_OF_BORDER, _MAX_NOISE, _MAX_OF_MIDDLE = 0.5, 0.65, 0.5
# Rounds, of which the last are those that change fewer than this share of the chosen patches.
_ROUNDS, _SAME = 4, 0.02
# About this many patches are enough.
_PATCHES = 600


def fit_over_window(
    path: np.ndarray,
    visible: np.ndarray,
    camera: Sequence[CameraStep | None],
    seed: int,
    size: tuple[int, int],
    model: str,
) -> list[CameraStep | None] | None:
    """The camera's steps, fitted to the patches that rest over the whole window.

    None if most points follow the given steps, or if the new ones are not clearly better. The
    method is that of Rousseeuw & Van Driessen (1999), "A fast algorithm for the minimum covariance
    determinant estimator": their concentration steps, for a model of each pair of frames.

    Args:
        path: float64 [T, P, 2], (x, y) in pixels.
        visible: bool [T, P].
        camera: T − 1 steps that were fitted pair by pair; None if unknown.
        seed: place of the frame in which all patches are visible.
        size: (height, width) of the frame in pixels.
        model: the camera's, see `fit_camera`.
    """
    shares = [step.share for step in camera if step is not None]
    if model == "none" or not shares or np.mean(shares) > _MAX_SHARE:
        return None
    every = max(1, path.shape[1] // _PATCHES)
    path, visible = np.ascontiguousarray(path[:, ::every]), visible[:, ::every]
    edge = np.minimum(path[seed], np.array(size[::-1]) - path[seed]).min(axis=1)
    border = edge <= np.quantile(edge, _BORDER)
    chosen, count = border, int(_QUIET * len(edge))
    found = _fitted(path, visible, chosen, model)
    for _ in range(_ROUNDS):
        before, chosen = chosen, _quietest(path, visible, found, count)
        if (chosen & ~before).sum() <= _SAME * count:
            break
        found = _fitted(path, visible, chosen, model)
    around = chosen[border].mean()
    known = sum(step is not None for step in found) >= len(shares)
    if around < _MIN_OF_BORDER or not known:
        return None
    better = fit_noise(found) <= _MAX_NOISE * fit_noise(camera)
    theirs = _quietest(path, visible, camera, count)[border].mean()
    return found if better or theirs <= _MAX_OF_MIDDLE * around else None


def _fitted(
    path: np.ndarray, visible: np.ndarray, chosen: np.ndarray, model: str
) -> list[CameraStep | None]:
    """The camera's steps by the `chosen` patches, bool [P]."""
    return [
        least_squares_step(path[t, both], path[t + 1, both], model)
        for t, both in enumerate(chosen & visible[1:] & visible[:-1])
    ]


def _quietest(
    path: np.ndarray, visible: np.ndarray, camera: Sequence[CameraStep | None], count: int
) -> np.ndarray:
    """bool [P]: the `count` patches that move least beyond the camera; none if too few are seen."""
    motion, known = own_motion(path, visible, camera)
    seen = known.sum(axis=1)
    enough = seen >= 0.6 * max(seen.max(initial=0), 1)
    speed = np.where(enough, rms(smoothed(motion, known), known), np.inf)
    chosen = np.zeros(len(speed), bool)
    if count and enough.sum() >= count:
        chosen[np.argsort(speed, kind="stable")[:count]] = True
    return chosen
