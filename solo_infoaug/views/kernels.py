"""The operations on a card, by kernels in Triton: a launch or two each, in place.

In plain torch two views are some six hundred launches, each of which costs the processor more time
than the card. What is computed is the same, but for the order in which floats are added and for
how quotients are rounded; `functional` has the formulas' sources. All take float32 [B, 3, H, W],
contiguous, and draw nothing.
"""

# no annotations as text, by which the interpreter of Triton 3.1 does not know a constexpr

from itertools import pairwise
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from solo_infoaug._triton import works as works

_BLOCK = 1024  # values or pixels of a program
_OPTIONS: dict[str, Any] = {"BLOCK": _BLOCK, "enable_fp_fusion": False}
_REACH = 3  # pixels, of a box whose Gaussian has a sigma of 2


def resized_crop(image: Tensor, boxes: Tensor, size: int) -> Tensor:
    """See `functional.resized_crop`; boxes are float32."""
    count, channels, height, width = image.shape
    boxes = boxes.contiguous()
    rows = image.new_empty(count, channels, height, size)
    out = image.new_empty(count, channels, size, size)
    across, down = channels * height * size, channels * size * size
    with torch.cuda.device_of(image):
        grid = (count, triton.cdiv(across, _BLOCK))
        _resample[grid](image, rows, boxes, across, width, 1, size, AXIS=1, **_OPTIONS)
        grid = (count, triton.cdiv(down, _BLOCK))
        _resample[grid](rows, out, boxes, down, height, size, size, AXIS=0, **_OPTIONS)
    return out


def jitter(image: Tensor, some: Tensor, turns: Tensor, *_: Tensor) -> None:
    """See `functional.jitter` and `functional.turns_of`, of whose values the first suffices."""
    with torch.cuda.device_of(image):
        _jitter[(len(some),)](
            image, some, turns, len(some), image[0, 0].numel(), num_warps=8, **_OPTIONS
        )


def grayscale(image: Tensor, some: Tensor) -> None:
    """The luminance in all channels."""
    _pointwise(image, some, solarize=False)


def solarize(image: Tensor, some: Tensor) -> None:
    """Invert what is bright."""
    _pointwise(image, some, solarize=True)


def _pointwise(image: Tensor, some: Tensor, solarize: bool) -> None:
    pixels = image[0, 0].numel()
    with torch.cuda.device_of(image):
        grid = (len(some), triton.cdiv(pixels, _BLOCK))
        _levels[grid](image, some, pixels, SOLARIZE=solarize, **_OPTIONS)


def blur(image: Tensor, some: Tensor, sigma: Tensor) -> None:
    """See `functional.blur`: three boxes along each axis."""
    _, channels, height, width = image.shape
    buffers = [image.new_empty(len(some), *image.shape[1:]) for _ in range(2)]
    places = [image, buffers[0], buffers[1], buffers[0], buffers[1], buffers[0], image]
    values = channels * height * width
    grid = (len(some), triton.cdiv(values, _BLOCK))
    with torch.cuda.device_of(image):
        for turn, (source, target) in enumerate(pairwise(places)):
            pixels, inner = (width, 1) if turn < 3 else (height, width)
            _box[grid](
                source, target, some, sigma, values, pixels, inner,
                FIRST=turn == 0, LAST=turn == 5, REACH=_REACH, **_OPTIONS,
            )  # fmt: skip


