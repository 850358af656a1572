"""What is done to images, as pure functions: crop, jitter, blur, and how boxes are drawn.

Cropping, jitter and blur are functions of our own, because Kornia's are not Pillow's (docs/views.md
has the measurements).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

BLUR_SIGMA = (0.1, 2.0)
"""Pixels, as solo-learn draws it."""

_ASPECT_RATIO = (3 / 4, 4 / 3)  # width / height of a crop, torchvision's default
_CROP_TRIES = 10  # torchvision's, before it takes the middle of the image
_HUE = 3  # the last of the four parts of colour jitter: brightness, contrast, saturation, hue


def uniform(shape: tuple[int, ...], low: float, high: float, random: torch.Generator) -> Tensor:
    """Float64 on the CPU, whatever the default dtype is."""
    return torch.rand(shape, dtype=torch.float64, generator=random) * (high - low) + low


def draw_boxes(
    count: int, height: int, width: int, scale: tuple[float, float], random: torch.Generator
) -> Tensor:
    """Boxes as torchvision's `RandomResizedCrop` draws them.

    `scale` is the least and largest share of the image's area. Width / height is drawn uniformly in
    its logarithm. Returns int64 [count, 4], on the CPU: top, left, height, width.
    """
    shape, ratio = (count, _CROP_TRIES), _ASPECT_RATIO
    area = height * width * uniform(shape, *scale, random)
    aspect = uniform(shape, math.log(ratio[0]), math.log(ratio[1]), random).exp()
    tall, wide = (area / aspect).sqrt().round(), (area * aspect).sqrt().round()
    fits = (tall > 0) & (tall <= height) & (wide > 0) & (wide <= width)
    fitting, first = fits.any(1), fits.int().argmax(1, keepdim=True)
    # where no try fits: the largest box in the middle with an allowed aspect ratio
    tallest, widest = min(height, round(width / ratio[0])), min(width, round(height * ratio[1]))
    tall = tall.gather(1, first)[:, 0].where(fitting, float(tallest))
    wide = wide.gather(1, first)[:, 0].where(fitting, float(widest))
    room = torch.stack([height - tall, width - wide])
    corner = (uniform((2, count), 0, 1, random) * (room + 1)).floor()
    corner = corner.where(fitting, (room / 2).floor())
    return torch.stack([*corner, tall, wide], dim=1).long()


def resized_crop(image: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut a box out of each image and resize it, as Pillow does bicubically.

    Pillow's resampling (antialiased, the cubic of a = −1/2, the horizontal pass first, 8-bit levels
    after each pass) is linear along each axis: two batched matrix products.

    Float [B, C, H, W] in [0, 1] → [B, C, size, size], in steps of 1/255. `boxes` [B, 4] are whole
    numbers of any type, on the image's device: top, left, height, width, inside the image.
    """
    boxes = boxes.to(image.dtype)
    count, channels, height, width = image.shape
    top, left, tall, wide = boxes.unbind(1)
    across, down = _bicubic(left, wide, width, size), _bicubic(top, tall, height, size)
    rows = torch.bmm(image.reshape(count, channels * height, width), across.mul_(255).mT)
    rows = rows.round_().clamp_(0, 255).view(count, channels, height, size)
    return torch.matmul(down[:, None], rows).round_().clamp_(0, 255).div_(255)


def _bicubic(start: Tensor, length: Tensor, pixels: int, size: int) -> Tensor:
    """Weights [B, size, pixels] that resize `length` pixels from `start` on; rows sum to one."""
    start, length = start[:, None, None], length[:, None, None]
    step = length / size
    centre = start + (torch.arange(size, device=start.device)[:, None] + 0.5) * step
    stretch = step.clamp(min=1)  # the kernel reaches over two pixels of the coarser side
    taps = torch.arange(math.ceil(4 * max(pixels / size, 1)) + 1, device=start.device)
    pixel = (centre - 2 * stretch).floor() + taps
    distance = (pixel + 0.5 - centre).div_(stretch).abs_()
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, far)
    weights *= (distance < 2) & (pixel >= start) & (pixel < start + length)
    weights /= weights.sum(-1, keepdim=True)
    dense = weights.new_zeros(len(weights), size, pixels)
    return dense.scatter_add_(2, pixel.long().clamp_(0, pixels - 1), weights)


