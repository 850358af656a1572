"""solo-learn's `augmentations` as pipelines of Kornia modules, on the images' device.

The operations, their order and probabilities are those of solo-learn's torchvision pipelines.
Cropping, jitter and blur are modules of our own, because Kornia's are not Pillow's (docs/views.md
has the measurements): each is a pure function of its parameters, and a module that draws them, one
set an image. Images stay in [0, 1] until they are normalised last.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import kornia.augmentation as K
import torch
from kornia.color import rgb_to_grayscale
from kornia.enhance import adjust_hue
from omegaconf import OmegaConf
from torch import Tensor, nn

from solo_infoaug.errors import ConfigError
from solo_infoaug.host import Host

_KEYS = {
    "rrc",
    "color_jitter",
    "grayscale",
    "gaussian_blur",
    "solarization",
    "equalization",
    "horizontal_flip",
    "crop_size",
    "num_crops",
    "mean",
    "std",
}
_BLUR_SIGMA = (0.1, 2.0)  # pixels, as solo-learn draws it
_ASPECT_RATIO = (3 / 4, 4 / 3)  # width / height of a crop, torchvision's default
_CROP_TRIES = 10  # torchvision's, before it takes the middle of the image
_SOLARIZE_FROM = 0.5  # Pillow inverts the levels from 128 on: 127.5 lies between
_HUE = 3  # the last of the four parts of colour jitter: brightness, contrast, saturation, hue


@dataclass(frozen=True)
class Pipeline:
    """One entry of `augmentations`: how its views are made, their size, and how many."""

    operations: nn.Sequential
    crop_size: int
    num_crops: int


def sent(values: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, or the values themselves where they are there; nobody waits for it.

    A copy from memory that is not pinned may wait for all that the device has been asked for.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def draw_boxes(
    count: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float] = _ASPECT_RATIO,
) -> Tensor:
    """Boxes as torchvision's `RandomResizedCrop` draws them, from torch's CPU generator.

    Args:
        count: of boxes.
        height: of the image, pixels.
        width: likewise.
        scale: least and largest share of the image's area.
        ratio: least and largest width / height, drawn uniformly in its logarithm.

    Returns:
        int64 [count, 4], on the CPU: top, left, height, width.
    """
    shape = (count, _CROP_TRIES)
    area = height * width * _uniform(shape, *scale)
    aspect = _uniform(shape, math.log(ratio[0]), math.log(ratio[1])).exp()
    tall, wide = (area / aspect).sqrt().round(), (area * aspect).sqrt().round()
    fits = (tall > 0) & (tall <= height) & (wide > 0) & (wide <= width)
    found, first = fits.any(1), fits.int().argmax(1, keepdim=True)
    # where no try fits: the largest box in the middle with an allowed aspect ratio
    tallest, widest = min(height, round(width / ratio[0])), min(width, round(height * ratio[1]))
    tall = tall.gather(1, first)[:, 0].where(found, float(tallest))
    wide = wide.gather(1, first)[:, 0].where(found, float(widest))
    room = torch.stack([height - tall, width - wide])
    place = (_uniform((2, count), 0, 1) * (room + 1)).floor().where(found, (room / 2).floor())
    return torch.stack([*place, tall, wide], dim=1).long()


def resized_crop(image: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut a box out of each image and resize it, as Pillow does bicubically.

    Pillow's resampling (antialiased, the cubic of a = −1/2, the horizontal pass first, 8-bit levels
    after each pass) is linear along each axis: two batched matrix products.

    Args:
        image: float [B, C, H, W] in [0, 1].
        boxes: int64 [B, 4]: top, left, height, width, inside the image.
        size: of the result, pixels.

    Returns:
        float [B, C, size, size] in [0, 1], in steps of 1/255.
    """
    count, channels, height, width = image.shape
    top, left, tall, wide = sent(boxes.to(image.dtype), image.device).unbind(1)
    across, down = _bicubic(left, wide, width, size), _bicubic(top, tall, height, size)
    rows = torch.bmm(image.reshape(count, channels * height, width), across.mul_(255).mT)
    rows = rows.round_().clamp_(0, 255).view(count, channels, height, size)
    out = torch.stack([torch.bmm(down, channel) for channel in rows.unbind(1)], dim=1)
    return out.round_().clamp_(0, 255).div_(255)


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
        image: float [B, 3, H, W] in [0, 1].
        factors: float [B, 4], on the CPU: of brightness, contrast and saturation, 1 for no change;
            of hue in turns, 0 for no change.
        order: int64 [B, 4], on the CPU: permutations of 0, 1, 2, 3, which count like the factors.

    Returns:
        float [B, 3, H, W] in [0, 1].
    """
    now = factors.gather(1, order)
    blends = torch.stack([now.where(order != _HUE, 1.0), order == 1, order == 2]).transpose(0, 2)
    # rows of the images whose hue is turned, by turns
    turn, turned = ((order == _HUE) & (now != 0)).T.nonzero().unbind(1)
    counts = torch.bincount(turn, minlength=order.shape[1]).tolist()
    angles = sent((2 * math.pi * now[turned, turn]).to(image.dtype), image.device)
    places = zip(
        sent(blends.to(image.dtype).contiguous(), image.device)[..., None, None, None].unbind(0),
        sent(turned, image.device).split(counts),
        angles.split(counts),
        strict=True,
    )
    for blend, rows, angle in places:
        factor, to_mean, to_grey = blend.unbind(1)
        grey = rgb_to_grayscale(image)
        other = to_mean * grey.mean((-2, -1), keepdim=True) + to_grey * grey
        image = torch.lerp(other, image, factor).clamp_(0, 1)
        if len(rows):
            image[rows] = adjust_hue(image[rows], angle)
    return image


def blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur as Pillow does it: three extended box blurs, the border pixels repeated.

    Boxes of fractional radius: Gwosdek et al. 2011, doi:10.1007/978-3-642-24785-9_38.

    Args:
        image: float [B, C, H, W] in [0, 1].
        sigma: float [B], pixels, at most 2: solo-learn's largest, for which the box has room.

    Returns:
        float [B, C, H, W] in [0, 1].
    """
    count, channels, height, width = image.shape
    sigma = sent(sigma.to(image.dtype), image.device)
    across, down = _three_boxes(sigma, width), _three_boxes(sigma, height)
    rows = torch.bmm(image.reshape(count, channels * height, width), across.mT)
    rows = rows.view(count, channels, height, width)
    return torch.stack([torch.bmm(down, channel) for channel in rows.unbind(1)], dim=1)


