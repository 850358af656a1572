"""Our own augmentations, which are Kornia's: parameters are drawn apart, then applied.

Their order and probabilities are those of solo-learn's torchvision pipelines. Each can be used as
any of Kornia's. A pipeline uses two methods instead: `draw` draws from a generator that it is
given, and `change_` acts in place and on the chosen images alone, which takes a fraction of the
time of Kornia's `forward`, and on a card by kernels in Triton.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache
from types import ModuleType
from typing import Any, ClassVar, cast

import kornia.augmentation as K
import torch
from torch import Tensor

from solo_infoaug.views import functional as F

_SOLARIZE_FROM = 0.5  # Pillow inverts the levels from 128 on: 127.5 lies between

Params = dict[str, Any]
"""What an augmentation draws for a batch, on the CPU or sent to a device: tensors by name."""


def _kernels(image: Tensor) -> ModuleType | None:
    """The augmentations by Triton's kernels, for images on a card where Triton works."""
    usual = image.is_cuda and image.dtype == torch.float32 and image.is_contiguous()
    return _kernels_for(image.device) if usual else None


@cache
def _kernels_for(card: torch.device) -> ModuleType | None:
    try:
        from solo_infoaug.views import kernels
    except ImportError:
        return None
    return kernels if kernels.works(card) else None


class Own(K.AugmentationBase2D, ABC):
    """An augmentation that can be drawn from any generator, and applied in place."""

    @abstractmethod
    def draw(self, shape: tuple[int, ...], random: torch.Generator) -> Params:
        """What is needed for float images [B, 3, H, W] of this shape, on the CPU."""

    def change_(self, image: Tensor, params: Params) -> Tensor:
        """Float [B, 3, H, W] in [0, 1] → the same, which may be done in place."""
        return self.apply_transform(image, params, self.flags)

    def forward_parameters(self, batch_shape: tuple[int, ...]) -> Params:
        """Kornia's name for `draw`, from torch's global generator."""
        drawn = self.draw(batch_shape, torch.default_generator)
        chosen = drawn.get("chosen", torch.arange(batch_shape[0]))
        drawn["batch_prob"] = torch.zeros(batch_shape[0]).index_fill_(0, chosen, 1)
        return {**drawn, "forward_input_shape": torch.tensor(batch_shape)}


class ResizedCrop(Own, K.GeometricAugmentationBase2D):
    """The whole image, or a random box of it for `scale`, resized to a square."""

    _compute_matrix_lazily = True

    def __init__(self, size: int, scale: tuple[float, float] | None = None) -> None:
        super().__init__(p=1.0)
        self.flags: dict[str, Any] = {"size": size, "scale": scale}

    def draw(self, shape: tuple[int, ...], random: torch.Generator) -> Params:
        """`boxes`: float32 [B, 4]."""
        count, _, height, width = shape
        if self.flags["scale"] is None:
            # another default dtype would round the sides, and the box would leave the image
            whole = torch.tensor([[0, 0, height, width]], dtype=torch.float32)
            return {"boxes": whole.repeat(count, 1)}
        return {"boxes": F.draw_boxes(count, height, width, self.flags["scale"], random).float()}

    def apply_transform(self, input: Tensor, params: Params, *_: Any, **__: Any) -> Tensor:
        """Float [B, 3, H, W] in [0, 1] → [B, 3, size, size], each image by its own box."""
        boxes, size = params["boxes"].to(input.dtype), self.flags["size"]
        if (kernels := _kernels(input)) is not None:
            return cast(Tensor, kernels.resized_crop(input, boxes, size))
        return F.resized_crop(input, boxes, size)

    def compute_transformation(self, input: Tensor, params: Params, flags: Any) -> Tensor:
        """[B, 3, 3], from the pixels of the image to those of the crop."""
        top, left, tall, wide = params["boxes"].to(input.dtype).unbind(1)
        matrix = torch.eye(3, dtype=input.dtype, device=input.device).repeat(len(input), 1, 1)
        for axis, start, length in ((0, left, wide), (1, top, tall)):
            matrix[:, axis, axis] = self.flags["size"] / length
            # pixels are counted by their centres
            matrix[:, axis, 2] = (0.5 - start) * self.flags["size"] / length - 0.5
        return matrix


