"""solo-learn's `augmentations` as pipelines of Kornia's augmentations, on the images' device.

All that a batch of views needs is drawn first, in any thread, and sent to the device in one copy.
Images stay in [0, 1] until they are normalised last.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import kornia.augmentation as K
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from solo_infoaug._checks import require
from solo_infoaug.errors import ConfigError
from solo_infoaug.host import Host
from solo_infoaug.views import operations as ops
from solo_infoaug.views.functional import BLUR_SIGMA
from solo_infoaug.views.named import NAMED, drawn_by, made, named, no_such_key
from solo_infoaug.views.operations import Own, Params

_ALIGNED = 16  # bytes: where a tensor may begin in what is sent
_ON_HOST = ("forward_input_shape", "order")  # which Kornia reads on the CPU


@dataclass(frozen=True)
class Pipeline:
    """One entry of `augmentations`: how its views are made, their size, and how many."""

    operations: tuple[nn.Module, ...]
    """Kornia's augmentations, ours among them."""

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
_BY_KEY: dict[str, type[ops.OnChosen]] = {
    "grayscale": ops.Grayscale,
    "gaussian_blur": ops.GaussianBlur,
    "solarization": ops.Solarize,
    "equalization": ops.Equalize,
    "horizontal_flip": ops.HorizontalFlip,
}
_JITTERED = ("brightness", "contrast", "saturation", "hue")
_KEYS = {*_BY_KEY, "rrc", "color_jitter", "crop_size", "num_crops", "mean", "std", "kornia"}


def _probability(augmentation: Any, name: str) -> float:
    return float(OmegaConf.select(augmentation, f"{name}.prob", default=0.0) or 0.0)


def build_pipeline(augmentation: Any, mean: Sequence[float], std: Sequence[float]) -> Pipeline:
    """Translate one entry of solo-learn's `augmentations`.

    Args:
        augmentation: the entry, a mapping in solo-learn's format; besides its keys, the names of
            Kornia's augmentations, which come last, and `kornia`: whether crop, jitter and blur
            are Kornia's as well.
        mean: per channel, of images in [0, 1].
        std: per channel, of the same images.

    Raises:
        ConfigError: an unknown key, or an augmentation of Kornia's that cannot be used.
    """
    if not isinstance(augmentation, DictConfig):
        augmentation = OmegaConf.create(augmentation)
    for key in map(str, augmentation):
        if key not in _KEYS and key not in NAMED:
            raise no_such_key(key, sorted(_KEYS))
    theirs = augmentation.get("kornia", False)
    require(isinstance(theirs, bool), "augmentations.kornia", "true or false", theirs)
    size = int(augmentation.crop_size)
    with _float32(), torch.device("cpu"):
        operations = _ours(augmentation, size)
        if theirs:
            operations = [_kornias(one, size) for one in operations]
        for key in map(str, augmentation):
            operations += named(key, augmentation[key], size) if key in NAMED else []
        operations.append(ops.Normalize(tuple(mean), tuple(std)))
    return Pipeline(tuple(operations), size, int(augmentation.num_crops))


def _ours(augmentation: Any, size: int) -> list[nn.Module]:
    """What solo-learn's keys say."""
    scale: tuple[float, float] | None = None
    if OmegaConf.select(augmentation, "rrc.enabled", default=False):
        scale = (float(augmentation.rrc.crop_min_scale), float(augmentation.rrc.crop_max_scale))
    operations: list[nn.Module] = [ops.ResizedCrop(size, scale)]
    if p := _probability(augmentation, "color_jitter"):
        given = augmentation.color_jitter
        strengths = tuple(float(given.get(part, 0.0)) for part in _JITTERED)
        operations.append(ops.ColorJitter(p, strengths))
    return operations + [
        kind(p=p) for name, kind in _BY_KEY.items() if (p := _probability(augmentation, name))
    ]


