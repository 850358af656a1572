"""solo-learn's `augmentations` as pipelines of operations, on the images' device.

The operations, their order and probabilities are those of solo-learn's torchvision pipelines.
Cropping, jitter and blur are functions of our own, because Kornia's are not Pillow's (docs/views.md
has the measurements). Each operation draws its parameters first, one set an image, on the CPU and
from a generator that it is given; applied to images it draws nothing. So the parameters of a whole
batch of views can be drawn ahead, in any thread, and sent to a device in one copy. Images stay in
[0, 1] until they are normalised last.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from types import ModuleType
from typing import Any, ClassVar, Protocol, cast

import numpy as np
import torch
from kornia.enhance import equalize
from omegaconf import OmegaConf
from torch import Tensor, nn

from solo_infoaug.errors import ConfigError
from solo_infoaug.host import Host

_BLUR_SIGMA = (0.1, 2.0)  # pixels, as solo-learn draws it
_ASPECT_RATIO = (3 / 4, 4 / 3)  # width / height of a crop, torchvision's default
_CROP_TRIES = 10  # torchvision's, before it takes the middle of the image
_SOLARIZE_FROM = 0.5  # Pillow inverts the levels from 128 on: 127.5 lies between
_HUE = 3  # the last of the four parts of colour jitter: brightness, contrast, saturation, hue
_ALIGNED = 16  # bytes: where a tensor may begin in what is sent

Drawn = tuple[Tensor, ...]
"""What an operation draws for a batch, on the CPU or sent to a device."""


class Operation(Protocol):
    """One step of a pipeline."""

    def draw(self, count: int, height: int, width: int, random: torch.Generator) -> Drawn:
        """What the operation needs for `count` images of a pipeline's input size, on the CPU."""

    def __call__(self, image: Tensor, *drawn: Tensor) -> Tensor:
        """Float32 [B, 3, H, W] → the same; may be done in place, as all but the first is."""


@dataclass(frozen=True)
class Pipeline:
    """One entry of `augmentations`: how its views are made, their size, and how many."""

    operations: tuple[Operation, ...]
    crop_size: int
    num_crops: int


