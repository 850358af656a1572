"""A frame as the decoder gave it, and what the frames of a stream say of their pixels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np

from solo_infoaug.mining.frame import AS_STORED, Orientation

# Other pixel shapes (width over height) are a broken header.
_PIXEL_SHAPES = (0.2, 5.0)
# Transfer functions of high dynamic range (ITU-T H.273): PQ and HLG.
_HDR = {16: "PQ", 18: "HLG"}
_RANGES = {1: "limited", 2: "full"}


@dataclass
class Decoded:
    """A frame as the decoder gave it; `time` in seconds from the first one."""

    number: int
    time: float
    raw: av.VideoFrame
    damaged: bool
    gap: bool
    orientation: Orientation
    pixel_shape: Fraction

    @property
    def geometry(self) -> tuple[object, ...]:
        """Equal for successive frames of one picture; a change of it is a cut."""
        return self.raw.width, self.raw.height, believed(self.pixel_shape), self.orientation


class Said:
    """What the frames of a stream say of their pixels: each value once, in order."""

    def __init__(self) -> None:
        self.sizes: dict[str, None] = {}
        self.formats: dict[str, None] = {}
        self.shapes: dict[Fraction, None] = {}
        self.orientations: dict[Orientation, None] = {}
        self.colours: dict[tuple[int, int, int, int], None] = {}

    def note(self, entry: Decoded) -> None:
        """What one frame says; all that differs is named."""
        raw = entry.raw
        self.sizes[f"{raw.width}x{raw.height}"] = None
        self.formats[raw.format.name] = None
        self.shapes[entry.pixel_shape] = None
        self.orientations[entry.orientation] = None
        self.colours[
            int(raw.color_primaries), int(raw.color_trc), int(raw.colorspace), int(raw.color_range)
        ] = None

    def record(self) -> dict[str, Any]:
        """For the dictionary: what the frames noted say; empty before the first one."""
        if not self.sizes:
            return {}
        names = ("primaries", "transfer", "matrix", "range")
        colours = [
            dict(zip(names, (*colour[:3], _RANGES.get(colour[3], "unspecified")), strict=True))
            for colour in self.colours
        ]
        found: dict[str, Any] = {
            "sizes": list(self.sizes),
            "pixel_format": ", ".join(self.formats),
            "colour": colours[0],
            **shape_record(self.shapes),
        }
        if len(colours) > 1:
            found["other_colours"] = colours[1:]
        if set(self.orientations) != {AS_STORED}:
            found["orientation"] = ", ".join(map(str, self.orientations))
        hdr = dict.fromkeys(_HDR[colour[1]] for colour in self.colours if colour[1] in _HDR)
        if hdr:
            found["high_dynamic_range"] = f"{' and '.join(hdr)}, not tone-mapped"
        return found


def orientation_of(raw: av.VideoFrame) -> Orientation:
    """How a frame is to be shown, by its display matrix (see FFmpeg's libavutil/display.h)."""
    try:
        side: Any = raw.side_data.get("DISPLAYMATRIX")
    except (ValueError, KeyError):  # PyAV does not know the kind of other side data
        turns = round(raw.rotation / 90) % 4
        return (
            AS_STORED,
            Orientation(transposed=True, mirrored_y=True),
            Orientation(mirrored_x=True, mirrored_y=True),
            Orientation(transposed=True, mirrored_x=True),
        )[turns]
    if side is None:
        return AS_STORED
    # A point (x, y) is shown at (a x + c y, b x + d y)
    a, b, _, c, d = np.frombuffer(bytes(side), np.int32)[:5].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)


def believed(shape: Fraction) -> float:
    """The width of a stored pixel over its height; 1 if the value is impossible."""
    return float(shape) if _can_be(shape) else 1.0


def _can_be(shape: Fraction) -> bool:
    return _PIXEL_SHAPES[0] <= float(shape) <= _PIXEL_SHAPES[1]


def shape_record(shapes: Iterable[Fraction]) -> dict[str, str]:
    """For the dictionary: the pixel shapes; empty if all pixels are square."""
    texts = {
        shape: f"{shape.numerator}:{shape.denominator}"
        + ("" if _can_be(shape) else " (not believed: taken as square)")
        for shape in shapes
    }
    return {} if set(texts) <= {Fraction(1)} else {"pixel_shape": ", ".join(texts.values())}
