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
    every = squares(images, times, path, size, side, context)
    for place, square in zip(np.ndindex(times.shape), every, strict=True):
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
    images = {t: images[t] for t in np.unique(times).tolist()}
    if span >= 2 * side:
        # Crops overlap, so whole images are shrunk, each once; places are rounded to their pixels
        images = {t: _shrunk(image, side / span) for t, image in images.items()}
        shrunk = np.array(next(iter(images.values())).shape[1::-1])
        corners, span = np.round(corners * shrunk / (width, height)).astype(int), side
    for t, (x, y) in zip(times.ravel().tolist(), corners.reshape(-1, 2).tolist(), strict=True):
        square = cut(images[t], x, y, span)
        yield square if span == side else cv2.resize(square, (side, side))


def _shrunk(image: np.ndarray, factor: float) -> np.ndarray:
    height, width = (max(1, round(length * factor)) for length in image.shape[:2])
    # In halves first, which OpenCV has a fast path for; below a factor of 2, bilinear skips hardly
    # any pixel
    while (half := np.array(image.shape[1::-1]) // 2)[0] >= width and half[1] >= height:
        image = cv2.resize(image, half.tolist(), interpolation=cv2.INTER_AREA)
    return cv2.resize(image, (width, height))


def cut(image: np.ndarray, left: int, top: int, span: int) -> np.ndarray:
    """A square of an image, reflected beyond the border.

    More than half of its width and of its height must be inside the image, or all of the image's.

    Args:
        image: uint8 [H, W, 3].
        left: left edge of the square, pixels; it may be outside the image.
        top: top edge of the square, pixels; it may be outside the image.
        span: side of the square, pixels.

    Returns:
        uint8 [span, span, 3], a view where no pixel is reflected.
    """
    height, width = image.shape[:2]
    right, bottom = left + span, top + span
    inside = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    over = max(-top, 0), max(bottom - height, 0), max(-left, 0), max(right - width, 0)
    if not any(over):
        return inside
    return cv2.copyMakeBorder(inside, *over, cv2.BORDER_REFLECT_101)
