"""Batch norm of several views in one call, each view by itself; for GPUs that wait for Python.

Views are interleaved in the batch: the first image of each view, then the second of each. `[B·V,
C]` is then `[B, V·C]` without a copy, and one native batch norm treats each view's channels
separately. One selection gathers the weights of all layers, and all running statistics are updated
at the end, so each layer needs one operation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Norms = Sequence[_BatchNorm]  # of one layer: a batch norm for each view


@contextmanager
def replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, the module's `forward` is replaced."""
    before = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = before


def fits(layers: Sequence[Norms], sizes: Sequence[int]) -> bool:
    """Whether one batch norm per layer is enough: views of one size, usual settings."""
    every = [norm for norms in layers for norm in norms]
    return (
        len(set(sizes)) == 1
        and all(map(is_usual, every))
        and len({(norm.momentum, norm.eps, norm.weight.dtype) for norm in every}) == 1
    )


def is_usual(norm: _BatchNorm) -> bool:
    """Whether it treats images as native batch norm does in training, and counts its batches."""
    return (
        type(norm) is nn.BatchNorm2d
        and norm.training
        and norm.affine
        and norm.momentum is not None
        and norm.running_mean is not None
        and norm.num_batches_tracked is not None
    )


def by_turns(views: Sequence[Tensor]) -> Tensor:
    """Images of V views `[B, ...]` as one batch `[B·V, ...]`."""
    return torch.stack(list(views), 1).flatten(0, 1)


def apart(features: Tensor, views: int) -> tuple[Tensor, ...]:
    """The features of each view of `by_turns`."""
    return features.unflatten(0, (-1, views)).unbind(1)


@contextmanager
def stacked(backbone: nn.Module, backbone_norms: Norms, layers: Sequence[Norms]) -> Iterator[None]:
    """Inside, the backbone's batch norms normalise each view of a `by_turns` batch by its own.

    `layers` has, for each of `backbone_norms`, the batch norms that it replaces. Running statistics
    are updated at the end, with the result of successive passes.
    """
    views = len(layers[0])
    different = list(dict.fromkeys(norm for norms in layers for norm in norms))
    channels = tuple(norm.num_features for norm in different)
    places = {norm: place for place, norm in enumerate(different)}
    which = tuple(tuple(places[norm] for norm in norms) for norms in layers)
    places_of = _indices(channels, which, different[0].weight.device)
    widths = [views * norm.num_features for norm in backbone_norms]
    affine = torch.stack(
        [torch.cat([n.weight for n in different]), torch.cat([n.bias for n in different])]
    )
    gathered = affine.index_select(1, places_of.every)
    weights, biases = (row.split(widths) for row in gathered.unbind(0))
    eps, seen = different[0].eps, {}

    def normalise(layer: int) -> Callable[[Tensor], Tensor]:
        def forward(images: Tensor) -> Tensor:
            side_by_side = images.reshape(-1, widths[layer], *images.shape[2:])
            out, mean, scale = torch.native_batch_norm(
                side_by_side, weights[layer], biases[layer], None, None, True, 0.0, eps
            )
            seen[layer] = mean.detach(), scale.detach(), side_by_side.numel() // widths[layer]
            # not a view to autograd: an in-place ReLU on a view takes five copies backward
            return torch.ops.aten._unsafe_view(out, images.shape)

        return forward

    with ExitStack() as stack:
        for layer, norm in enumerate(backbone_norms):
            stack.enter_context(replaced(norm, normalise(layer)))
        for convolution in backbone.modules():
            if type(convolution) is nn.Conv2d and not convolution.weight.is_contiguous():
                convolve = functools.partial(_convolve, convolution)
                stack.enter_context(replaced(convolution, convolve))
        yield
    if len(seen) == len(layers):
        _update(different, which, [seen[layer] for layer in range(len(layers))], places_of)


def _convolve(convolution: nn.Conv2d, images: Tensor) -> Tensor:
    """Run a layer in NCHW, which keeps interleaved views adjacent; weights in channels_last are
    copied."""
    weight = _Contiguous.apply(convolution.weight, _autocast_type(convolution.weight))
    return convolution._conv_forward(images, weight, convolution.bias)


