"""Frames that come twice: film shown at a higher rate, as 25 frames a second are at 50.

Between a frame and its repetition nothing moves, which the miner would take for motion that stops
and goes on. Encoded, a repetition is not the same to the bit, but nearly so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np

from solo_infoaug.mining.frame import Frame

# A change is the 99th percentile of how much grey values differ from those of the frame before.
_PERCENTILE = 99
# Of a repetition it is at most this share of that of the frames around it, which move; and at most
# so many grey values: encoded at CRF 30 it is 8, and 16 between frames of a noisy, still camera.
_MOST_CHANGE, _MOST_NOISE = 0.35, 10.0
# Grey values; where less moves, nothing can be told from what encoding does.
_LEAST_MOTION = 6.0
# A frame must have moved among so many before and after it: longer stretches stand still.
_NEAR = 4
# Repetitions come regularly: at least so many within so many frames before, and _NEAR after.
_LEAST, _BEFORE = 3, 8


def without_repeats(frames: Iterable[Frame], counts: dict[str, int]) -> Iterator[Frame]:
    """The frames without those that repeat the one before; `counts["repeated_frames"]` grows."""
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
        seen = frame.points.astype(np.int16)
        if before is None or frame.gap:
            yield from settled(len(changes))
            changes = [float("inf")]
        else:
            changes.append(float(np.percentile(np.abs(seen - before), _PERCENTILE)))
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
    # the last frames may be repetitions, after which nothing comes that moves
    ends = len(after) < _NEAR and moves < _LEAST_MOTION
    motion = moved if ends else min(moved, moves)
    known = _LEAST_MOTION <= motion < float("inf")
    return known and changes[place] <= min(_MOST_CHANGE * motion, _MOST_NOISE)
