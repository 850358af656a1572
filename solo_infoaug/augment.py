"""solo-learn's `augmentations` as Kornia pipelines, on the device that the images are on.

The operations, their order and probabilities are those of solo-learn's torchvision pipelines;
images are normalised last, because Kornia's colour operations expect values in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import kornia.augmentation as K
import torch
from kornia.constants import Resample
from omegaconf import OmegaConf
from torch import Tensor, nn

from solo_infoaug.errors import ConfigError

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
_SOLARIZE_ABOVE = 128 / 255  # the threshold of PIL's ImageOps.solarize


@dataclass(frozen=True)
class Pipeline:
    """One entry of `augmentations`: how its views are made, their size, and how many."""

    operations: nn.Sequential
    crop_size: int
    num_crops: int


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
    operations: list[nn.Module] = []
    if augmentation.rrc.enabled:
        scale = (float(augmentation.rrc.crop_min_scale), float(augmentation.rrc.crop_max_scale))
        operations.append(
            K.RandomResizedCrop(
                (size, size), scale=scale, resample=Resample.BICUBIC, cropping_mode="resample"
            )
        )
    else:
        operations.append(K.Resize((size, size), resample=Resample.BICUBIC, antialias=True))
    if p := _probability(augmentation, "color_jitter"):
        jitter = augmentation.color_jitter
        strengths = [
            float(jitter.get(name, 0.0)) for name in ("brightness", "contrast", "saturation", "hue")
        ]
        operations.append(K.ColorJitter(*strengths, p=p))
    if p := _probability(augmentation, "grayscale"):
        operations.append(K.RandomGrayscale(p=p))
    if p := _probability(augmentation, "gaussian_blur"):
        # three sigmas either side, and smaller than the image, which the border is reflected from
        kernel = min(13, size - 1 + size % 2)
        operations.append(K.RandomGaussianBlur((kernel, kernel), _BLUR_SIGMA, p=p))
    if p := _probability(augmentation, "solarization"):
        operations.append(
            K.RandomSolarize(thresholds=(_SOLARIZE_ABOVE, _SOLARIZE_ABOVE), additions=0.0, p=p)
        )
    if p := _probability(augmentation, "equalization"):
        operations.append(K.RandomEqualize(p=p))
    if p := _probability(augmentation, "horizontal_flip"):
        operations.append(K.RandomHorizontalFlip(p=p))
    operations.append(K.Normalize(torch.tensor(mean), torch.tensor(std)))
    return Pipeline(nn.Sequential(*operations), size, int(augmentation.num_crops))


@contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, torch draws from `seed`, on the CPU and on `device`; outside nothing has happened.

    Kornia and solo-learn's methods draw from torch's global generators.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    before = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)


@torch.no_grad()
def make_views(
    pipelines: Sequence[Pipeline], patch: Tensor, twin: Tensor, *, both: bool = False
) -> list[Tensor]:
    """Views of patches and of their twins by turns: a patch's, its twin's, a patch's, …

    The order is that of solo-learn's crops, so that the two views that a method pulls together
    are one of the patch and one of the twin. Draws from torch's global generator: see
    `own_randomness`.

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
    with torch.autocast(patch.device.type, enabled=False):
        for pipeline in pipelines:
            for _ in range(pipeline.num_crops * (1 + both)):
                image = sources[len(views) % 2]
                for operation in pipeline.operations:
                    image = operation(image)
                    if _is_crop(operation):
                        # bicubic interpolation overshoots, and colour operations need [0, 1]
                        image = image.clamp_(0, 1)
                views.append(image)
    return views


def _is_crop(operation: nn.Module) -> bool:
    return isinstance(operation, K.RandomResizedCrop | K.Resize)
