"""Kornia's augmentations by their names, and how they draw from a generator that they are given."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import kornia.augmentation as K
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from solo_infoaug._checks import require
from solo_infoaug.errors import ConfigError

_CLASSES = {name: getattr(K, name) for name in K.__all__ if inspect.isclass(getattr(K, name))}
NAMED = {
    name: kind
    for name, kind in _CLASSES.items()
    if (issubclass(kind, K.AugmentationBase2D) and "Base" not in name) or name == "RandomJigsaw"
}
"""Those that change one image each."""


class Seeded(TorchDispatchMode):
    """Inside, this thread draws from `random`, and in float32 whatever the default dtype is.

    Kornia draws from torch's global generator, which a thread that prepares batches must not touch.
    Torch tags each operation that draws. One that cannot draw from a generator is an error, and so
    is any where `random` is None: no draw reaches the global one.
    """

    def __init__(self, random: torch.Generator | None) -> None:
        super().__init__()
        self.random = random

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded in func.tags:
            if self.random is None:
                raise RuntimeError("it draws while it is applied, and cannot be drawn ahead")
            packet, overload = func.overloadpacket, func._overloadname
            if packet in (torch.ops.aten.rand, torch.ops.aten.randn):
                kwargs.setdefault("dtype", torch.float32)
            if all(argument.name != "generator" for argument in func._schema.arguments):
                overload = "generator" if overload == "default" else f"{overload}_generator"
                if overload not in packet.overloads():
                    raise RuntimeError(f"{func} draws from torch's global generator alone")
                func = getattr(packet, overload)
            kwargs["generator"] = self.random
        # with a "true" precision Lightning sets another default, at times while this thread draws
        if isinstance(dtype := kwargs.get("dtype"), torch.dtype) and dtype.is_floating_point:
            kwargs["dtype"] = torch.float32
        return func(*args, **kwargs)


def drawn_by(augmentation: Any, shape: tuple[int, ...], random: torch.Generator) -> dict[str, Any]:
    """The parameters of one of Kornia's augmentations, on the CPU, by Kornia's names."""
    with Seeded(random):
        drawn: dict[str, Any] = augmentation.forward_parameters(torch.Size(shape))
    return drawn


def named(key: str, given: Any, size: int) -> list[nn.Module]:
    """The augmentation that Kornia calls `key`, for views of `size` pixels; none where it is off.

    Its arguments are a mapping, `true` for none, `false` or `null` to leave it out.

    Raises:
        ConfigError: as `made`; or there is no such argument.
    """
    if given is None or given is False:
        return []
    given = OmegaConf.to_container(given, resolve=True) if OmegaConf.is_config(given) else given
    arguments = {} if given is True else given
    mapping = isinstance(arguments, Mapping)
    require(mapping, f"augmentations.{key}", "true, false or a mapping of its arguments", given)
    known = inspect.signature(NAMED[key]).parameters
    for name in map(str, arguments):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ";"
            raise ConfigError(
                f"augmentations.{key}.{name}: no such argument{hint} expected {', '.join(known)}"
            )
    return [made(key, NAMED[key], size, arguments)]


def made(key: str, kind: type[nn.Module], size: int, given: Mapping[str, Any]) -> nn.Module:
    """An augmentation that has been tried on two images, so that no step is the first to fail.

    Raises:
        ConfigError: Kornia refuses its arguments, or views of this size; it cannot be drawn ahead;
            or it changes the size.
    """
    types = {name: str(one.annotation) for name, one in inspect.signature(kind).parameters.items()}
    shape = (2, 3, size, size)
    try:
        arguments = {name: _read(value, types[name]) for name, value in given.items()}
        augmentation = kind(**arguments)
        trial: Any = kind(**arguments)
        trial.p = 1.0
        drawn = drawn_by(trial, shape, torch.Generator().manual_seed(0))
        with Seeded(None), torch.no_grad():
            tried = trial(torch.full(shape, 0.5), params=drawn)
    except Exception as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"augmentations.{key}: Kornia's {kind.__name__} cannot be used for views of {size} "
            f"pixels with {given}: {why}"
        ) from error
    sides = f"views of {size} × {size} pixels, as `crop_size` says"
    got = " × ".join(map(str, tried.shape[2:]))
    require(tried.shape == shape, f"augmentations.{key}", sides, got)
    return augmentation


def _read(value: Any, kind: str = "") -> Any:
    """A value from YAML, whose lists Kornia wants as tuples, or in a few places as tensors."""
    if not isinstance(value, list | tuple):
        return value
    return (
        torch.tensor(value) if kind.endswith(("Tensor", "Tensor'>")) else tuple(map(_read, value))
    )


def no_such_key(key: str, known: list[str]) -> ConfigError:
    """The error for a key that is neither one of `known` nor one of `NAMED`."""
    if key in _CLASSES:
        why = "is not an augmentation by itself"
        if key.endswith("3D") or key.startswith("Video"):
            why = "is for volumes or video"
        elif issubclass(_CLASSES[key], K.MixAugmentationBaseV2):
            why = "mixes images, and needs their masks, boxes or labels"
        return ConfigError(f"augmentations.{key}: expected what changes one image; this {why}")
    short = {name.removeprefix("Random").lower(): name for name in (*NAMED, *known)}
    wanted = key.removeprefix("Random").replace("_", "").lower()
    near = [short[name] for name in difflib.get_close_matches(wanted, short, n=3)]
    hint = f"; did you mean {' or '.join(near)}?" if near else ";"
    return ConfigError(
        f"augmentations: unknown key {key!r}{hint} expected {', '.join(known)}, or the name of one "
        "of Kornia's augmentations of images"
    )
