"""The estimator's input: a patch's own motion, depth and colour, one step for each frame pair."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from solo_infoaug.mining.gate import grid_points, sample


def colour_changes(
    frames: Sequence[np.ndarray], path: np.ndarray, known: np.ndarray, side: float
) -> np.ndarray:
    """How the mean colour of each patch changes, without the change that all share.

    Exposure, white balance and a common lamp change all patches by the same factor. In logarithms,
    that change is the median of a step.

    `frames` are uint8 [h, w, 3] RGB; `path` [T, P, 2] is (x, y) in their pixels, as is the `side`
    of the patches; `known` bool [P, T − 1] is whether a patch's step to the next frame is known.

    Returns:
        float64 [P, T − 1, 3], natural logarithms of ratios; 0 if unknown.
    """
    # One grey level of 255 is added, so that black has a logarithm
    levels = np.stack(
        [
            np.log1p(sample(frame, grid_points(at, side)).astype(np.float64).mean(axis=1))
            for frame, at in zip(frames, path, strict=True)
        ]
    )
    steps = np.diff(levels, axis=0).swapaxes(0, 1)
    for t in range(steps.shape[1]):
        if known[:, t].any():
            steps[:, t] -= np.median(steps[known[:, t], t], axis=0)
    return np.asarray(steps * known[..., None])


def represent(
    steps: np.ndarray, known: np.ndarray, representation: str
) -> tuple[np.ndarray, np.ndarray]:
    """The estimator's input from the steps [P, T, D], and where it is known, bool [P, T].

    Unknown steps are 0. A `representation` is "velocity" (the steps), "position" (their sums) or
    "both" (sums and steps, each scaled to spread 1).
    """
    if representation == "velocity":
        return np.ascontiguousarray(steps), np.ascontiguousarray(known)
    places = steps.cumsum(axis=1) * known[..., None]
    if representation == "both":
        spread = [float(part[known].std()) if known.any() else 0.0 for part in (places, steps)]
        units = [max(value, 1e-9) for value in spread]
        places = np.concatenate([places / units[0], steps / units[1]], axis=2)
    return np.ascontiguousarray(places), np.ascontiguousarray(known)
