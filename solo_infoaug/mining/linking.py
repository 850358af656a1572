"""Links: which patch of a window continues a patch of the window before it."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from solo_infoaug.mining.storing import Stored


class Links:
    """The links of a video's windows, in the order in which the windows are stored."""

    def __init__(self, frame_step: int) -> None:
        self._step = frame_step
        self._before: Stored | None = None
        self._found: list[np.ndarray] = []

    def add(self, window: Stored) -> None:
        """Link the next window to the one before."""
        count = sum(map(len, self._found))
        if self._before is not None:
            later = link(self._before, window, self._step)
            self._found[-1] = np.where(later >= 0, later + count, -1)
        self._before = window
        self._found.append(np.full(len(window.twins), -1))

    @property
    def following(self) -> np.ndarray:
        """int64 [N]: the patch that continues each, counted through the video; −1 for none."""
        return np.concatenate(self._found)


def link(before: Stored, after: Stored, frame_step: int = 1) -> np.ndarray:
    """int64 [P]: the places in `after` of the patches that continue those of `before`, or −1.

    Tracks are compared in the first frame of `after` if the windows overlap, and otherwise at the
    last frame of `before`, one frame earlier. Two patches are linked if they are each other's
    nearest, and nearer than half a side. None is if `after` is of another shot, or begins more than
    one frame after `before` ends.
    """
    earlier, later = before.record, after.record
    frames = int(earlier["frames"])
    apart = (int(later["first"]) - int(earlier["first"])) // frame_step
    found = np.full(len(before.twins), -1)
    if earlier["shot"] != later["shot"] or not 0 < apart <= frames:
        return found
    at = min(apart, frames - 1)
    # Patches that are tracked in the compared frames
    here = np.flatnonzero(before.arrays["visible"][at])
    there = np.flatnonzero(after.arrays["visible"][0])
    ends, starts = before.arrays["tracks"][at, here], after.arrays["tracks"][0, there]
    if len(ends) == 0 or len(starts) == 0:
        return found
    distance, nearest = cKDTree(starts).query(ends)
    _, back = cKDTree(ends).query(starts)
    mutual = back[nearest] == np.arange(len(ends))
    linked = mutual & (distance < before.patches["size"][here] / 2)
    found[here[linked]] = there[nearest[linked]]
    return found