def _autocast_type(weight: Tensor) -> torch.dtype:
    """The dtype that autocast would use in a layer."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


class _Contiguous(torch.autograd.Function):
    """A weight in NCHW, and its gradient in the weight's own layout, in one operation each.

    With autocast, the same operation converts the dtype.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = weight.dtype
        return weight.to(dtype, memory_format=torch.contiguous_format, copy=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.to(ctx.dtype, memory_format=torch.channels_last), None


def _update(
    different: Norms,
    which: tuple[tuple[int, ...], ...],
    seen: Sequence[tuple[Tensor, Tensor, int]],
    places_of: _Places,
) -> None:
    """Running statistics and counts, view after view."""
    momentum, eps = different[0].momentum, different[0].eps
    assert momentum is not None
    kept = [_buffers(different, name) for name in ("running_mean", "running_var")]
    with torch.no_grad():
        means = torch.cat([mean for mean, _, _ in seen])
        scales = torch.cat([scale for _, scale, _ in seen])
        widths = tuple(len(mean) for mean, _, _ in seen)
        counts = tuple(count for _, _, count in seen)
        unbiased = _unbiased(widths, counts, means.device, means.dtype)
        found = torch.stack([means, (scales.pow(-2) - eps) * unbiased])
        running = torch.stack([torch.cat(values) for values in kept])
        by_view = found.index_select(1, places_of.seen).split(places_of.sizes, 1)
        for target, values in zip(places_of.kept, by_view, strict=True):
            if target is None:
                running.lerp_(values, momentum)
            else:
                before = running.index_select(1, target)
                running.index_copy_(1, target, before.lerp_(values, momentum))
        sizes = [norm.num_features for norm in different]
        for values, row in zip(kept, running.unbind(0), strict=True):
            torch._foreach_copy_(values, row.split(sizes))
        times = [sum(norms.count(place) for norms in which) for place in range(len(different))]
        for number in set(times):
            counted = [n for n, t in zip(different, times, strict=True) if t == number]
            torch._foreach_add_(_buffers(counted, "num_batches_tracked"), number)


def _buffers(norms: Norms, name: str) -> list[Tensor]:
    return [norm.get_buffer(name) for norm in norms]


@dataclass(frozen=True)
class _Places:
    """Indices of channels, on the device. They are cached, because making them copies to the
    GPU."""

    every: Tensor
    """The channels that the layers use, view by view, among those of all batch norms."""

    seen: Tensor
    """Among those the ones of the first view, of the second, …"""

    sizes: list[int]
    """How many each view has."""

    kept: list[Tensor | None]
    """For each view, where its channels are among those of all batch norms; None: it uses all."""


@functools.lru_cache(maxsize=16)
def _indices(
    channels: tuple[int, ...], which: tuple[tuple[int, ...], ...], device: torch.device
) -> _Places:
    starts = [sum(channels[:place]) for place in range(len(channels))]
    spans = [[range(starts[p], starts[p] + channels[p]) for p in norms] for norms in which]
    every = [place for layer in spans for span in layer for place in span]
    views: list[list[int]] = [[] for _ in which[0]]
    at = 0
    for layer in spans:
        for view, span in enumerate(layer):
            views[view] += range(at, at + len(span))
            at += len(span)
    kept = [[every[place] for place in view] for view in views]
    everything = list(range(sum(channels)))
    return _Places(
        every=torch.tensor(every, device=device),
        seen=torch.tensor([place for view in views for place in view], device=device),
        sizes=[len(view) for view in views],
        kept=[None if k == everything else torch.tensor(k, device=device) for k in kept],
    )


@functools.lru_cache(maxsize=16)
def _unbiased(
    widths: tuple[int, ...], counts: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """n / (n - 1) of each channel, the factor of an unbiased variance."""
    factors = [
        n / max(n - 1, 1) for width, n in zip(widths, counts, strict=True) for _ in range(width)
    ]
    return torch.tensor(factors, device=device, dtype=dtype)
