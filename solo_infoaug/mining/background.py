"""The patches of a window, without the background's motion."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from solo_infoaug.mining.camera import camera_steps, fit_noise, own_motion, remove_parallax
from solo_infoaug.mining.config import MineConfig
from solo_infoaug.mining.trackers import Tracks
from solo_infoaug.mining.trimmed import fit_over_window
from solo_infoaug.mining.windows import Window


@dataclass(frozen=True)
class Patches:
    """The P patches of a window and their own motion; units are source pixels.

    `size` is the side of a patch. `motion` float64 [P, T − 1, 2] is 0 in steps that are not
    `known`, bool [P, T − 1]: `tracks.visible` is about frames, and a step needs more than two
    frames in which the patch is visible, namely the camera's motion between them.
    """

    window: Window
    tracks: Tracks
    size: int
    motion: np.ndarray
    known: np.ndarray

    @property
    def centres(self) -> np.ndarray:
        """float64 [P, 2]: (x, y) in the seed frame."""
        return np.asarray(self.tracks.path[self.window.seed])

    @property
    def background(self) -> np.ndarray:
        """float64 [P, T − 1, 2]: what a step is beyond the own motion; 0 where it is not known."""
        steps = np.diff(self.tracks.path, axis=0).transpose(1, 0, 2)
        return np.asarray((steps - self.motion) * self.known[..., None])


def without_background(
    window: Window, tracks: Tracks, size: int, config: MineConfig
) -> tuple[Patches, dict[str, Any]]:
    """The patches with their own motion, and a record of the camera."""
    path, visible = tracks.path, tracks.visible
    shares = [step.share for step in tracks.camera if step is not None]
    over_window = fit_over_window(
        path, visible, tracks.camera, window.seed, window.size, config.camera
    )
    if over_window is not None:
        tracks = replace(tracks, camera=over_window)
    motion, known = own_motion(path, visible, tracks.camera)
    tracked = known.sum(axis=1) >= config.min_frames - 1
    modes, least = 0, config.min_motion * min(window.size)
    steps = camera_steps(tracks.camera, window.size)
    # If the camera moves less than what counts as motion, so does its parallax
    moves = float(np.sqrt(np.nanmean((steps**2).sum(axis=2)))) if np.isfinite(steps).any() else 0.0
    if config.parallax and tracked.any() and moves >= least:
        # Half of the least motion that counts: slower parallax does no harm
        noise = max(fit_noise(tracks.camera), 0.5 * least)
        centres = tracks.path[window.seed]
        motion[tracked], modes = remove_parallax(
            motion[tracked],
            known[tracked],
            centres[tracked],
            window.size,
            noise,
            steps.mean(axis=1),
            config.parallax,
        )
    camera = {
        "model": config.camera,
        "pairs": len(tracks.camera),
        "fitted": sum(step is not None for step in tracks.camera),
        "inliers": round(float(np.mean(shares)), 4) if shares else 0.0,
        "over_window": over_window is not None,
        "rms_px": round(fit_noise(tracks.camera), 4),
        "parallax": modes,
    }
    return Patches(window, tracks, size, motion, known), {"camera": camera}