def sent(values: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The values, from the CPU to the device in one copy, for which nobody waits.

    A copy from memory that is not pinned may wait for all that the device has been asked for. On
    the CPU these are the values themselves.
    """
    if device.type == "cpu":
        return list(values)
    return _unpacked(
        _packed(values, pin=device.type == "cuda").to(device, non_blocking=True), values
    )


def _places(values: Sequence[Tensor]) -> list[int]:
    """Where each value begins among bytes, and where the last one ends."""
    sizes = (-(-value.nbytes // _ALIGNED) * _ALIGNED for value in values)
    return [0, *accumulate(sizes)]


def _packed(values: Sequence[Tensor], pin: bool) -> Tensor:
    """The bytes of CPU tensors in one piece, uint8."""
    places = _places(values)
    packed = torch.empty(places[-1], dtype=torch.uint8, pin_memory=pin)
    # numpy copies on the thread that it is called from, and lets others run meanwhile
    room = packed.numpy()
    for value, start in zip(values, places, strict=False):
        room[start : start + value.nbytes] = value.contiguous().numpy().reshape(-1).view(np.uint8)
    return packed


def _unpacked(packed: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The values again, which share the memory of the bytes."""
    return [
        packed[start : start + value.nbytes].view(value.dtype).view(value.shape)
        for value, start in zip(like, _places(like), strict=False)
    ]


def _kernels(image: Tensor) -> ModuleType | None:
    """The operations by Triton's kernels, for images on a card where Triton works."""
    usual = image.is_cuda and image.dtype == torch.float32 and image.is_contiguous()
    return _kernels_for(image.device) if usual else None


@cache
def _kernels_for(card: torch.device) -> ModuleType | None:
    try:
        from solo_infoaug.twin import _view_kernels
    except ImportError:
        return None
    return _view_kernels if _view_kernels.works(card) else None


def draw_boxes(
    count: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    random: torch.Generator,
    ratio: tuple[float, float] = _ASPECT_RATIO,
) -> Tensor:
    """Boxes as torchvision's `RandomResizedCrop` draws them.

    Args:
        count: of boxes.
        height: of the image, pixels.
        width: likewise.
        scale: least and largest share of the image's area.
        random: a CPU generator.
        ratio: least and largest width / height, drawn uniformly in its logarithm.

    Returns:
        int64 [count, 4], on the CPU: top, left, height, width.
    """
    shape = (count, _CROP_TRIES)
    area = height * width * _uniform(shape, *scale, random)
    aspect = _uniform(shape, math.log(ratio[0]), math.log(ratio[1]), random).exp()
    tall, wide = (area / aspect).sqrt().round(), (area * aspect).sqrt().round()
    fits = (tall > 0) & (tall <= height) & (wide > 0) & (wide <= width)
    fitting, first = fits.any(1), fits.int().argmax(1, keepdim=True)
    # where no try fits: the largest box in the middle with an allowed aspect ratio
    tallest, widest = min(height, round(width / ratio[0])), min(width, round(height * ratio[1]))
    tall = tall.gather(1, first)[:, 0].where(fitting, float(tallest))
    wide = wide.gather(1, first)[:, 0].where(fitting, float(widest))
    room = torch.stack([height - tall, width - wide])
    corner = (_uniform((2, count), 0, 1, random) * (room + 1)).floor()
    corner = corner.where(fitting, (room / 2).floor())
    return torch.stack([*corner, tall, wide], dim=1).long()


def resized_crop(image: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut a box out of each image and resize it, as Pillow does bicubically.

    Pillow's resampling (antialiased, the cubic of a = −1/2, the horizontal pass first, 8-bit levels
    after each pass) is linear along each axis: two batched matrix products.

    Args:
        image: float [B, C, H, W] in [0, 1].
        boxes: [B, 4], whole numbers of any type, on the image's device: top, left, height, width,
            inside the image.
        size: of the result, pixels.

    Returns:
        float [B, C, size, size] in [0, 1], in steps of 1/255.
    """
    boxes = boxes.to(image.dtype)
    if (kernels := _kernels(image)) is not None:
        return cast(Tensor, kernels.resized_crop(image, boxes, size))
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
        image: float [B, 3, H, W] in [0, 1].
        factors: float [B, 4], on the CPU: of brightness, contrast and saturation, 1 for no change;
            of hue in turns, 0 for no change.
        order: int64 [B, 4], on the CPU: permutations of 0, 1, 2, 3, which count like the factors.

    Returns:
        float [B, 3, H, W] in [0, 1].
    """
    return _jittered(image.clone(), *sent(_turns(factors, order), image.device))


def _turns(factors: Tensor, order: Tensor) -> Drawn:
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


def _jittered(image: Tensor, turns: Tensor, *turned: Tensor) -> Tensor:
    """`jitter` in place, by `_turns`."""
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
    """Add to the hue of HSV.

    Nothing is selected with `torch.where` or a boolean, neither of which PyTorch vectorises on the
    CPU, but with `lerp` and a weight of 0 or 1.

    Args:
        image: float [B, 3, H, W] in [0, 1].
        angle: float [B], radians.

    Returns:
        float [B, 3, H, W] in [0, 1].
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

    Args:
        image: float [B, C, H, W] in [0, 1].
        sigma: float [B], pixels, on the image's device, at most 2: solo-learn's largest, for which
            the box has room.

    Returns:
        float [B, C, H, W] in [0, 1].
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
    reach = math.ceil(_BLUR_SIGMA[1]) + 1
    offset = torch.arange(-reach, reach + 1, device=sigma.device)
    box = (radius[:, None] + 1 - offset.abs()).clamp(0, 1) / (2 * radius[:, None] + 1)
    target = torch.arange(pixels, device=sigma.device)[:, None] + offset
    shifts = nn.functional.one_hot(target.clamp(0, pixels - 1), pixels).to(box.dtype)
    weights = torch.einsum("bd,idj->bij", box, shifts)
    return weights @ weights @ weights


def _uniform(shape: tuple[int, ...], low: float, high: float, random: torch.Generator) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=random) * (high - low) + low


@dataclass(frozen=True)
class ResizedCrop:
    """The whole image, or a random box of it for `scale`, resized to a square."""

    size: int
    scale: tuple[float, float] | None = None

    def draw(self, count: int, height: int, width: int, random: torch.Generator) -> Drawn:
        """The boxes, float32 [B, 4]."""
        if self.scale is None:
            # another default dtype would round the sides, and the box would leave the image
            whole = torch.tensor([[0, 0, height, width]], dtype=torch.float32)
            return (whole.repeat(count, 1),)
        return (draw_boxes(count, height, width, self.scale, random).float(),)

    def __call__(self, image: Tensor, *drawn: Tensor) -> Tensor:
        """Float [B, 3, H, W] in [0, 1] → [B, 3, size, size], each image by its own box."""
        (boxes,) = drawn
        return resized_crop(image, boxes, self.size)


@dataclass(frozen=True)
class _OnSome(ABC):
    """An operation on each image with a probability."""

    p: float

    kernel: ClassVar[str] = ""
    """The function of `_view_kernels` that does it."""

    def draw(self, count: int, height: int, width: int, random: torch.Generator) -> Drawn:
        """Which images, and what is done to them."""
        # with a "true" precision Lightning sets another default dtype, which draws other numbers
        draw = torch.rand(count, dtype=torch.float32, generator=random)
        some = (draw < self.p).nonzero()[:, 0]
        return some, *self._parameters(len(some), count, random)

    def __call__(self, image: Tensor, *drawn: Tensor) -> Tensor:
        """Float [B, 3, H, W] in [0, 1] → the same, each image by its own draw."""
        some, *parameters = drawn
        kernel = getattr(_kernels(image), self.kernel, None)
        if kernel is not None:
            if len(some):
                kernel(image, some, *parameters)
            return image
        return image.index_copy_(0, some, self._changed(image.index_select(0, some), *parameters))

    def _parameters(self, some: int, count: int, random: torch.Generator) -> Drawn:
        """What is drawn besides, for `some` images of `count`."""
        return ()

    @abstractmethod
    def _changed(self, image: Tensor, *parameters: Tensor) -> Tensor:
        """The chosen images, which it may change in place."""


@dataclass(frozen=True)
class ColorJitter(_OnSome):
    """torchvision's `ColorJitter` with a probability; see `jitter`."""

    kernel = "jitter"

    strengths: tuple[float, ...]

    def _parameters(self, some: int, count: int, random: torch.Generator) -> Drawn:
        *blends, hue = self.strengths
        ranges = [(max(0.0, 1 - strength), 1 + strength) for strength in blends] + [(-hue, hue)]
        factors = torch.stack([_uniform((some,), *limits, random) for limits in ranges], dim=1)
        shape = (some, len(ranges))
        order = torch.rand(shape, dtype=torch.float32, generator=random).argsort(1)
        return _turns(factors, order)

    def _changed(self, image: Tensor, *parameters: Tensor) -> Tensor:
        return _jittered(image, *parameters)


class Grayscale(_OnSome):
    """The luminance in all three channels, with a probability."""

    kernel = "grayscale"

    def _changed(self, image: Tensor, *parameters: Tensor) -> Tensor:
        return luminance(image).expand(-1, 3, -1, -1)


class GaussianBlur(_OnSome):
    """solo-learn's `GaussianBlur` with a probability; see `blur`."""

    kernel = "blur"

    def _parameters(self, some: int, count: int, random: torch.Generator) -> Drawn:
        return (_uniform((some,), *_BLUR_SIGMA, random).float(),)

    def _changed(self, image: Tensor, *parameters: Tensor) -> Tensor:
        return blur(image, *parameters)


class Solarize(_OnSome):
    """Invert what is bright, with a probability."""

    kernel = "solarize"

    def _parameters(self, some: int, count: int, random: torch.Generator) -> Drawn:
        # Kornia's module draws a threshold and an addition an image: what follows draws as after it
        torch.rand(2 * count, dtype=torch.float32, generator=random)
        return ()

    def _changed(self, image: Tensor, *parameters: Tensor) -> Tensor:
        image.clamp_(0, 1)
        return image.where(image < _SOLARIZE_FROM, 1 - image)


class Equalize(_OnSome):
    """Equalize the histograms of the 8-bit levels, with a probability.

    All images are rounded to multiples of 1/255: those are the levels that Pillow counts, and
    Kornia would cut the fraction off.
    """

    def __call__(self, image: Tensor, *drawn: Tensor) -> Tensor:
        """Float [B, 3, H, W] in [0, 1] → the same, each image by its own draw."""
        image.mul_(255).round_().div_(255)
        # of no images Kornia would look for the largest level
        return super().__call__(image, *drawn) if len(drawn[0]) else image

    def _changed(self, image: Tensor, *parameters: Tensor) -> Tensor:
        return equalize(image.clamp_(0, 1))


class HorizontalFlip(_OnSome):
    """Left and right exchanged, with a probability."""

    kernel = "flip"

    def _changed(self, image: Tensor, *parameters: Tensor) -> Tensor:
        return image.flip(-1)


@dataclass(frozen=True)
class Normalize:
    """Mean and standard deviation taken out of each channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def draw(self, count: int, height: int, width: int, random: torch.Generator) -> Drawn:
        """Both, float32 [2, 3]: no draw, but sent with those."""
        return (torch.tensor([self.mean, self.std], dtype=torch.float32),)

    def __call__(self, image: Tensor, *drawn: Tensor) -> Tensor:
        """Float [B, 3, H, W] → the same."""
        mean, std = drawn[0][..., None, None].unbind(0)
        return image.sub_(mean).div_(std)


# The others, in the order in which solo-learn has them.
_BY_KEY: dict[str, type[_OnSome]] = {
    "grayscale": Grayscale,
    "gaussian_blur": GaussianBlur,
    "solarization": Solarize,
    "equalization": Equalize,
    "horizontal_flip": HorizontalFlip,
}


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
    known = {*_BY_KEY, "rrc", "color_jitter", "crop_size", "num_crops", "mean", "std"}
    if unknown := set(augmentation) - known:
        raise ConfigError(
            f"augmentations: unknown key {min(unknown)!r}; expected {', '.join(sorted(known))}"
        )
    size = int(augmentation.crop_size)
    scale: tuple[float, float] | None = None
    if augmentation.rrc.enabled:
        scale = (float(augmentation.rrc.crop_min_scale), float(augmentation.rrc.crop_max_scale))
    operations: list[Operation] = [ResizedCrop(size, scale)]
    if p := _probability(augmentation, "color_jitter"):
        given = augmentation.color_jitter
        parts = ("brightness", "contrast", "saturation", "hue")
        operations.append(ColorJitter(p, tuple(float(given.get(part, 0.0)) for part in parts)))
    operations += [
        operation(p)
        for name, operation in _BY_KEY.items()
        if (p := _probability(augmentation, name))
    ]
    operations.append(Normalize(tuple(mean), tuple(std)))
    return Pipeline(tuple(operations), size, int(augmentation.num_crops))


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
    """Inside, new tensors are float32: with a "true" precision Lightning sets another default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def draw_views(
    pipelines: Sequence[Pipeline],
    count: int,
    height: int,
    width: int,
    random: torch.Generator,
    *,
    both: bool = False,
) -> list[Drawn]:
    """All that is drawn for the views of a batch, in the order in which `apply_views` takes it.

    Args:
        pipelines: one for each entry of `augmentations`.
        count: of patches.
        height: of a patch, pixels.
        width: likewise.
        random: a CPU generator.
        both: make every crop twice, of the patch and of the twin.
    """
    return [
        operation.draw(count, height, width, random)
        for pipeline in pipelines
        for _ in range(pipeline.num_crops * (1 + both))
        for operation in pipeline.operations
    ]


@torch.no_grad()
def apply_views(
    pipelines: Sequence[Pipeline],
    patch: Tensor,
    twin: Tensor,
    drawn: Iterable[Drawn],
    *,
    both: bool = False,
) -> list[Tensor]:
    """`make_views` with what `draw_views` drew, on the patches' device."""
    sources = (patch.float().div_(255), twin.float().div_(255))
    views: list[Tensor] = []
    draws = iter(drawn)
    with torch.autocast(patch.device.type, enabled=False), _float32():
        for pipeline in pipelines:
            for _ in range(pipeline.num_crops * (1 + both)):
                view = sources[len(views) % 2]
                for operation in pipeline.operations:
                    view = operation(view, *next(draws))
                views.append(view)
    return views


def make_views(
    pipelines: Sequence[Pipeline], patch: Tensor, twin: Tensor, *, both: bool = False
) -> list[Tensor]:
    """Views of patches and of their twins by turns: a patch's, its twin's, a patch's, …

    The order is that of solo-learn's crops, so that the two views that a method pulls together
    are one of the patch and one of the twin. Draws from torch's global CPU generator: see
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
    count, _, height, width = patch.shape
    drawn = draw_views(pipelines, count, height, width, torch.default_generator, both=both)
    flat = iter(sent([tensor for one in drawn for tensor in one], patch.device))
    there = [tuple(next(flat) for _ in one) for one in drawn]
    return apply_views(pipelines, patch, twin, there, both=both)
