"""Shots: a video's frames, cut where the scene changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

from solo_infoaug.mining.video import Frame

# The cut detector looks at frames of this height, whatever the video's size.
_DETECTOR_HEIGHT = 144
# This many full frames a shot, at most, are kept to take crops from.
_KEYFRAMES = 16


@dataclass
class Shot:
    """Consecutive frames without a cut, at most `max_frames` of them.

    `small` holds every frame, shrunk for tracking: uint8 [T, h, w] grey, or [T, h, w, 3] RGB.
    `keyframes` holds some in full size, by their place in the shot: uint8 [H, W, 3] RGB.
    `numbers` are the frames' numbers in the video.
    """

    index: int
    small: list[np.ndarray] = field(default_factory=list)
    keyframes: dict[int, np.ndarray] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.small)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the source frames in pixels."""
        height, width = self.keyframes[0].shape[:2]
        return height, width

    @property
    def scale(self) -> np.ndarray:
        """float64 [2]: source pixels per pixel of a small frame, along x and y."""
        (height, width), (h, w) = self.size, self.small[0].shape[:2]
        return np.array([width / w, height / h])


def split_shots(
    frames: Iterable[Frame],
    *,
    cut_threshold: float = 3.0,
    min_frames: int = 32,
    max_frames: int = 96,
    track_size: int = 480,
    colour: bool = False,
) -> Iterator[Shot]:
    """Cut `frames` into shots, holding one shot at a time.

    A shot longer than `max_frames` goes on as the next one; one of fewer than `min_frames` frames
    is skipped. A change of the frame size and a gap (damaged or missing frames) are cuts as well.
    The small frames are RGB with `colour`, and grey without, which takes a third of the time and
    memory.
    """

    def fresh_detector() -> AdaptiveDetector:
        return AdaptiveDetector(adaptive_threshold=cut_threshold, min_scene_len=8)

    detector = fresh_detector()
    delay = detector.event_buffer_length
    stride = max(1, max_frames // _KEYFRAMES)
    pending: list[_Pending] = []
    first = 0  # place of pending[0] among all frames
    found = 0

    def take(count: int) -> Iterator[Shot]:
        nonlocal pending, first, found
        taken, pending = pending[:count], pending[count:]
        first += len(taken)
        if len(taken) < min_frames:
            return
        for place, entry in enumerate(taken):
            entry.settle(place % stride == 0)
        yield Shot(
            index=found,
            small=[entry.small for entry in taken],
            keyframes={i: entry.full for i, entry in enumerate(taken) if entry.full is not None},
            numbers=[entry.number for entry in taken],
        )
        found += 1

    for place, frame in enumerate(frames):
        if pending and (frame.gap or frame.size != pending[-1].size):
            yield from take(len(pending))
            detector = fresh_detector()
        pending.append(_Pending(frame, track_size, "rgb24" if colour else "gray"))
        for cut in _cuts(detector, place, frame):
            yield from take(cut - first)
        # The detector knows of a cut `delay` frames later; what is older stays where it is.
        if (settled := len(pending) - 1 - delay) >= 0:
            pending[settled].settle(settled % stride == 0)
        if len(pending) > max_frames + delay:
            yield from take(max_frames)
    while pending:
        yield from take(max_frames)


class _Pending:
    """A frame whose place in its shot is not known yet; `settle` lets go of the decoded frame."""

    def __init__(self, frame: Frame, track_size: int, layout: str) -> None:
        self.number, self.size = frame.number, frame.size
        self.small = frame.image(_shrunk(*frame.size, track_size), layout)
        self.full: np.ndarray | None = None
        self._frame: Frame | None = frame

    def settle(self, keep: bool) -> None:
        if self._frame is not None and keep:
            self.full = self._frame.image()
        self._frame = None


def _cuts(detector: AdaptiveDetector, place: int, frame: Frame) -> list[int]:
    height, width = frame.size
    factor = min(1.0, _DETECTOR_HEIGHT / height)
    seen = frame.image((round(height * factor), max(2, round(width * factor))), "bgr24")
    # Only the number of the frame counts; the rate is nominal.
    cuts = detector.process_frame(FrameTimecode(place, fps=25.0), seen)
    return [cut.frame_num for cut in cuts]


def _shrunk(height: int, width: int, track_size: int) -> tuple[int, int]:
    factor = min(1.0, track_size / min(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))
