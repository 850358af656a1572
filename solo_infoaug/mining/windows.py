"""Windows: a video's frames, cut where the scene changes, in overlapping stretches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

from solo_infoaug.mining.config import MineConfig
from solo_infoaug.mining.frame import Frame, grey

# The cut detector looks at frames of this height, whatever the video's size.
_DETECTOR_HEIGHT = 90
# A window keeps at most so many full frames to take crops from.
KEYFRAMES = 8


@dataclass
class Window:
    """Consecutive frames without a cut, whose patches are those of frame `seed`.

    `shot` counts the shots of the video. `small` holds every frame, shrunk for tracking: uint8
    [T, h, w] grey, or [T, h, w, 3] RGB. `keyframes` holds some in full size, that of the seed among
    them, by their place in the window: uint8 [H, W, 3] RGB. `numbers` are the frames' numbers in
    the video.
    """

    shot: int
    seed: int
    small: list[np.ndarray] = field(default_factory=list)
    keyframes: dict[int, np.ndarray] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.small)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the source frames in pixels."""
        height, width = self.keyframes[self.seed].shape[:2]
        return height, width

    @property
    def scale(self) -> np.ndarray:
        """float64 [2]: source pixels per pixel of a small frame, along x and y."""
        (height, width), (h, w) = self.size, self.small[0].shape[:2]
        return np.array([width / w, height / h])

    @property
    def grey(self) -> list[np.ndarray]:
        """The small frames, uint8 [h, w]."""
        return [grey(image) for image in self.small]


def windows(frames: Iterable[Frame], config: MineConfig, colour: bool = False) -> Iterator[Window]:
    """Cut `frames` into shots and these into windows, holding little more than one window.

    Windows begin every `config.stride` frames of a shot. The last one ends with the shot and may be
    shorter, but has at least `config.min_frames` frames; a shorter shot is skipped. A change of the
    frame size is a cut, and so is a gap where frames are missing. The small frames are RGB with
    `colour`, and grey without, which takes a third of the time and memory.
    """
    length, min_frames = config.window, config.min_frames
    spacing = max(1, length // KEYFRAMES)
    # so that windows share their keyframes
    stride = max(spacing, config.stride - config.stride % spacing)

    threshold = config.cut_threshold
    fresh_detector = partial(AdaptiveDetector, adaptive_threshold=threshold, min_scene_len=8)
    detector = fresh_detector()
    delay = detector.event_buffer_length
    pending: list[_Pending] = []  # from the beginning of the next window on
    shot, first = 0, 0  # number of the shot; place of pending[0] among all frames
    covered = 0  # so many of the pending ones were in a window already

    def window(count: int) -> Window:
        taken = pending[:count]
        for place, entry in enumerate(taken):
            entry.settle(place % spacing == 0)
        return Window(
            shot=shot,
            seed=count // 2 - count // 2 % spacing,
            small=[entry.small for entry in taken],
            keyframes={i: entry.full for i, entry in enumerate(taken) if entry.full is not None},
            numbers=[entry.number for entry in taken],
        )

    def end_shot(count: int) -> Iterator[Window]:
        """The windows that are left of a shot whose last frame is pending[count − 1]."""
        nonlocal pending, shot, first, covered
        rest, pending = pending[count:], pending[:count]
        while len(pending) >= max(min_frames, covered + 1):
            taken = min(length, len(pending))
            yield window(taken)
            step = min(stride, taken)
            pending, first, covered = pending[step:], first + step, taken - step
        first += len(pending)
        pending, shot, covered = rest, shot + 1, 0

    for place, frame in enumerate(frames):
        if pending and (frame.gap or frame.size != pending[-1].size):
            yield from end_shot(len(pending))
            detector = fresh_detector()
        pending.append(_Pending(frame, config.track_size, "rgb24" if colour else "gray"))
        for cut in _cuts(detector, place, frame):
            if cut > first:
                yield from end_shot(cut - first)
        # The detector knows of a cut `delay` frames later; what is older stays where it is.
        if (settled := len(pending) - 1 - delay) >= 0:
            pending[settled].settle(settled % spacing == 0)
        # One frame more, so that a shot of this length exactly is seen to end with this window.
        if len(pending) > length + delay:
            yield window(length)
            pending, first, covered = pending[stride:], first + stride, max(0, length - stride)
    yield from end_shot(len(pending))


class _Pending:
    """A frame whose place in its shot is not known yet; `settle` lets go of the decoded frame."""

    def __init__(self, frame: Frame, track_size: int, layout: str) -> None:
        self.number, self.size = frame.number, frame.size
        factor = min(1.0, track_size / min(frame.size))
        height, width = (max(1, round(length * factor)) for length in frame.size)
        self.small = frame.image((height, width), layout)
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
