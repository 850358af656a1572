"""solo-learn's `augmentations` as pipelines of operations, on the images' device.

All that a batch of views needs is drawn first, in any thread, and sent to the device in one copy.
Images stay in [0, 1] until they are normalised last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from solo_infoaug.errors import ConfigError
from solo_infoaug.host import Host
from solo_infoaug.views import operations as ops
from solo_infoaug.views.operations import Drawn, Operation

_ALIGNED = 16  # bytes: where a tensor may begin in what is sent


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
    return unpacked(packed(values, pin=device.type == "cuda").to(device, non_blocking=True), values)


def _places(values: Sequence[Tensor]) -> list[int]:
    """Where each value begins among bytes, and where the last one ends."""
    sizes = (-(-value.nbytes // _ALIGNED) * _ALIGNED for value in values)
    return [0, *accumulate(sizes)]


def packed(values: Sequence[Tensor], pin: bool) -> Tensor:
    """The bytes of CPU tensors in one piece, uint8."""
    places = _places(values)
    piece = torch.empty(places[-1], dtype=torch.uint8, pin_memory=pin)
    # numpy copies on the thread that it is called from, and lets others run meanwhile
    room = piece.numpy()
    for value, start in zip(values, places, strict=False):
        room[start : start + value.nbytes] = value.contiguous().numpy().reshape(-1).view(np.uint8)
    return piece


def unpacked(piece: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The values again, which share the memory of the bytes."""
    return [
        piece[start : start + value.nbytes].view(value.dtype).view(value.shape)
        for value, start in zip(like, _places(like), strict=False)
    ]


# The others, in the order in which solo-learn has them.
_BY_KEY: dict[str, type[ops.OnSome]] = {
    "grayscale": ops.Grayscale,
    "gaussian_blur": ops.GaussianBlur,
    "solarization": ops.Solarize,
    "equalization": ops.Equalize,
    "horizontal_flip": ops.HorizontalFlip,
}


def _probability(augmentation: Any, name: str) -> float:
    return float(OmegaConf.select(augmentation, f"{name}.prob", default=0.0) or 0.0)


def build_pipeline(augmentation: Any, mean: Sequence[float], std: Sequence[float]) -> Pipeline:
    """Translate one entry of solo-learn's `augmentations`.

    Args:
        augmentation: the entry, a mapping in solo-learn's format.
        mean: per channel, of images in [0, 1].
        std: per channel, of the same images.

    Raises:
        ConfigError: a key that solo-learn does not have.
    """
    if not isinstance(augmentation, DictConfig):
        augmentation = OmegaConf.create(augmentation)
    known = {*_BY_KEY, "rrc", "color_jitter", "crop_size", "num_crops", "mean", "std"}
    if unknown := set(augmentation) - known:
        raise ConfigError(
            f"augmentations: unknown key {min(unknown)!r}; expected {', '.join(sorted(known))}"
        )
    size = int(augmentation.crop_size)
    scale: tuple[float, float] | None = None
    if OmegaConf.select(augmentation, "rrc.enabled", default=False):
        scale = (float(augmentation.rrc.crop_min_scale), float(augmentation.rrc.crop_max_scale))
    operations: list[Operation] = [ops.ResizedCrop(size, scale)]
    if p := _probability(augmentation, "color_jitter"):
        given = augmentation.color_jitter
        parts = ("brightness", "contrast", "saturation", "hue")
        operations.append(ops.ColorJitter(p, tuple(float(given.get(part, 0.0)) for part in parts)))
    operations += [
        operation(p)
        for name, operation in _BY_KEY.items()
        if (p := _probability(augmentation, name))
    ]
    operations.append(ops.Normalize(tuple(mean), tuple(std)))
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
        width: of a patch, pixels.
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
        twin: uint8 [B, 3, H, W], on the same device.
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