def flip(image: Tensor, some: Tensor) -> None:
    """Left and right exchanged."""
    _, channels, height, width = image.shape
    pairs = channels * height * (width // 2)
    if pairs:
        with torch.cuda.device_of(image):
            grid = (len(some), triton.cdiv(pairs, _BLOCK))
            _flip[grid](image, some, channels * height, width, **_OPTIONS)


@triton.jit
def _rounded(x):
    """Half to even, of what is less than 2²²."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _clamped(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def _luminance(red, green, blue):
    return 0.299 * red + 0.587 * green + 0.114 * blue


@triton.jit
def _resample(
    source, target, boxes, values, pixels, inner, size, AXIS: tl.constexpr, BLOCK: tl.constexpr
):
    """One axis of an image: [outer, pixels, inner] → [outer, size, inner], `values` in all.

    The columns (axis 1) come first, from [0, 1], and give levels; the rows give [0, 1] again.
    """
    number = tl.program_id(0).to(tl.int64)
    value = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = value < values
    outer = value // (size * inner)
    place = value // inner % size
    start = tl.load(boxes + number * 4 + AXIS)
    length = tl.load(boxes + number * 4 + 2 + AXIS)
    step = length / size
    stretch = tl.maximum(step, 1.0)
    centre = start + (place.to(tl.float32) + 0.5) * step
    first = tl.floor(centre - 2.0 * stretch)
    source += number * (values // size * pixels) + outer * pixels * inner + value % inner
    total = tl.zeros([BLOCK], tl.float32)
    weights = tl.zeros([BLOCK], tl.float32)
    taps = (4.0 * stretch).to(tl.int32) + 2
    for tap in range(taps):
        pixel = first + tap
        distance = tl.abs((pixel + 0.5 - centre) / stretch)
        near = (1.5 * distance - 2.5) * distance * distance + 1.0
        far = ((2.5 - 0.5 * distance) * distance - 4.0) * distance + 2.0
        weight = tl.where(distance < 1.0, near, far)
        seen = (distance < 2.0) & (pixel >= start) & (pixel < start + length)
        weight = tl.where(seen, weight, 0.0)
        level = tl.load(source + pixel.to(tl.int32) * inner, mask=seen & inside, other=0.0)
        total += weight * level
        weights += weight
    total /= weights
    if AXIS == 1:
        total = tl.minimum(tl.maximum(_rounded(total * 255.0), 0.0), 255.0)
    else:
        total = tl.minimum(tl.maximum(_rounded(total), 0.0), 255.0) / 255.0
    tl.store(target + number * values + value, total, mask=inside)


@triton.jit
def _turned_hue(red, green, blue, angle):
    highest = tl.maximum(red, tl.maximum(green, blue))
    lowest = tl.minimum(red, tl.minimum(green, blue))
    spread = highest - lowest
    hue = (red - green) + 4.0 * spread
    hue = tl.where(highest == green, (blue - red) + 2.0 * spread, hue)
    hue = tl.where(highest == red, green - blue, hue)
    hue = hue / tl.maximum(spread, 1e-20) + angle * 0.954929658551372
    hue -= tl.floor(hue / 6.0) * 6.0
    red = lowest + spread * _clamped(tl.abs(tl.abs(hue) - 3.0) - 1.0)
    green = lowest + spread * _clamped(tl.abs(tl.abs(hue - 2.0) - 3.0) - 1.0)
    blue = lowest + spread * _clamped(tl.abs(tl.abs(hue - 4.0) - 3.0) - 1.0)
    return red, green, blue


@triton.jit
def _one_turn(red, green, blue, turn, mean):
    """By the four numbers at `turn`: weights of the image, its mean grey and its grey, and hue."""
    own = tl.load(turn)
    grey = _luminance(red, green, blue)
    other = tl.load(turn + 2) * grey + tl.load(turn + 1) * mean
    red = _clamped(other + own * red)
    green = _clamped(other + own * green)
    blue = _clamped(other + own * blue)
    angle = tl.load(turn + 3)
    if angle != 0.0:
        red, green, blue = _turned_hue(red, green, blue, angle)
    return red, green, blue


@triton.jit(do_not_specialize=["count"])  # which changes from step to step
def _jitter(image, some, turns, count, pixels, BLOCK: tl.constexpr):
    """A program an image: its mean grey when its contrast's turn comes, then all turns."""
    number = tl.program_id(0)
    image += tl.load(some + number) * (3 * pixels)
    turns += number * 4
    contrast = 4
    for turn in range(4):
        contrast = tl.where(tl.load(turns + turn * count * 4 + 1) != 0.0, turn, contrast)
    grey = tl.zeros([BLOCK], tl.float32)
    passed = tl.where(contrast < 4, pixels, 0)
    for start in range(0, passed, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < pixels
        red = tl.load(image + at, mask=inside, other=0.0)
        green = tl.load(image + pixels + at, mask=inside, other=0.0)
        blue = tl.load(image + 2 * pixels + at, mask=inside, other=0.0)
        for turn in range(contrast):
            red, green, blue = _one_turn(red, green, blue, turns + turn * count * 4, 0.0)
        grey += tl.where(inside, _luminance(red, green, blue), 0.0)
    mean = tl.sum(grey, axis=0) / pixels
    for start in range(0, pixels, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < pixels
        red = tl.load(image + at, mask=inside, other=0.0)
        green = tl.load(image + pixels + at, mask=inside, other=0.0)
        blue = tl.load(image + 2 * pixels + at, mask=inside, other=0.0)
        for turn in range(4):
            red, green, blue = _one_turn(red, green, blue, turns + turn * count * 4, mean)
        tl.store(image + at, red, mask=inside)
        tl.store(image + pixels + at, green, mask=inside)
        tl.store(image + 2 * pixels + at, blue, mask=inside)


@triton.jit
def _levels(image, some, pixels, SOLARIZE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < pixels
    at += tl.load(some + tl.program_id(0)) * (3 * pixels)
    red = tl.load(image + at, mask=inside, other=0.0)
    green = tl.load(image + pixels + at, mask=inside, other=0.0)
    blue = tl.load(image + 2 * pixels + at, mask=inside, other=0.0)
    if SOLARIZE:
        red, green, blue = _clamped(red), _clamped(green), _clamped(blue)
        red = tl.where(red < 0.5, red, 1.0 - red)
        green = tl.where(green < 0.5, green, 1.0 - green)
        blue = tl.where(blue < 0.5, blue, 1.0 - blue)
    else:
        red = _luminance(red, green, blue)
        green = red
        blue = red
    tl.store(image + at, red, mask=inside)
    tl.store(image + pixels + at, green, mask=inside)
    tl.store(image + 2 * pixels + at, blue, mask=inside)


@triton.jit
def _box(
    source,
    target,
    some,
    sigma,
    values,
    pixels,
    inner,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    REACH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One box along [outer, pixels, inner] of an image; the first source and last target are all.

    The images between hold those of `some` alone.
    """
    number = tl.program_id(0)
    here = tl.load(some + number)
    variance = tl.load(sigma + number)
    variance = variance * variance / 3.0
    whole = tl.floor((tl.sqrt(12.0 * variance + 1.0) - 1.0) / 2.0)
    fraction = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance)
    radius = whole + fraction / (6.0 * (variance - (whole + 1.0) * (whole + 1.0)))
    value = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = value < values
    place = value // inner % pixels
    row = value - place * inner
    source += (here if FIRST else number.to(tl.int64)) * values
    target += (here if LAST else number.to(tl.int64)) * values
    total = tl.zeros([BLOCK], tl.float32)
    for offset in range(-REACH, REACH + 1):
        weight = tl.minimum(tl.maximum(radius + 1.0 - tl.abs(offset * 1.0), 0.0), 1.0)
        pixel = tl.minimum(tl.maximum(place + offset, 0), pixels - 1)
        total += weight * tl.load(source + row + pixel * inner, mask=inside, other=0.0)
    tl.store(target + value, total / (2.0 * radius + 1.0), mask=inside)


@triton.jit
def _flip(image, some, rows, width, BLOCK: tl.constexpr):
    half = width // 2
    pair = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = pair < rows * half
    left = pair // half * width + pair % half
    right = left + width - 1 - 2 * (pair % half)
    image += tl.load(some + tl.program_id(0)) * (rows * width)
    on_left = tl.load(image + left, mask=inside)
    on_right = tl.load(image + right, mask=inside)
    tl.store(image + left, on_right, mask=inside)
    tl.store(image + right, on_left, mask=inside)