class OnChosen(Own):
    """An augmentation of each image with a probability.

    `chosen` (int64) are the images, and all other parameters are theirs alone.
    """

    kernel: ClassVar[str] = ""
    """The function of `kernels` that does it."""

    takes: ClassVar[tuple[str, ...]] = ()
    """The parameters that it takes besides the chosen."""

    def draw(self, shape: tuple[int, ...], random: torch.Generator) -> Params:
        """`chosen`, and what is done to them."""
        # with a "true" precision Lightning sets another default dtype, which draws other numbers
        draw = torch.rand(shape[0], dtype=torch.float32, generator=random)
        chosen = (draw < self.p).nonzero()[:, 0]
        return {"chosen": chosen, **self._draw_for(len(chosen), shape[0], random)}

    def _draw_for(self, chosen: int, count: int, random: torch.Generator) -> Params:
        """What else is drawn, for `chosen` images of `count`."""
        return {}

    def change_(self, image: Tensor, params: Params) -> Tensor:
        """Float [B, 3, H, W] in [0, 1] → the same, each image by its own draw."""
        chosen = params["chosen"]
        if not len(chosen):
            return image
        kernel = getattr(_kernels(image), self.kernel, None)
        if kernel is not None:
            kernel(image, chosen, *(params[name] for name in self.takes))
            return image
        part = self.apply_transform(image.index_select(0, chosen), params, self.flags)
        return image.index_copy_(0, chosen, part)

    def transform_inputs(self, input: Tensor, params: Params, *_: Any, **__: Any) -> Tensor:
        """Kornia's name for `change_`, of a copy."""
        return self.change_(self.transform_tensor(input).clone(), params)


class ColorJitter(OnChosen, K.IntensityAugmentationBase2D):
    """torchvision's `ColorJitter` with a probability; see `functional.jitter`."""

    kernel, takes = "jitter", ("turns",)

    def __init__(self, p: float, strengths: tuple[float, ...]) -> None:
        super().__init__(p=p)
        self.flags = {"strengths": strengths}

    def _draw_for(self, chosen: int, count: int, random: torch.Generator) -> Params:
        *blends, hue = self.flags["strengths"]
        ranges = [(max(0.0, 1 - strength), 1 + strength) for strength in blends] + [(-hue, hue)]
        factors = torch.stack([F.uniform((chosen,), *limits, random) for limits in ranges], dim=1)
        shape = (chosen, len(ranges))
        order = torch.rand(shape, dtype=torch.float32, generator=random).argsort(1)
        turns, *turned = F.turns_of(factors, order)
        return {"turns": turns, **{f"turned_{turn}": rows for turn, rows in enumerate(turned)}}

    def apply_transform(self, input: Tensor, params: Params, *_: Any, **__: Any) -> Tensor:
        """See `functional.jittered`."""
        turns = params["turns"]
        return F.jittered(input, turns, *(params[f"turned_{n}"] for n in range(len(turns))))


class GaussianBlur(OnChosen, K.IntensityAugmentationBase2D):
    """solo-learn's `GaussianBlur` with a probability; see `functional.blur`."""

    kernel, takes = "blur", ("sigma",)

    def _draw_for(self, chosen: int, count: int, random: torch.Generator) -> Params:
        return {"sigma": F.uniform((chosen,), *F.BLUR_SIGMA, random).float()}

    def apply_transform(self, input: Tensor, params: Params, *_: Any, **__: Any) -> Tensor:
        """See `functional.blur`."""
        return F.blur(input, params["sigma"])


class Grayscale(OnChosen, K.RandomGrayscale):
    """Kornia's, by fewer calls: with those of its own, views of small batches take 4 % longer."""

    kernel = "grayscale"

    def apply_transform(self, input: Tensor, params: Params, *_: Any, **__: Any) -> Tensor:
        """The luminance in all three channels."""
        return F.luminance(input).expand(-1, 3, -1, -1)


class Solarize(OnChosen, K.RandomSolarize):
    """Kornia's, by fewer calls, with the threshold between the levels 127 and 128."""

    kernel = "solarize"

    def __init__(self, p: float) -> None:
        super().__init__((_SOLARIZE_FROM, _SOLARIZE_FROM), (0.0, 0.0), p=p)

    def _draw_for(self, chosen: int, count: int, random: torch.Generator) -> Params:
        # Kornia draws a threshold and an addition an image: what follows draws as after it
        torch.rand(2 * count, dtype=torch.float32, generator=random)
        return {}

    def apply_transform(self, input: Tensor, params: Params, *_: Any, **__: Any) -> Tensor:
        """Invert what is bright."""
        input = input.clamp(0, 1)
        return input.where(input < _SOLARIZE_FROM, 1 - input)


class Equalize(OnChosen, K.RandomEqualize):
    """Kornia's, on the 8-bit levels."""

    def change_(self, image: Tensor, params: Params) -> Tensor:
        """All images are rounded to the levels that Pillow counts; Kornia cuts fractions off."""
        return super().change_(image.mul_(255).round_().div_(255), params)


class HorizontalFlip(OnChosen, K.RandomHorizontalFlip):
    """Kornia's."""

    kernel = "flip"


class Normalize(Own, K.Normalize):
    """Kornia's, in place."""

    def draw(self, shape: tuple[int, ...], random: torch.Generator) -> Params:
        """Mean and standard deviation, float32 [2, 3]: no draw, but sent with those."""
        return {"moments": torch.stack([self.flags["mean"], self.flags["std"]])}

    def change_(self, image: Tensor, params: Params) -> Tensor:
        """Float [B, 3, H, W] → the same."""
        mean, std = params["moments"][..., None, None].unbind(0)
        return image.sub_(mean).div_(std)
