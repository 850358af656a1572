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
    # Crops overlap, so whole images are shrunk once, and each crop by less than 2
    shrink = max(1, span // side)
    if shrink > 1:
        images = {t: _shrunk(images[t], shrink) for t in np.unique(times).tolist()}
        corners, span = np.round(corners / shrink).astype(int), round(span / shrink)
    for t, (x, y) in zip(times.ravel().tolist(), corners.reshape(-1, 2).tolist(), strict=True):
        yield crop(images[t], x, y, span, side)


def _shrunk(image: np.ndarray, factor: int) -> np.ndarray:
    """Means over squares of `factor` pixels; what is left over at the far edges is cut off."""
    rows, columns = (length // factor for length in image.shape[:2])
    whole = image[: rows * factor, : columns * factor]
    return cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA)


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
    height, width = image.shape[:2]
    if 0 <= top <= height - span and 0 <= left <= width - span:
        square = image[top : top + span, left : left + span]
    else:
        square = image[np.ix_(_reflected(top, span, height), _reflected(left, span, width))]
    # When shrinking by less than 2, bilinear skips hardly any pixel and takes a sixth of the time
    return cv2.resize(square, (side, side), interpolation=cv2.INTER_LINEAR)


def _reflected(first: int, count: int, length: int) -> np.ndarray:
    """int64 [count]: places from `first` on, reflected into [0, length)."""
    last = length - 1
    there = np.abs(np.arange(first, first + count)) % max(2 * last, 1)
    return np.minimum(there, 2 * last - there)
