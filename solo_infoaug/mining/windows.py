"""Windows: stretches of a video's frames, cut where the scene changes; they may overlap."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import cv2
import numpy as np
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

from solo_infoaug.mining.config import MineConfig
from solo_infoaug.mining.frame import Frame, grey
from solo_infoaug.mining.picture import Rectangle, active_picture, perhaps_barred, whole

# The cut detector looks at frames of this height, whatever the video's size.
_DETECTOR_HEIGHT = 90
# Maximum number of full frames that a window keeps to take crops from.
KEYFRAMES = 8


@dataclass
class Window:
    """Consecutive frames without a cut, whose patches are those of frame `seed`.

    `shot` counts the shots of the video. `small` holds every frame, shrunk for tracking: uint8
    [T, h, w] grey, or [T, h, w, 3] RGB. `keyframes` holds some in full size, that of the seed among
    them, by their place in the window: uint8 [H, W, 3] RGB. `numbers` are the frames' numbers in
    the video. `within` is the part that shows the scene, None for the whole frame: `small` is then
    only that part, and the keyframes are whole.
    """

    shot: int
    seed: int
    small: list[np.ndarray] = field(default_factory=list)
    keyframes: dict[int, np.ndarray] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)
    within: Rectangle | None = None

    def __len__(self) -> int:
        return len(self.small)

    @property
    def picture(self) -> Rectangle:
        """The active picture: the part of the source frames that shows the scene."""
        return self.within or whole(self.frame_size)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the active picture in source pixels."""
        return self.picture.height, self.picture.width

    @property
    def frame_size(self) -> tuple[int, int]:
        """(height, width) of the source frames in pixels."""
        height, width = self.keyframes[self.seed].shape[:2]
        return height, width

    @property
    def corner(self) -> np.ndarray:
        """float64 [2]: where the active picture begins in the source frames, (x, y) in pixels."""
        return np.array([self.picture.left, self.picture.top], np.float64)

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
    """Cut `frames` into shots, and shots into windows. Memory holds little more than one window.

    Windows begin every `config.stride` frames of a shot. The last one ends with the shot and may be
    shorter, but has at least `config.min_frames` frames; a shorter shot is skipped. A change of the
    frame size is a cut, and so is a gap where frames are missing. The small frames are RGB with
    `colour`, and otherwise grey, which takes a third of the time and memory.
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
    covered = 0  # number of pending frames that were in a window already
    picture: Rectangle | None = None  # the last active picture that was found

    def window(count: int) -> Window:
        nonlocal picture
        taken = pending[:count]
        for place, entry in enumerate(taken):
            entry.settle(place % spacing == 0)
        keyframes = {i: entry.full for i, entry in enumerate(taken) if entry.full is not None}
        found = whole(taken[0].size)
        if 2 * sum(entry.perhaps_barred for entry in taken) > len(taken):
            found = active_picture(list(keyframes.values()), picture)
            picture = picture if found == whole(taken[0].size) else found
        return Window(
            shot=shot,
            seed=count // 2 - count // 2 % spacing,
            small=[entry.shrunk(found) for entry in taken],
            keyframes=keyframes,
            numbers=[entry.number for entry in taken],
            within=None if found == whole(taken[0].size) else found,
        )

    def end_shot(count: int) -> Iterator[Window]:
        """The remaining windows of a shot whose last frame is pending[count − 1]."""
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
        seen = _shrunk_for_cuts(frame)
        layout = "rgb24" if colour else "gray"
        pending.append(_Pending(frame, config.track_size, layout, perhaps_barred(seen)))
        # Only the number of the frame counts; the rate does not.
        for cut in detector.process_frame(FrameTimecode(place, fps=25.0), seen):
            if cut.frame_num > first:
                yield from end_shot(cut.frame_num - first)
        # The detector reports a cut `delay` frames later; older frames stay in this shot.
        if (settled := len(pending) - 1 - delay) >= 0:
            pending[settled].settle(settled % spacing == 0)
        # One more frame, so that a shot of exactly this length is seen to end with this window.
        if len(pending) > length + delay:
            yield window(length)
            pending, first, covered = pending[stride:], first + stride, max(0, length - stride)
    yield from end_shot(len(pending))


class _Pending:
    """A frame whose place in its shot is not known yet; `settle` releases the decoded frame.

    A frame that may have bars is kept until its windows are known.
    """

    def __init__(self, frame: Frame, track_size: int, layout: str, barred: bool) -> None:
        self.number, self.size, self.perhaps_barred = frame.number, frame.size, barred
        self._track_size, self._layout = track_size, layout
        self._small = frame.image(_shrunk_size(frame.size, track_size), layout)
        self._parts: dict[Rectangle, np.ndarray] = {}
        self.full: np.ndarray | None = None
        self._frame: Frame | None = frame

    def settle(self, keep: bool) -> None:
        if self._frame is not None and keep and self.full is None:
            self.full = self._frame.image()
        if not self.perhaps_barred:
            self._frame = None

    def shrunk(self, picture: Rectangle) -> np.ndarray:
        """The active picture of the frame, shrunk for tracking."""
        if picture == whole(self.size):
            return self._small
        if picture not in self._parts:
            size = _shrunk_size((picture.height, picture.width), self._track_size)
            self._parts = {picture: self._part(picture, size)}
        return self._parts[picture]

    def _part(self, picture: Rectangle, size: tuple[int, int]) -> np.ndarray:
        if self._frame is not None:
            source, part = self._frame.image(layout=self._layout), picture
        else:  # a frame that did not look barred, among others that did
            source = self._small
            down, across = np.divide(source.shape[:2], self.size)
            top, left = round(picture.top * down), round(picture.left * across)
            bottom = round((picture.top + picture.height) * down)
            right = round((picture.left + picture.width) * across)
            part = Rectangle(top, left, bottom - top, right - left)
        smaller = part.height > size[0]
        how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
        return cv2.resize(part.of(source), size[::-1], interpolation=how)


def _shrunk_size(size: tuple[int, int], track_size: int) -> tuple[int, int]:
    """(height, width) of a picture of `size`, shrunk for tracking."""
    factor = min(1.0, track_size / min(size))
    height, width = (max(1, round(length * factor)) for length in size)
    return height, width


def _shrunk_for_cuts(frame: Frame) -> np.ndarray:
    """uint8 [h, w, 3] BGR, the input of the cut detector."""
    height, width = frame.size
    factor = min(1.0, _DETECTOR_HEIGHT / height)
    return frame.image((round(height * factor), max(2, round(width * factor))), "bgr24")
