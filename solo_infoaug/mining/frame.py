"""One frame of a video, from any source, and which frames of a stretch are taken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import av
import cv2
import numpy as np

# A frame with a smaller standard deviation of its grey values (of 255) shows nothing to track.
_BLANK = 2.0


class Orientation(NamedTuple):
    """How stored pixels are shown: transposed first, then mirrored."""

    transposed: bool = False
    mirrored_x: bool = False
    mirrored_y: bool = False

    def __str__(self) -> str:
        return _ORIENTATIONS[self]

    def shown(self, stored: np.ndarray) -> np.ndarray:
        """[H, W, ...] as stored → as shown."""
        shown = stored.swapaxes(0, 1) if self.transposed else stored
        shown = shown[:, ::-1] if self.mirrored_x else shown
        return np.ascontiguousarray(shown[::-1] if self.mirrored_y else shown)


AS_STORED = Orientation()
_ORIENTATIONS: dict[tuple[bool, bool, bool], str] = {
    (False, False, False): "as stored",
    (False, True, False): "mirrored left to right",
    (False, False, True): "mirrored top to bottom",
    (False, True, True): "turned by 180 degrees",
    (True, True, False): "turned by 90 degrees clockwise",
    (True, False, True): "turned by 90 degrees counterclockwise",
    (True, False, False): "transposed",
    (True, True, True): "transposed and turned by 180 degrees",
}


@dataclass(frozen=True)
class Frame:
    """A decoded frame. `image` converts it to arrays; nothing is converted before that.

    `number` counts all frames of the video. `gap` says that the frame does not follow the one
    before it, because frames between them are missing or damaged, or time jumps: a shot begins.
    `pixel_shape` is the width of a stored pixel divided by its height.
    """

    number: int
    _raw: av.VideoFrame
    gap: bool = False
    pixel_shape: float = 1.0
    orientation: Orientation = AS_STORED

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels, as shown: square pixels, turned as the file asks for."""
        height, width = self._raw.height, max(1, round(self._raw.width * self.pixel_shape))
        return (width, height) if self.orientation.transposed else (height, width)

    def image(self, size: tuple[int, int] | None = None, layout: str = "rgb24") -> np.ndarray:
        """The frame as an array, resized to `size` (height, width) if given.

        `layout` is FFmpeg's name of a pixel format: "rgb24" or "bgr24", uint8 [H, W, 3], or
        "gray", uint8 [H, W]. Transparent pixels are blended with black.
        """
        height, width = size or self.size
        if self.orientation.transposed:
            height, width = width, height
        alpha = has_alpha(self._raw)
        array = self._raw.to_ndarray(
            format="rgba" if alpha else layout,
            width=width,
            height=height,
            interpolation="AREA",
            threads=1,  # more would take cores from other workers
        )
        return self.orientation.shown(_over_black(array, layout) if alpha else array)

    @property
    def points(self) -> np.ndarray:
        """uint8 [96, 160]: grey values of some pixels, as stored, for a quick look."""
        return self._raw.to_ndarray(
            format="gray", width=160, height=96, interpolation="POINT", threads=1
        )

    @property
    def blank(self) -> bool:
        """Whether the frame is a single grey, as before a fade, judged by 32×32 of its pixels."""
        few = self._raw.to_ndarray(
            format="gray", width=32, height=32, interpolation="POINT", threads=1
        )
        return float(few.std()) < _BLANK


def has_alpha(raw: av.VideoFrame) -> bool:
    """Whether a decoded frame may be transparent somewhere."""
    return raw.format.has_palette or any(part.is_alpha for part in raw.format.components)


def grey(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W] of [H, W] or of RGB [H, W, 3]."""
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def shrunk(image: np.ndarray, size: tuple[int, int], layout: str) -> np.ndarray:
    """An array as `Frame.image` returns it, shrunk in the same way.

    FFmpeg takes an eighth of the time that OpenCV takes for areas.
    """
    height, width = size
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(image), layout).to_ndarray(
        width=width, height=height, interpolation="AREA", threads=1
    )


def _over_black(rgba: np.ndarray, layout: str) -> np.ndarray:
    alpha = rgba[..., 3:].astype(np.uint16)
    rgb = ((rgba[..., :3] * alpha + 127) // 255).astype(np.uint8)
    if layout == "rgb24":
        return rgb
    code = {"bgr24": cv2.COLOR_RGB2BGR, "gray": cv2.COLOR_RGB2GRAY}[layout]
    return np.asarray(cv2.cvtColor(rgb, code))


def every_nth(frames: Iterable[Frame], step: int) -> Iterator[Frame]:
    """Frames whose number is a multiple of `step`. Gaps before frames that are left out are kept.

    A change from or to blank frames is also a gap, because a shot that contains blank frames loses
    all its tracks there.
    """
    gap, blank = False, None
    for frame in frames:
        before, blank = blank, frame.blank
        gap = gap or frame.gap or (before is not None and before != blank)
        if frame.number % step == 0:
            yield replace(frame, gap=gap)
            gap = False
