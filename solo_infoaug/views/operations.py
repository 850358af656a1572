"""The operations of a pipeline: each draws its parameters first, and is then applied to images.

Their order and probabilities are those of solo-learn's torchvision pipelines. An operation draws
one set of parameters an image, on the CPU and from a generator that it is given; applied to images
it draws nothing. On a card most are kernels in Triton.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import ClassVar, Protocol, cast

import torch
from kornia.enhance import equalize
from torch import Tensor

from solo_infoaug.views import functional as F

_SOLARIZE_FROM = 0.5  # Pillow inverts the levels from 128 on: 127.5 lies between

Drawn = tuple[Tensor, ...]
"""What an operation draws for a batch, on the CPU or sent to a device."""


class Operation(Protocol):
    """One step of a pipeline."""

    def draw(self, count: int, height: int, width: int, random: torch.Generator) -> Drawn:
        """What the operation needs for `count` images of a pipeline's input size, on the CPU."""

    def __call__(self, image: Tensor, *drawn: Tensor) -> Tensor:
        """Float32 [B, 3, H, W] → the same; may be done in place, as all but the first is."""


def _kernels(image: Tensor) -> ModuleType | None:
    """The operations by Triton's kernels, for images on a card where Triton works."""
    usual = image.is_cuda and image.dtype == torch.float32 and image.is_contiguous()
    return _kernels_for(image.device) if usual else None


@cache
def _kernels_for(card: torch.device) -> ModuleType | None:
    try:
        from solo_infoaug.views import kernels
    except ImportError:
        return None
    return kernels if kernels.works(card) else None


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
        return (F.draw_boxes(count, height, width, self.scale, random).float(),)

    def __call__(self, image: Tensor, *drawn: Tensor) -> Tensor:
        """Float [B, 3, H, W] in [0, 1] → [B, 3, size, size], each image by its own box."""
        (boxes,) = drawn
        boxes = boxes.to(image.dtype)
        if (kernels := _kernels(image)) is not None:
            return cast(Tensor, kernels.resized_crop(image, boxes, self.size))
        return F.resized_crop(image, boxes, self.size)


@dataclass(frozen=True)
class OnSome(ABC):
    """An operation on each image with a probability."""

    p: float

    kernel: ClassVar[str] = ""
    """The function of `kernels` that does it."""

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
        """What else is drawn, for `some` images of `count`."""
        return ()

    @abstractmethod
    def _changed(self, image: Tensor, *parameters: Tensor) -> Tensor:
        """The chosen images, which it may change in place."""


@dataclass(frozen=True)
class ColorJitter(OnSome):
    """torchvision's `ColorJitter` with a probability; see `functional.jitter`."""

    kernel = "jitter"

    strengths: tuple[float, ...]

    def _parameters(self, some: int, count: int, random: torch.Generator) -> Drawn:
        *blends, hue = self.strengths
        ranges = [(max(0.0, 1 - strength), 1 + strength) for strength in blends] + [(-hue, hue)]
        factors = torch.stack([F.uniform((some,), *limits, random) for limits in ranges], dim=1)
        shape = (some, len(ranges))
        order = torch.rand(shape, dtype=torch.float32, generator=random).argsort(1)
        return F.turns_of(factors, order)

    def _changed(self, image: Tensor, *parameters: Tensor) -> Tensor:
        return F.jittered(image, *parameters)


class Grayscale(OnSome):
    """The luminance in all three channels, with a probability."""

    kernel = "grayscale"

    def _changed(self, image: Tensor, *parameters: Tensor) -> Tensor:
        return F.luminance(image).expand(-1, 3, -1, -1)


class GaussianBlur(OnSome):
    """solo-learn's `GaussianBlur` with a probability; see `functional.blur`."""

    kernel = "blur"

    def _parameters(self, some: int, count: int, random: torch.Generator) -> Drawn:
        return (F.uniform((some,), *F.BLUR_SIGMA, random).float(),)

    def _changed(self, image: Tensor, *parameters: Tensor) -> Tensor:
        return F.blur(image, *parameters)


class Solarize(OnSome):
    """Invert what is bright, with a probability."""

    kernel = "solarize"

    def _parameters(self, some: int, count: int, random: torch.Generator) -> Drawn:
        # Kornia's module draws a threshold and an addition an image: what follows draws as after it
        torch.rand(2 * count, dtype=torch.float32, generator=random)
        return ()

    def _changed(self, image: Tensor, *parameters: Tensor) -> Tensor:
        image.clamp_(0, 1)
        return image.where(image < _SOLARIZE_FROM, 1 - image)


class Equalize(OnSome):
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


class HorizontalFlip(OnSome):
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
