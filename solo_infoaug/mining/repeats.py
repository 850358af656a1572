"""Repeated frames: film shown at a higher rate, such as 25 frames a second at 50.

Between a frame and its repetition nothing moves. The miner would take this for motion that stops
and starts. After encoding, a repetition is nearly the same, but not bit for bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import cv2
import numpy as np

from solo_infoaug.mining.frame import Frame

# A frame's change: 99th percentile of the differences of its grey values from the frame before.
_PERCENTILE = 99
# A repetition changes by at most this share of the change of the moving frames around it, and by at
# most this many grey values: it is 8 at CRF 30, and 16 between frames of a noisy, still camera.
_MOST_CHANGE, _MOST_NOISE = 0.35, 10.0
# Grey values; smaller motion cannot be told from the effects of encoding.
_LEAST_MOTION = 6.0
# There must be motion within this many frames before and after: longer stretches stand still.
_NEAR = 4
# Repetitions are regular: minimum number within this many frames before and _NEAR after.
_LEAST, _BEFORE = 3, 8


def without_repeats(frames: Iterable[Frame], counts: dict[str, int]) -> Iterator[Frame]:
    """Leave out frames that repeat the one before, and count them: `counts["repeated_frames"]`."""
    held: deque[Frame] = deque()
    changes: list[float] = []
    before: np.ndarray | None = None

    def settled(stop: int) -> Iterator[Frame]:
        while held and len(changes) - len(held) < stop:
            place = len(changes) - len(held)
            frame = held.popleft()
            if _is_repeat(changes, place):
                counts["repeated_frames"] += 1
            else:
                yield frame

    for frame in frames:
        seen = frame.points
        if before is None or frame.gap:
            yield from settled(len(changes))
            changes = [float("inf")]
        else:
            difference = cv2.absdiff(seen, before)
            rank = _PERCENTILE * difference.size // 100
            changes.append(float(np.partition(difference, rank, axis=None)[rank]))
        before = seen
        held.append(frame)
        yield from settled(len(changes) - 2 * _NEAR)
    yield from settled(len(changes))


def _is_repeat(changes: list[float], place: int) -> bool:
    if not _rests(changes, place):
        return False
    around = range(max(0, place - _BEFORE), min(len(changes), place + _NEAR + 1))
    return sum(_rests(changes, i) for i in around) >= _LEAST


def _rests(changes: list[float], place: int) -> bool:
    """Whether a frame changes far less than some just before and just after it."""
    before, after = changes[max(0, place - _NEAR) : place], changes[place + 1 : place + 1 + _NEAR]
    moved, moves = max(before, default=float("inf")), max(after, default=0.0)
    # the last frames may be repetitions with no motion after them
    ends = len(after) < _NEAR and moves < _LEAST_MOTION
    motion = moved if ends else min(moved, moves)
    known = _LEAST_MOTION <= motion < float("inf")
    return known and changes[place] <= min(_MOST_CHANGE * motion, _MOST_NOISE)