def _kornias(ours: nn.Module, size: int) -> nn.Module:
    """Kornia's own crop, jitter or blur in the place of ours."""
    side = 2 * math.ceil(3 * BLUR_SIGMA[1]) + 1
    square = {"size": (size, size), "resample": "bicubic"}
    kind: type[nn.Module]
    match ours:
        case ops.ResizedCrop(flags={"scale": None}):
            kind, how = K.Resize, {**square, "antialias": True}
        case ops.ResizedCrop(flags={"scale": scale}):
            kind, how = K.RandomResizedCrop, {**square, "scale": scale, "cropping_mode": "resample"}
        case ops.ColorJitter(flags={"strengths": strengths}):
            kind, how = K.ColorJitter, {"p": ours.p, **dict(zip(_JITTERED, strengths, strict=True))}
        case ops.GaussianBlur():
            kind = K.RandomGaussianBlur
            how = {"kernel_size": (side, side), "sigma": BLUR_SIGMA, "p": ours.p}
        case _:
            return ours
    return made("kornia", kind, size, how)


def check_hosts_keys(entries: Any) -> None:
    """Raise a ConfigError for what solo-learn's own views would leave out without a word."""
    for key in (str(key) for entry in entries for key in entry):
        if key == "kornia" or key in NAMED:
            raise ConfigError(
                f"augmentations.{key}: solo-learn's own views do not have it; write it in "
                "infoaug.augmentations, or set data.whole_batches=true"
            )


def run_pipelines(host: Host, cfg: Any, entries: Any) -> list[Pipeline]:
    """The pipelines of `entries`, normalised as the host normalises the run's own views."""
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
) -> list[Params]:
    """All that is drawn for the views of a batch, in the order in which `apply_views` takes it.

    There are `count` patches. With `both`, every crop is made twice, of the patch and of the twin.
    """
    drawn = []
    for pipeline in pipelines:
        size = pipeline.crop_size
        for _ in range(pipeline.num_crops * (1 + both)):
            shape = (count, 3, height, width)
            for operation in pipeline.operations:
                if isinstance(operation, Own):
                    drawn.append(operation.draw(shape, random))
                else:
                    drawn.append(drawn_by(operation, shape, random))
                shape = (count, 3, size, size)
    return drawn


def send(
    drawn: Sequence[Params], device: torch.device, *others: Tensor
) -> tuple[list[Params], list[Tensor]]:
    """What `draw_views` drew, and other tensors, sent to the device in one copy."""
    there = [dict(params) for params in drawn]
    places = [
        (params, name)
        for params in there
        for name, value in params.items()
        if name not in _ON_HOST and isinstance(value, Tensor)
    ]
    values = sent([*others, *(params[name] for params, name in places)], device)
    for (params, name), value in zip(places, values[len(others) :], strict=True):
        params[name] = value
    return there, values[: len(others)]


@torch.no_grad()
def apply_views(
    pipelines: Sequence[Pipeline],
    patch: Tensor,
    twin: Tensor,
    drawn: Iterable[Params],
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
                    params = next(draws)
                    if isinstance(operation, Own):
                        view = operation.change_(view, params)
                    else:
                        view = operation(view, params=params)
                views.append(view)
    return views


def make_views(
    pipelines: Sequence[Pipeline], patch: Tensor, twin: Tensor, *, both: bool = False
) -> list[Tensor]:
    """Views of patches and of their twins by turns: a patch's, its twin's, a patch's, …

    The order is that of solo-learn's crops, so that the two views that a method pulls together
    are one of the patch and one of the twin. Draws from torch's global CPU generator: see
    `randomness.fork_rng`.

    Patches and twins are uint8 [B, 3, H, W] on the device where the views are made. Returns a
    float32 [B, 3, crop, crop], normalised, for each crop of the pipelines, or two with `both`: of
    the patch and of the twin.
    """
    count, _, height, width = patch.shape
    drawn = draw_views(pipelines, count, height, width, torch.default_generator, both=both)
    there, _ = send(drawn, patch.device)
    return apply_views(pipelines, patch, twin, there, both=both)
