"""Crops: the pixels of patches along their tracks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import cv2
import numpy as np


def pick_frames(visible: np.ndarray, keyframes: list[int], seed: int, count: int) -> np.ndarray:
    """int64 [P, S]: `count` of `keyframes` for each patch, spread over where it is visible.

    `visible` is bool [T, P]. The first is the seed frame. If a patch is visible in fewer keyframes
    than `count`, some occur twice.
    """
    patterns, which = np.unique(visible[keyframes].T, axis=0, return_inverse=True)
    found = np.empty((len(patterns), count), np.int64)
    for row, there in zip(found, patterns, strict=True):
        rest = [t for t, seen in zip(keyframes, there, strict=True) if seen and t != seed]
        spread = np.linspace(0, max(len(rest) - 1, 0), max(count - 1, 0)).round().astype(int)
        row[:] = [seed, *(rest[i] if rest else seed for i in spread)]
    return found[which]


def crops(
    images: Mapping[int, np.ndarray],
    times: np.ndarray,
    path: np.ndarray,
    size: int,
    side: int,
    context: float = 1.0,
) -> np.ndarray:
    """Square crops of patches along their tracks.

    A patch is shifted to lie inside the image. Its context beyond the border is reflected, so that
    the patch is always in the middle of its crop. If crops were shifted instead, neighbours at the
    border would have identical crops.

    Args:
        images: uint8 [H, W, 3], by their places.
        times: int [P, S], places in the window.
        path: [T, P, 2] centres (x, y).
        size: side of the patches in pixels, at most min(H, W).
        side: side of the resized crops, pixels.
        context: side of a crop before resizing, in sides of a patch.

    Returns:
        uint8 [P, S, 3, side, side].
    """
    found = np.empty((*times.shape, 3, side, side), np.uint8)
    cut = squares(images, times, path, size, side, context)
    for place, square in zip(np.ndindex(times.shape), cut, strict=True):
        found[place] = square.transpose(2, 0, 1)
    return found


def squares(
    images: Mapping[int, np.ndarray],
    times: np.ndarray,
    path: np.ndarray,
    size: int,
    side: int,
    context: float,
) -> Iterator[np.ndarray]:
    """uint8 [side, side, 3] of each patch and time, in the order of `times`."""
    height, width = next(iter(images.values())).shape[:2]
    centres = path[times, np.arange(len(times))[:, None]]
    corners = np.clip(np.round(centres - size / 2).astype(int), 0, (width - size, height - size))
    span = round(context * size)
    corners -= (span - size) // 2
    if span >= 2 * side:
        # Crops overlap, so whole images are shrunk, each once; places are rounded to their pixels
        images = {t: _shrunk(images[t], side / span) for t in np.unique(times).tolist()}
        shrunk = np.array(next(iter(images.values())).shape[1::-1])
        corners, span = np.round(corners * shrunk / (width, height)).astype(int), side
    for t, (x, y) in zip(times.ravel().tolist(), corners.reshape(-1, 2).tolist(), strict=True):
        yield crop(images[t], x, y, span, side)


def _shrunk(image: np.ndarray, factor: float) -> np.ndarray:
    height, width = (max(1, round(length * factor)) for length in image.shape[:2])
    # In halves first, which OpenCV has a fast path for; below a factor of 2, bilinear skips hardly
    # any pixel
    while (half := np.array(image.shape[1::-1]) // 2)[0] >= width and half[1] >= height:
        image = cv2.resize(image, half.tolist(), interpolation=cv2.INTER_AREA)
    return cv2.resize(image, (width, height))


def crop(image: np.ndarray, left: int, top: int, span: int, side: int) -> np.ndarray:
    """A square of an image, resized; beyond the border the image is reflected.

    Args:
        image: uint8 [H, W, 3].
        left: left edge of the square, pixels; it may be outside the image.
        top: top edge of the square, pixels; it may be outside the image.
        span: side of the square, pixels; at most about twice `side`.
        side: side of the resized square, pixels.

    Returns:
        uint8 [side, side, 3].
    """
    (rows, above, below), (columns, before, after) = (
        _reflected(first, span, length)
        for first, length in zip((top, left), image.shape[:2], strict=True)
    )
    square = image[rows, columns]
    if above or below or before or after:
        border = above, below, before, after
        square = cv2.copyMakeBorder(square, *border, cv2.BORDER_REFLECT_101)
        y, x = (max(first - part.start, 0) for first, part in ((top, rows), (left, columns)))
        square = square[y : y + span, x : x + span]
    # When shrinking by less than 2, bilinear skips hardly any pixel and takes a sixth of the time
    return cv2.resize(square, (side, side), interpolation=cv2.INTER_LINEAR)


def _reflected(first: int, count: int, length: int) -> tuple[slice, int, int]:
    """Where the pixels from `first` on come from in an image of `length`, and how many of them are
    reflected at its two ends. The slice holds all that the reflections show."""
    before, after = max(-first, 0), max(first + count - length, 0)
    start = max(min(first, length - 1 - after), 0) if after else max(first, 0)
    end = min(max(first + count, before + 1), length)
    return slice(start, end), before, after
