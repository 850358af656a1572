"""The active picture: the part of a frame that shows the scene, without the bars around it.

Bars (letterbox, pillarbox, blurred copies of the video at its sides) rest or move in their own
way, and would count as background. They end at a straight seam along a whole side of the picture. A
scene that is only dark or plain near its border has no such seam.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Maximum share of a side that is bar, at either end.
_MOST = 0.45
# Bars thinner than this many pixels stay. Scaling and compression blur the inner edge of a bar, so
# this many more pixels, plus this share of the side, are cut off with it.
_LEAST, _MARGIN, _MARGIN_SHARE = 3, 2, 0.002
# Number of lines across a bar that are examined, and maximum number of images.
_LINES, _IMAGES = 64, 8
# A bar has one colour: maximum deviation of its pixels (grey levels), and minimum share of pixels
# within it; the second share allows for text, if the other side has a bar of the same width.
_TOLERANCE, _CONSTANT, _WITH_TEXT = 3, 0.98, 0.7
# A dark scene is uneven on a larger scale: side of the squares whose means are compared, maximum
# deviation (grey levels), and the share of squares that may exceed it.
_SQUARE, _EVEN, _UNEVEN_SQUARES = 8, 0.6, 0.15
# Black is up to this level. Brighter bars need one at both sides.
_BLACK = 20
# The seam: within this many pixels plus this share of a side, the share of the line that is bar
# falls below the third number. With a bar at one side only, it falls below the fourth, and the
# picture must move there.
_SEAM, _SEAM_SHARE, _INSIDE, _INSIDE_ALONE = 6, 0.01, 0.6, 0.2
# A copy out of focus: maximum mean of its second differences (grey levels), and how many times as
# large the picture's must be, or how many times without that maximum. At the seam, second
# differences exceed the fourth number along this share of it.
_BLURRED, _SHARPER, _MUCH_SHARPER, _EDGE, _EDGE_SHARE = 0.8, 3.0, 10.0, 4.0, 0.7
# Compression leaves traces of the picture over this many pixels before the seam.
_TRACES = 16
# Two bars have the same width up to this many pixels plus this share of the side.
_UNEVEN, _UNEVEN_SHARE = 2, 0.004
# A picture whose edges differ by at most this many pixels from the one before is the same.
_SAME = 4
# The quick look: lines along the border of a small image, grey levels.
_QUICK_PLAIN, _QUICK_BLURRED = 3.0, 5.0


class Rectangle(NamedTuple):
    """A part of a frame, pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, image: np.ndarray) -> np.ndarray:
        """That part of `image` [H, W, ...]."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]

    def __str__(self) -> str:
        return f"{self.width}x{self.height}+{self.left}+{self.top}"


def whole(size: tuple[int, int]) -> Rectangle:
    """All of a frame of (height, width)."""
    return Rectangle(0, 0, *size)


def perhaps_barred(small: np.ndarray) -> bool:
    """Whether bars may lie around the picture: a quick look at the border of a shrunk frame.

    `small` is uint8 [h, w, 3]. True for many frames without bars. False for a frame with bars only
    if text covers their outer edge.
    """
    green = small[..., 1]
    left, right, top, bottom = green[:, 0], green[:, -1], green[0], green[-1]
    if (_smooth(left) and _smooth(right)) or (_smooth(top) and _smooth(bottom)):
        return True
    return any(
        line.mean() <= _BLACK and line.std() <= _QUICK_PLAIN for line in (left, right, top, bottom)
    )


def _smooth(line: np.ndarray) -> bool:
    values = line.astype(np.int16)
    bends = np.abs(values[2:] - 2 * values[1:-1] + values[:-2])
    return int(bends.sum()) <= _QUICK_BLURRED * len(bends)


def active_picture(images: Sequence[np.ndarray], before: Rectangle | None = None) -> Rectangle:
    """The part of a shot's frames that shows the scene; the whole frame if no bars are found.

    Bars have one colour, or are a blurred copy of the video. They must end at a seam along the
    whole side, in all images together, because a dark region of one may be bright in another.

    `images` are some frames, uint8 [H, W, 3]. The part `before`, found earlier in the same video,
    is used again if these, too dark perhaps, show no seam and nothing that contradicts it.
    """
    height, width = images[0].shape[:2]
    chosen = np.unique(np.linspace(0, len(images) - 1, _IMAGES).round().astype(int))
    greys = np.stack([images[place][..., 1] for place in chosen])
    found = whole((height, width))
    # The sides first: in a frame with bars all around, those above and below cross them
    for axis in (1, 0, 1):
        part = greys[:, found.top : found.top + found.height, found.left : found.left + found.width]
        first, last = _bars(part if axis else part.swapaxes(1, 2))
        if axis:
            found = found._replace(left=found.left + first, width=found.width - first - last)
        else:
            found = found._replace(top=found.top + first, height=found.height - first - last)
    if before is not None and found != before and _fits(before, found, greys):
        return before
    return found


def _fits(before: Rectangle, found: Rectangle, greys: np.ndarray) -> bool:
    """Whether images [T, H, W] whose picture seems to be `found` may have that of `before`."""
    height, width = greys.shape[1:]
    if before.top + before.height > height or before.left + before.width > width:
        return False
    ends = [(r.top, r.left, r.top + r.height, r.left + r.width) for r in (before, found)]
    if np.abs(np.subtract(ends[0], ends[1])).max() <= _SAME:
        return True
    if found != whole((height, width)):
        return False
    # No seam was found: everything outside must still have one colour, as black as before
    top, left = before.top, before.left
    outside = [greys[:, :top], greys[:, top + before.height :]]
    outside += [greys[:, :, :left], greys[:, :, left + before.width :]]
    return all(
        part.size == 0
        or (
            float(np.median(part)) <= _BLACK
            and np.mean(part <= np.median(part) + _TOLERANCE) >= _CONSTANT
        )
        for part in outside
    )


def _bars(greys: np.ndarray) -> tuple[int, int]:
    """Number of columns of images [T, H, W] that are bar, at the left and at the right."""
    height, width = greys.shape[1:]
    if min(height, width) < 4 * _SEAM:
        return 0, 0
    lines = np.unique(np.linspace(0, height - 1, _LINES + 2).round().astype(int)[1:-1])
    left = np.ascontiguousarray(greys[:, lines]).astype(np.int16)  # [T, L, W]
    right = left[..., ::-1]
    plain = _plain_bars(left, right)
    return plain if plain != (0, 0) else _blurred_bars(left, right)


def _plain_bars(left: np.ndarray, right: np.ndarray) -> tuple[int, int]:
    """The widths of bars of one colour."""
    (one, other), width = (_Side(side) for side in (left, right)), left.shape[2]
    uneven = _UNEVEN + _UNEVEN_SHARE * width
    widths = []
    for side, opposite in ((one, other), (other, one)):
        found, there = side.seam(), opposite.seam()
        if there > found + uneven and abs(side.level - opposite.level) <= _TOLERANCE:
            # Text in the bar, or a picture that is also black there
            near = side.seam(there, uneven)
            found = near or found or (there if side.plain(there) else 0)
        widths.append(found)
    if all(widths):
        bright = max(one.level, other.level) > _BLACK
        if abs(one.level - other.level) > _TOLERANCE or (
            bright and abs(widths[0] - widths[1]) > uneven
        ):
            return 0, 0
        return _inside(widths[0], width), _inside(widths[1], width)
    for number, (side, found) in enumerate(zip((one, other), widths, strict=True)):
        if found and side.level <= _BLACK and side.alone(found):
            inner = _inside(found, width)
            return (inner, 0) if number == 0 else (0, inner)
    return 0, 0


def _inside(width: int, side: int) -> int:
    return width + _MARGIN + round(_MARGIN_SHARE * side)


class _Side:
    """Lines [T, L, W] that begin at one side of the frame, and where they are bar of one colour."""

    def __init__(self, lines: np.ndarray) -> None:
        most = int(_MOST * lines.shape[2]) + 1
        self._reach = _SEAM + round(_SEAM_SHARE * lines.shape[2])
        lines = lines[..., : most + self._reach + 1]
        level = np.median(lines[..., :2], axis=(1, 2)).astype(np.int16)
        self.level = int(np.median(level))
        self._lines = lines
        bar = (np.abs(lines - level[:, None, None]) <= _TOLERANCE).all(axis=0)
        self._share = bar.mean(axis=0)
        self._mean = np.cumsum(self._share) / np.arange(1, len(self._share) + 1)

    def seam(self, near: int = 0, within: float = 0.0) -> int:
        """Where the bar ends, or 0. With `near`: near that column, with text allowed in the bar."""
        least = _WITH_TEXT if near else _CONSTANT
        inside = np.flatnonzero(self._share <= _INSIDE)
        if near:
            inside = inside[inside >= near - within]
        if not len(inside) or (near and inside[0] > near + within):
            return 0
        end = int(inside[0])
        begin = max(0, end - self._reach)
        # Compression leaves traces of the picture before the seam; the seam is the strongest edge
        edge = np.abs(np.diff(self._lines[..., begin : end + self._reach], axis=2))
        end = max(end, begin + 1 + int(edge.mean(axis=(0, 1)).argmax()))
        if end < _LEAST or self._mean[max(begin, min(end, _LEAST)) - 1] < least:
            return 0
        if near:
            return end
        sharp = self._share[begin:end].max() >= 0.95 * _CONSTANT
        return end if sharp and self._even(max(begin, _LEAST)) else 0

    def plain(self, width: int) -> bool:
        """Whether the whole width has one colour."""
        return bool(self._mean[width - 1] >= _CONSTANT) and self._even(width)

    def _even(self, width: int) -> bool:
        """Whether it has one colour on a larger scale, and is not only dark and flat."""
        count, lines = len(self._lines), self._lines.shape[1] // _SQUARE
        part = self._lines[:, : lines * _SQUARE, :width]
        rows = part.reshape(count, lines, _SQUARE, width).mean(axis=2)
        columns = np.arange(0, width, _SQUARE)[: max(1, width // _SQUARE)]
        sums = np.add.reduceat(rows, columns, axis=2)
        squares = sums / np.diff([*columns, width])
        off = np.abs(squares - np.median(squares, axis=(1, 2), keepdims=True)) > _EVEN
        return bool(off.mean() <= _UNEVEN_SQUARES)

    def alone(self, width: int) -> bool:
        """Whether the seam is certainly that of a bar: the picture moves all along it."""
        at = slice(width, width + self._reach)
        spread = np.ptp(self._lines[..., at], axis=0).max(axis=1)
        return bool(
            self._share[at].min() <= _INSIDE_ALONE
            and np.mean(spread > 4 * _TOLERANCE) >= 1 - _INSIDE_ALONE
        )


def _blurred_bars(left: np.ndarray, right: np.ndarray) -> tuple[int, int]:
    """The widths of bars that show something blurred, the same at both sides."""
    width = left.shape[2]
    uneven = _UNEVEN + _UNEVEN_SHARE * width
    bend = np.abs(left[..., 4:] - 2 * left[..., 2:-2] + left[..., :-4]).mean(axis=0)  # [L, W - 4]
    bend = np.pad(bend, ((0, 0), (2, 2)))
    detail = bend.mean(axis=0)
    inner = float(np.median(detail[width // 2 - width // 20 : width // 2 + width // 20 + 1]))
    if inner < _SHARPER * min(detail[: _LEAST + 8].mean(), detail[-_LEAST - 8 :].mean()):
        return 0, 0
    edge = (np.maximum(bend[:, :-1], bend[:, 1:]) >= _EDGE).mean(axis=0)
    widths = []
    for lines, line, soft in ((left, edge, detail), (right, edge[::-1], detail[::-1])):
        seam = np.flatnonzero(line[: int(_MOST * width)] >= _EDGE_SHARE)
        seam = seam[seam >= 8 + _LEAST]
        if not len(seam):
            return 0, 0
        inside = float(np.median(soft[int(seam[0]) + 6 : width // 2 + 1]))
        sharp = np.flatnonzero(soft[seam[0] : seam[0] + _TRACES] >= 0.5 * inside)
        end = int(seam[0] + (sharp[0] if len(sharp) else 0))
        outside = float(soft[2 : max(8, end - _TRACES)].mean())
        if outside > max(_BLURRED, inside / _MUCH_SHARPER) or inside < _SHARPER * outside:
            return 0, 0
        # A dark scene has less contrast, but the same share of it is detail
        dim = (
            lines[..., 2 : max(8, end - _TRACES)].std() / lines[..., width // 4 : -width // 4].std()
        )
        if inside * dim < _SHARPER * outside:
            return 0, 0
        widths.append(end + 4)
    if abs(widths[0] - widths[1]) > uneven:
        return 0, 0
    return _inside(widths[0], width), _inside(widths[1], width)
