"""Windows: stretches of a video's frames, cut where the scene changes; they may overlap."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from threading import Lock

import cv2
import numpy as np
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

from solo_infoaug.mining.config import MineConfig
from solo_infoaug.mining.frame import Frame, grey, shrunk
from solo_infoaug.mining.picture import Rectangle, active_picture, perhaps_barred, whole

# The cut detector looks at frames of this height, whatever the video's size.
_DETECTOR_HEIGHT = 90
# Maximum number of full frames that a window keeps to take crops from.
KEYFRAMES = 8


@dataclass
class Window:
    """Consecutive frames without a cut, whose patches are those of frame `seed`.

    `shot` counts the shots of the video. `frame_size` is (height, width) of the source frames in
    pixels. `small` holds every frame, shrunk for tracking: uint8 [T, h, w] grey, or [T, h, w, 3]
    RGB. `keyframes` holds some in full size, that of the seed among them, by their place in the
    window: uint8 [H, W, 3] RGB. `numbers` are the frames' numbers in the video. `within` is the
    part that shows the scene, None for the whole frame: `small` is then only that part, and the
    keyframes are whole.
    """

    shot: int
    seed: int
    frame_size: tuple[int, int]
    small: list[np.ndarray] = field(default_factory=list)
    keyframes: Mapping[int, np.ndarray] = field(default_factory=dict)
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
    cutter, detector = _Cutter(config, colour), _cut_detector(config)
    delay = detector.event_buffer_length
    for place, frame in enumerate(frames):
        if cutter.must_cut_before(frame):
            yield from cutter.end_shot()
            detector = _cut_detector(config)
        seen = _shrunk_for_cuts(frame)
        cutter.add(frame, perhaps_barred(seen))
        # Only the number of the frame counts; the rate does not.
        for cut in detector.process_frame(FrameTimecode(place, fps=25.0), seen):
            if cut.frame_num > cutter.first:
                yield from cutter.end_shot(cut.frame_num - cutter.first)
        yield from cutter.full_windows(delay)
    yield from cutter.end_shot()


def _cut_detector(config: MineConfig) -> AdaptiveDetector:
    return AdaptiveDetector(adaptive_threshold=config.cut_threshold, min_scene_len=8)


class _Cutter:
    """The frames from the beginning of the next window on; makes windows of them.

    `first` is the place of the first of these among all frames.
    """

    def __init__(self, config: MineConfig, colour: bool) -> None:
        self._length, self._min_frames = config.window, config.min_frames
        self._track_size, self._layout = config.track_size, "rgb24" if colour else "gray"
        self._spacing = spacing = max(1, config.window // KEYFRAMES)
        # so that windows share their keyframes
        self._stride = max(spacing, config.stride - config.stride % spacing)
        self._pending: list[_Pending] = []
        self._shot, self.first = 0, 0
        self._covered = 0  # number of pending frames that were in a window already
        self._picture: Rectangle | None = None  # the last active picture that was found

    def must_cut_before(self, frame: Frame) -> bool:
        """Whether this frame cannot belong to the shot of the last one."""
        return bool(self._pending) and (frame.gap or frame.size != self._pending[-1].size)

    def add(self, frame: Frame, barred: bool) -> None:
        self._pending.append(_Pending(frame, self._track_size, self._layout, barred))

    def full_windows(self, delay: int) -> Iterator[Window]:
        """The windows that are full; a cut may still be reported `delay` frames later."""
        # Older frames stay in this shot.
        if (settled := len(self._pending) - 1 - delay) >= 0:
            self._pending[settled].settle(settled % self._spacing == 0)
        # One more frame, so that a shot of exactly this length is seen to end with this window.
        if len(self._pending) > self._length + delay:
            yield self._window(self._length)
            self._go_on(self._stride, max(0, self._length - self._stride))

    def end_shot(self, count: int | None = None) -> Iterator[Window]:
        """The remaining windows of a shot that ends with the first `count` frames, or with all."""
        count = len(self._pending) if count is None else count
        rest, self._pending = self._pending[count:], self._pending[:count]
        while len(self._pending) >= max(self._min_frames, self._covered + 1):
            taken = min(self._length, len(self._pending))
            yield self._window(taken)
            step = min(self._stride, taken)
            self._go_on(step, taken - step)
        self._go_on(len(self._pending), 0)
        self._pending, self._shot = rest, self._shot + 1

    def _go_on(self, step: int, covered: int) -> None:
        """The next window begins `step` frames later; `covered` of its frames were in this one."""
        self._pending, self.first = self._pending[step:], self.first + step
        self._covered = covered

    def _window(self, count: int) -> Window:
        taken, spacing = self._pending[:count], self._spacing
        for place, entry in enumerate(taken):
            entry.settle(place % spacing == 0)
        keyframes = _Keyframes({i: entry for i, entry in enumerate(taken) if entry.kept})
        everything = whole(taken[0].size)
        found = everything
        if 2 * sum(entry.perhaps_barred for entry in taken) > len(taken):
            found = active_picture(list(keyframes.values()), self._picture)
            self._picture = self._picture if found == everything else found
        return Window(
            shot=self._shot,
            seed=count // 2 - count // 2 % spacing,
            frame_size=taken[0].size,
            small=[entry.shrunk(found) for entry in taken],
            keyframes=keyframes,
            numbers=[entry.number for entry in taken],
            within=None if found == everything else found,
        )


class _Keyframes(Mapping[int, np.ndarray]):
    """Full frames by their place in the window, each converted when it is first asked for."""

    def __init__(self, frames: dict[int, _Pending]) -> None:
        self._frames = frames

    def __getitem__(self, place: int) -> np.ndarray:
        return self._frames[place].full

    def __iter__(self) -> Iterator[int]:
        return iter(self._frames)

    def __len__(self) -> int:
        return len(self._frames)


class _Pending:
    """A frame whose place in its shot is not known yet.

    `settle` says whether it is `kept` in full; if not, the decoded frame is released. A frame that
    may have bars has it until its windows are known. Windows are made in one thread and mined in
    another, and share frames where they overlap: hence the lock.
    """

    def __init__(self, frame: Frame, track_size: int, layout: str, barred: bool) -> None:
        self.number, self.size, self.perhaps_barred = frame.number, frame.size, barred
        self.kept = False
        self._track_size, self._layout = track_size, layout
        self._small = frame.image(_shrunk_size(frame.size, track_size), layout)
        self._parts: dict[Rectangle, np.ndarray] = {}
        self._full: np.ndarray | None = None
        self._frame: Frame | None = frame
        self._lock = Lock()

    def settle(self, keep: bool) -> None:
        with self._lock:
            if keep and self._frame is not None:
                self.kept = True
            if not self.kept and not self.perhaps_barred:
                self._frame = None

    @property
    def full(self) -> np.ndarray:
        """uint8 [H, W, 3] RGB of a frame that is `kept`."""
        with self._lock:
            if self._full is None:
                assert self._frame is not None
                self._full = self._frame.image()
                if not self.perhaps_barred:
                    self._frame = None
            return self._full

    def shrunk(self, picture: Rectangle) -> np.ndarray:
        """The active picture of the frame, shrunk for tracking."""
        if picture == whole(self.size):
            return self._small
        if picture not in self._parts:
            size = _shrunk_size((picture.height, picture.width), self._track_size)
            with self._lock:
                self._parts = {picture: self._part(picture, size)}
        return self._parts[picture]

    def _part(self, picture: Rectangle, size: tuple[int, int]) -> np.ndarray:
        if self._frame is not None and self.perhaps_barred:
            source, part = self._frame.image(layout=self._layout), picture
        else:  # a frame that did not look barred, among others that did
            source = self._small
            down, across = np.divide(source.shape[:2], self.size)
            top, left = round(picture.top * down), round(picture.left * across)
            bottom = round((picture.top + picture.height) * down)
            right = round((picture.left + picture.width) * across)
            part = Rectangle(top, left, bottom - top, right - left)
        if part.height > size[0]:
            return shrunk(part.of(source), size, self._layout)
        return cv2.resize(part.of(source), size[::-1])


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