def jitter(image: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue, in an order of its own for each image.

    The first three blend an image with another, and are done together: black, its mean grey, its
    grey. Hue is turned only in the images whose turn it is.

    Args:
        image: float [B, 3, H, W] in [0, 1]; so is the result.
        factors: float [B, 4], on the CPU: of brightness, contrast and saturation, 1 for no change;
            of hue in turns, 0 for no change.
        order: int64 [B, 4], on the CPU: permutations of 0, 1, 2, 3, which count like the factors.
    """
    return jittered(image.clone(), *(part.to(image.device) for part in turns_of(factors, order)))


def turns_of(factors: Tensor, order: Tensor) -> tuple[Tensor, ...]:
    """What `jitter` does in each of its four turns, float32.

    Returns:
        [4, B, 4], of each turn and image: the weights of the image, of its mean grey and of its
        grey, which add up to 1, or to less where black is blended in, and the angle by which its
        hue is turned, radians; for each turn the images whose hue is turned, int64 [B′].
    """
    now = factors.gather(1, order)
    own = now.where(order != _HUE, 1.0)
    angle = (2 * math.pi * now).where(order == _HUE, 0.0)
    turns = torch.stack([own, (1 - own) * (order == 1), (1 - own) * (order == 2), angle])
    turn, turned = angle.T.nonzero().unbind(1)
    counts = torch.bincount(turn, minlength=order.shape[1]).tolist()
    return turns.transpose(0, 2).float().contiguous(), *turned.split(counts)


def jittered(image: Tensor, turns: Tensor, *turned: Tensor) -> Tensor:
    """`jitter` in place, by `turns_of`."""
    for turn, rows in zip(turns[..., None, None, None].unbind(0), turned, strict=True):
        own, of_mean, of_grey, angle = turn.to(image.dtype).unbind(1)
        grey = luminance(image)
        mean = grey.mean((-2, -1), keepdim=True)
        other = grey.mul_(of_grey).add_(of_mean * mean)
        torch.addcmul(other, image, own, out=image).clamp_(0, 1)
        if len(rows):
            image.index_copy_(0, rows, turn_hue(image.index_select(0, rows), angle[rows, 0, 0, 0]))
    return image


def luminance(image: Tensor) -> Tensor:
    """Float [B, 3, H, W] → [B, 1, H, W], by the weights of ITU-R BT.601."""
    red, green, blue = image.split(1, dim=1)
    return (0.299 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def turn_hue(image: Tensor, angle: Tensor) -> Tensor:
    """Add `angle`, float [B] in radians, to the hue of HSV: float [B, 3, H, W] in [0, 1].

    Nothing is selected with `torch.where` or a boolean, neither of which PyTorch vectorises on the
    CPU, but with `lerp` and a weight of 0 or 1.
    """
    red, green, blue = image.unbind(1)
    highest, lowest = image.amax(1), image.amin(1)
    spread = highest - lowest
    # in sixths of the circle from red on: by which channel is the largest
    hue = (red - green).add_(spread, alpha=4)
    hue.lerp_((blue - red).add_(spread, alpha=2), (highest - green).eq_(0))
    hue.lerp_(green - blue, (highest - red).eq_(0))
    # the hue of grey counts for nothing
    hue.div_(spread.clamp(min=torch.finfo(image.dtype).tiny))
    hue.add_(angle.mul(3 / math.pi)[:, None, None])
    hue.sub_((hue / 6).floor_().mul_(6))
    # a channel is the largest up to one sixth from its own hue, the least from two on
    own = torch.arange(0, 6, 2, device=image.device)[:, None, None]
    level = (hue[:, None] - own).abs_().sub_(3).abs_().sub_(1).clamp_(0, 1)
    return torch.addcmul(lowest[:, None], spread[:, None], level)


def blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur as Pillow does it: three extended box blurs, the border pixels repeated.

    Boxes of fractional radius: Gwosdek et al. 2011, doi:10.1007/978-3-642-24785-9_38.

    Images are float [B, C, H, W] in [0, 1]. `sigma` is float [B], pixels, on their device, at most
    2: solo-learn's largest, for which the box has room.
    """
    count, channels, height, width = image.shape
    sigma = sigma.to(image.dtype)
    across = _three_boxes(sigma, width)
    down = across if height == width else _three_boxes(sigma, height)
    rows = torch.bmm(image.reshape(count, channels * height, width), across.mT)
    return torch.matmul(down[:, None], rows.view(count, channels, height, width))


def _three_boxes(sigma: Tensor, pixels: int) -> Tensor:
    """Weights [B, pixels, pixels] of three box blurs that have the variance sigma² together."""
    variance = sigma**2 / 3
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()  # of the radius, and what is left
    fraction = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    radius = whole + fraction / (6 * (variance - (whole + 1) ** 2))
    reach = math.ceil(BLUR_SIGMA[1]) + 1
    offset = torch.arange(-reach, reach + 1, device=sigma.device)
    box = (radius[:, None] + 1 - offset.abs()).clamp(0, 1) / (2 * radius[:, None] + 1)
    target = torch.arange(pixels, device=sigma.device)[:, None] + offset
    shifts = nn.functional.one_hot(target.clamp(0, pixels - 1), pixels).to(box.dtype)
    weights = torch.einsum("bd,idj->bij", box, shifts)
    return weights @ weights @ weights