def _three_boxes(sigma: Tensor, pixels: int) -> Tensor:
    """Weights [B, pixels, pixels] of three box blurs that have the variance sigma² together."""
    variance = sigma**2 / 3
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()  # of the radius, and what is left
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    radius = whole + part / (6 * (variance - (whole + 1) ** 2))
    reach = math.ceil(_BLUR_SIGMA[1]) + 1
    offset = torch.arange(-reach, reach + 1, device=sigma.device)
    box = (radius[:, None] + 1 - offset.abs()).clamp(0, 1) / (2 * radius[:, None] + 1)
    target = torch.arange(pixels, device=sigma.device)[:, None] + offset
    shifts = nn.functional.one_hot(target.clamp(0, pixels - 1), pixels).to(box.dtype)
    weights = torch.einsum("bd,idj->bij", box, shifts)
    return weights @ weights @ weights


def _uniform(shape: tuple[int, ...], low: float, high: float) -> Tensor:
    return torch.rand(shape, dtype=torch.float64) * (high - low) + low


def _some(count: int, probability: float) -> Tensor:
    """The indices of the images that an operation acts on."""
    return (torch.rand(count) < probability).nonzero()[:, 0]


class ResizedCrop(nn.Module):
    """The whole image, or a random box of it for `scale`, resized to a square."""

    def __init__(self, size: int, scale: tuple[float, float] | None = None) -> None:
        super().__init__()
        self.size, self.scale = size, scale

    def forward(self, image: Tensor) -> Tensor:
        """Float [B, 3, H, W] in [0, 1] → [B, 3, size, size], each image by its own box."""
        count, _, height, width = image.shape
        if self.scale is None:
            boxes = torch.tensor([[0, 0, height, width]]).expand(count, 4)
        else:
            boxes = draw_boxes(count, height, width, self.scale)
        return resized_crop(image, boxes, self.size)


class ColorJitter(nn.Module):
    """torchvision's `ColorJitter` with a probability; see `jitter`."""

    def __init__(self, strengths: Sequence[float], p: float) -> None:
        super().__init__()
        self.strengths, self.p = tuple(strengths), p

    def forward(self, image: Tensor) -> Tensor:
        """Float [B, 3, H, W] in [0, 1] → the same, each image by its own draw."""
        some = _some(len(image), self.p)
        *blends, hue = self.strengths
        ranges = [(max(0.0, 1 - strength), 1 + strength) for strength in blends] + [(-hue, hue)]
        factors = torch.stack([_uniform((len(some),), *limits) for limits in ranges], dim=1)
        order = torch.rand(len(some), len(ranges)).argsort(1)
        there = sent(some, image.device)
        return image.index_copy(0, there, jitter(image[there], factors, order))


