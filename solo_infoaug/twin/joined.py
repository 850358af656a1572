"""A step's views in one pass of the backbone, with the numbers of a pass for each.

A pass reads, converts and adds to every weight, however few images it has: two passes of 24 images
take longer than one of 48. Batch norm alone looks across images, so it sees each view by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from solo_infoaug.twin.batch_norm import norms_of


@contextmanager
def joined(backbone: nn.Module, views: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the first of `views` of a size that the backbone is given takes the others along.

    Each view is to be given once, as solo-learn's base class does. What is given with other
    arguments (MAE's share of masked patches), or is none of `views`, gets a pass of its own; and
    so does all where PyTorch compiles, which would do that anew every step, and on a GPU, where
    batches are large, and what batch norm would copy costs more than a pass.
    """
    on_cpu = all(view.device.type == "cpu" for view in views)
    if not on_cpu or torch.compiler.is_compiling() or _has_compiled():
        yield
        return
    ready: dict[int, Tensor] = {}
    alone = backbone.forward

    def forward(view: Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            return alone(view, *args, **kwargs)
        alike = [other for other in views if other.shape == view.shape]
        if len(alike) < 2 or not any(other is view for other in alike):
            return alone(view)
        if id(view) not in ready:
            with ExitStack() as stack:
                for norm in norms_of(backbone):
                    if norm.training:
                        stack.enter_context(_replaced(norm, _by_view(norm, len(alike))))
                features = alone(torch.cat(alike)).chunk(len(alike))
            ready.update(zip(map(id, alike), features, strict=True))
        return ready.pop(id(view))

    with _replaced(backbone, forward):
        yield


def _has_compiled() -> bool:
    """Whether PyTorch has compiled anything in this process."""
    dynamo = sys.modules.get("torch._dynamo")
    return dynamo is not None and bool(dynamo.utils.counters.get("frames"))


def _by_view(norm: _BatchNorm, views: int) -> Callable[[Tensor], Tensor]:
    """A forward pass of the batch norm for so many views, each by itself."""
    alone: Callable[[Tensor], Tensor] = norm.forward

    def forward(images: Tensor) -> Tensor:
        usual = (
            type(norm) is nn.BatchNorm2d
            and norm.affine
            and norm.momentum is not None
            and images.dtype == norm.weight.dtype
        )
        if not usual or norm.num_batches_tracked is None:
            return torch.cat([alone(view) for view in images.chunk(views)])
        norm.num_batches_tracked.add_(views)
        settings = norm.running_mean, norm.running_var, norm.momentum, norm.eps, views
        normalised: Tensor = _NormByView.apply(images, norm.weight, norm.bias, *settings)
        return normalised

    return forward


class _NormByView(torch.autograd.Function):
    """Batch norm of each view by itself, written to where all lie.

    To put the views together afterwards costs a hundredth of a step.
    """

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        momentum: float,
        eps: float,
        views: int,
    ) -> Tensor:
        out = torch.empty_like(images)
        statistics = images.new_empty(views, 2, images.shape[1])
        pieces = images.chunk(views), out.chunk(views), *statistics.unbind(1)
        for view, *written in zip(*pieces, strict=True):
            torch.native_batch_norm(
                view, weight, bias, mean, variance, True, momentum, eps, out=written
            )
        ctx.save_for_backward(images, weight, statistics)
        ctx.eps = eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, statistics = ctx.saved_tensors
        views = len(statistics)
        pieces = gradient.chunk(views), images.chunk(views), *statistics.unbind(1)
        gradients = [
            torch.ops.aten.native_batch_norm_backward(
                of_view, view, weight, None, None, mean, scale, True, ctx.eps, [True] * 3
            )
            for of_view, view, mean, scale in zip(*pieces, strict=True)
        ]
        of_images, of_weight, of_bias = zip(*gradients, strict=True)
        return torch.cat(of_images), sum(of_weight), sum(of_bias), *[None] * 5


@contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, the module's `forward` is this one."""
    before = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = before
