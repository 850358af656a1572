"""Crops: the pixels of patches along their tracks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


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
    framed, corners, span = _framed(images, times, path, size, side, context)
    if span == side:
        for t, image in framed.items():
            at = times == t
            x, y = corners[at].T
            planes = np.ascontiguousarray(image.transpose(2, 0, 1))
            found[at] = sliding_window_view(planes, (side, side), (1, 2))[:, y, x].swapaxes(0, 1)
    else:
        for place, square in zip(
            np.ndindex(times.shape), _cut(framed, times, corners, span, side), strict=True
        ):
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
    framed, corners, span = _framed(images, times, path, size, side, context)
    return _cut(framed, times, corners, span, side)


def _cut(
    framed: dict[int, np.ndarray], times: np.ndarray, corners: np.ndarray, span: int, side: int
) -> Iterator[np.ndarray]:
    for t, (x, y) in zip(times.ravel().tolist(), corners.reshape(-1, 2).tolist(), strict=True):
        square = framed[t][y : y + span, x : x + span]
        # Below a factor of 2, bilinear skips hardly any pixel and takes a sixth of the time
        yield cv2.resize(square, (side, side), interpolation=cv2.INTER_LINEAR)


def _framed(
    images: Mapping[int, np.ndarray],
    times: np.ndarray,
    path: np.ndarray,
    size: int,
    side: int,
    context: float,
) -> tuple[dict[int, np.ndarray], np.ndarray, int]:
    """The images of `times` with a reflected border, the crops' corners in them, int64 [P, S, 2]
    (x, y), and their span in pixels: `side` if crops are smaller than half of their squares.
    """
    height, width = next(iter(images.values())).shape[:2]
    centres = path[times, np.arange(len(times))[:, None]]
    corners = np.clip(np.round(centres - size / 2).astype(int), 0, (width - size, height - size))
    span = round(context * size)
    corners -= (span - size) // 2
    images = {t: images[t] for t in np.unique(times).tolist()}
    end = width, height
    if span >= 2 * side:
        # Crops overlap, so whole images are shrunk, each once; places are rounded to their pixels
        end = tuple(max(1, round(length * side / span)) for length in (width, height))
        images = {t: _shrunk(image, end) for t, image in images.items()}
        corners, span = np.round(corners * np.array(end) / (width, height)).astype(int), side
    border = int(max(0, -corners.min(initial=0), (corners + span - end).max(initial=0)))
    if border:
        images = {t: _reflected(image, border) for t, image in images.items()}
    return images, corners + border, span


def _reflected(image: np.ndarray, border: int) -> np.ndarray:
    return cv2.copyMakeBorder(image, border, border, border, border, cv2.BORDER_REFLECT_101)


def _shrunk(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image, uint8 [H, W, ...], shrunk to `size` (width, height).

    It is halved first, which OpenCV has a fast path for. Below a factor of 2, bilinear
    interpolation skips hardly any pixel, and takes a sixth of the time that areas do.
    """
    while (half := np.array(image.shape[1::-1]) // 2)[0] >= size[0] and half[1] >= size[1]:
        image = cv2.resize(image, half.tolist(), interpolation=cv2.INTER_AREA)
    return cv2.resize(image, size)