class GaussianBlur(nn.Module):
    """solo-learn's `GaussianBlur` with a probability; see `blur`."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, image: Tensor) -> Tensor:
        """Float [B, 3, H, W] in [0, 1] → the same, each image by its own draw."""
        some = _some(len(image), self.p)
        there = sent(some, image.device)
        return image.index_copy(0, there, blur(image[there], _uniform((len(some),), *_BLUR_SIGMA)))


class Levels(nn.Module):
    """Round to the 8-bit levels that Pillow's equalization counts; Kornia's would cut them off."""

    def forward(self, image: Tensor) -> Tensor:
        """Float [B, 3, H, W] in [0, 1] → the same, rounded to multiples of 1/255."""
        return image.mul(255).round_().div_(255)


def _probability(augmentation: Any, name: str) -> float:
    return float(OmegaConf.select(augmentation, f"{name}.prob", default=0.0) or 0.0)


def build_pipeline(augmentation: Any, mean: Sequence[float], std: Sequence[float]) -> Pipeline:
    """Translate one entry of solo-learn's `augmentations`.

    Args:
        augmentation: the entry, a mapping in solo-learn's format.
        mean: per channel, of images in [0, 1].
        std: per channel, likewise.

    Raises:
        ConfigError: a key that solo-learn does not have.
    """
    unknown = set(augmentation) - _KEYS
    if unknown:
        raise ConfigError(
            f"augmentations: unknown key {sorted(unknown)[0]!r}; "
            f"expected {', '.join(sorted(_KEYS))}"
        )
    size = int(augmentation.crop_size)
    scale: tuple[float, float] | None = None
    if augmentation.rrc.enabled:
        scale = (float(augmentation.rrc.crop_min_scale), float(augmentation.rrc.crop_max_scale))
    operations: list[nn.Module] = [ResizedCrop(size, scale)]
    if p := _probability(augmentation, "color_jitter"):
        given = augmentation.color_jitter
        parts = ("brightness", "contrast", "saturation", "hue")
        operations.append(ColorJitter([float(given.get(part, 0.0)) for part in parts], p))
    if p := _probability(augmentation, "grayscale"):
        operations.append(K.RandomGrayscale(p=p))
    if p := _probability(augmentation, "gaussian_blur"):
        operations.append(GaussianBlur(p))
    if p := _probability(augmentation, "solarization"):
        operations.append(
            K.RandomSolarize(thresholds=(_SOLARIZE_FROM, _SOLARIZE_FROM), additions=0.0, p=p)
        )
    if p := _probability(augmentation, "equalization"):
        operations += [Levels(), K.RandomEqualize(p=p)]
    if p := _probability(augmentation, "horizontal_flip"):
        operations.append(K.RandomHorizontalFlip(p=p))
    operations.append(K.Normalize(torch.tensor(mean), torch.tensor(std)))
    return Pipeline(nn.Sequential(*operations), size, int(augmentation.num_crops))


def run_pipelines(host: Host, cfg: Any, entries: Any) -> list[Pipeline]:
    """The pipelines of `entries`, normalised as the host normalises the run's own views.

    Args:
        host: from `load_host`.
        cfg: of the run.
        entries: in the format of `augmentations`.
    """
    return [
        build_pipeline(entry, *host.normalization(cfg.data.dataset, entry)) for entry in entries
    ]


@contextmanager
def _float32() -> Iterator[None]:
    """Inside, new tensors are float32: with a "true" precision Lightning sets another default,
    in which Kornia would draw other numbers."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def make_views(
    pipelines: Sequence[Pipeline], patch: Tensor, twin: Tensor, *, both: bool = False
) -> list[Tensor]:
    """Views of patches and of their twins by turns: a patch's, its twin's, a patch's, …

    The order is that of solo-learn's crops, so that the two views that a method pulls together
    are one of the patch and one of the twin. Draws from torch's global generator: see
    `randomness.fork_rng`.

    Args:
        pipelines: one for each entry of `augmentations`.
        patch: uint8 [B, 3, H, W], on the device where the views are made.
        twin: likewise.
        both: make every crop twice, of the patch and of the twin.

    Returns:
        As many float32 [B, 3, crop, crop] as the pipelines have crops (twice as many with `both`),
        normalised.
    """
    sources = (patch.float().div_(255), twin.float().div_(255))
    views: list[Tensor] = []
    with torch.autocast(patch.device.type, enabled=False), _float32():
        for pipeline in pipelines:
            for _ in range(pipeline.num_crops * (1 + both)):
                views.append(pipeline.operations(sources[len(views) % 2]))
    return views
