"""All views of a step in one pass of a ResNet, with the results of separate passes.

A pass reads, converts and adds to every weight, however few images it has, so four passes of 24
images take longer than one of 96. Only batch norm looks across images, so it treats each view
separately.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import ResNet

from solo_infoaug.twin.batch_norm import frozen, norms_of, seen
from solo_infoaug.twin.stacked import apart, by_turns, fits, is_usual, replaced, stacked

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Views:
    """The views of a branch, and the batch norms that the branch uses."""

    images: Sequence[Tensor]
    norms: nn.ModuleList | None = None
    """Replacements for the backbone's own, in the order of `norms_of`."""

    is_frozen: bool = False
    """The views are normalised by the running statistics and do not update them."""


@dataclass(frozen=True, eq=False)
class _View:
    image: Tensor
    branch: Views


@contextmanager
def joined(backbone: nn.Module, *branches: Views, few: bool | None = None) -> Iterator[None]:
    """Inside, the first view given to the backbone also carries the later views of its size.

    Branches come in the order in which they use the backbone; the first uses its batch norms
    unchanged. Each branch gives the backbone each of its views once, as solo-learn's base class
    does, and gets the features that are already computed. With crops of several sizes, each
    branch's views pass separately, because running statistics must see a branch's small crops
    before the next branch. Inputs that are not views get a pass of their own. So do all views if
    PyTorch compiles (it would compile again at every step), if other hooks watch a layer, or if the
    backbone is not one of torchvision's ResNets (it might draw random numbers).

    With `few` (the default on a GPU), views pass all layers together, with as few operations as
    possible. Otherwise only the layers where this saves memory traffic.
    """
    compiles = torch.compiler.is_compiling() or _has_compiled()
    if compiles or _has_hooks(backbone) or not _is_resnet(backbone):
        yield
        return
    waiting = [_View(image, branch) for branch in branches for image in branch.images]
    one_size = all(_alike(view.image, waiting[0].image) for view in waiting)
    ready: dict[int, Tensor] = {}
    alone = backbone.forward
    trained = any(parameter.requires_grad for parameter in backbone.parameters())

    def forward(image: Tensor) -> Tensor:
        usual = trained == torch.is_grad_enabled()
        if usual and id(image) in ready:
            return ready.pop(id(image))
        place = next((i for i, view in enumerate(waiting) if view.image is image), None)
        if not usual or place is None:
            return alone(image)
        branch = waiting[place].branch
        together = [
            view
            for view in waiting[place:]
            if _alike(view.image, image) and (one_size or view.branch is branch)
        ]
        waiting[:] = [view for view in waiting if view not in together]
        if len(together) == 1:
            return alone(image)
        by_few = image.device.type != "cpu" if few is None else few
        features = _together(backbone, alone, together, by_few)
        ready.update((id(v.image), f) for v, f in zip(together, features, strict=True))
        return ready.pop(id(image))

    with replaced(backbone, forward):
        yield


def _has_compiled() -> bool:
    """Whether PyTorch has compiled anything in this process."""
    dynamo = sys.modules.get("torch._dynamo")
    return dynamo is not None and bool(dynamo.utils.counters.get("frames"))


def _is_resnet(backbone: nn.Module) -> bool:
    """Whether the backbone's `forward` is torchvision's, whatever its layers are."""
    return (
        isinstance(backbone, ResNet)
        and type(backbone).forward is ResNet.forward
        and type(backbone)._forward_impl is ResNet._forward_impl
    )


def _has_hooks(backbone: nn.Module) -> bool:
    return any(m._forward_hooks or m._forward_pre_hooks for m in backbone.modules())


def _alike(one: Tensor, other: Tensor) -> bool:
    """But for their number."""
    return one.shape[1:] == other.shape[1:] and one.dtype == other.dtype


def _together(
    backbone: nn.Module, alone: Forward, views: Sequence[_View], few: bool
) -> Sequence[Tensor]:
    """The features of each view, by one pass of all but the backbone's early layers."""
    norms = norms_of(backbone)
    # the first branch's are in place already
    own = [None if view.branch is views[0].branch else view.branch.norms for view in views]
    layers = list(zip(*(norms if o is None else o for o in own), strict=True))
    is_frozen = [view.branch.is_frozen for view in views]
    sizes = [len(view.image) for view in views]
    if few and norms and not any(is_frozen) and fits(layers, sizes):
        with stacked(backbone, norms, layers):
            return apart(alone(by_turns([view.image for view in views])), len(views))
    images, early = ([view.image for view in views], []) if few else _early(backbone, views)
    together = torch.cat(images)
    with ExitStack() as stack:
        for norm, theirs in zip(norms, layers, strict=True):
            stack.enter_context(replaced(norm, _by_view(theirs, is_frozen, sizes)))
        for module in early:
            stack.enter_context(replaced(module, lambda given: given))
        if early:
            stack.enter_context(replaced(early[-1], lambda _: together))
        return alone(views[0].image if early else together).split(sizes)


def _early(backbone: nn.Module, views: Sequence[_View]) -> tuple[list[Tensor], list[nn.Module]]:
    """The outputs of the layers that views pass one by one, and these layers.

    If activations are larger than weights, a joint pass costs more than it saves.
    """
    images, early = [view.image for view in views], []
    for stage in _stages(backbone):
        weights = sum(w.nbytes for part in stage for w in part.parameters())
        if largest_activation(stage, images) <= weights:
            break
        for i, view in enumerate(views):
            norms = seen(backbone, view.branch.norms, is_frozen=view.branch.is_frozen)
            # the first branch's are in place already
            with nullcontext() if view.branch is views[0].branch else norms:
                for module in stage:
                    images[i] = module(images[i])
        early += stage
    return images, early


def _stages(resnet: Any) -> list[list[nn.Module]]:
    """The layers that images pass in sequence, if there are no others."""
    stem = [resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool]
    return [stem, *([resnet.get_submodule(f"layer{i}")] for i in (1, 2, 3, 4))]


def largest_activation(stage: Sequence[nn.Module], images: Sequence[Tensor]) -> float:
    """Bytes of the largest activation of all images."""
    channels = images[0].shape[1]
    convolutions = [m for part in stage for m in part.modules() if isinstance(m, nn.Conv2d)]
    widest = max((convolution.out_channels for convolution in convolutions), default=channels)
    stride = max((convolution.stride[0] for convolution in convolutions), default=1)
    return sum(image.nbytes for image in images) / channels * widest / stride**2


def _by_view(
    norms: Sequence[_BatchNorm], is_frozen: Sequence[bool], sizes: Sequence[int]
) -> Forward:
    """A forward pass of each view by its own batch norm, some of them frozen."""
    alone = [norm.forward for norm in norms]  # that of one of them will be replaced

    def one(place: int, images: Tensor) -> Tensor:
        with frozen(norms[place]) if is_frozen[place] else nullcontext():
            return alone[place](images)

    def forward(images: Tensor) -> Tensor:
        if any(is_frozen) or not all(_is_usual(norm, images) for norm in norms):
            return torch.cat([one(i, view) for i, view in enumerate(images.split(sizes))])
        affine = [value for norm in dict.fromkeys(norms) for value in (norm.weight, norm.bias)]
        normalised: Tensor = _NormByView.apply(images, norms, sizes, *affine)
        return normalised

    return forward


def _is_usual(norm: _BatchNorm, images: Tensor) -> bool:
    """Whether `_NormByView` can replace this batch norm."""
    return is_usual(norm) and norm.weight.dtype == images.dtype and images.device.type == "cpu"


class _NormByView(torch.autograd.Function):
    """Batch norm of each view by its own module, written into one tensor.

    Concatenating the views afterwards would take a hundredth of a step.
    """

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        norms: Sequence[nn.BatchNorm2d],
        sizes: Sequence[int],
        *affine: Tensor,
    ) -> Tensor:
        """`affine`: weight and bias of each of the different `norms`."""
        out = torch.empty_like(images)
        statistics = images.new_empty(len(sizes), 2, images.shape[1])
        pieces = images.split(sizes), out.split(sizes), *statistics.unbind(1)
        for norm, view, *written in zip(norms, *pieces, strict=True):
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked.add_(1)
            kept = norm.weight, norm.bias, norm.running_mean, norm.running_var
            settings = norm.momentum, norm.eps
            torch.native_batch_norm(view, *kept, True, *settings, out=written)
        ctx.save_for_backward(images, statistics, *affine)
        different = list(dict.fromkeys(norms))
        ctx.norms = [different.index(norm) for norm in norms]
        ctx.sizes, ctx.eps = sizes, norms[0].eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, statistics, *affine = ctx.saved_tensors
        of_images: list[Tensor] = []
        of_affine: list[Any] = [0] * len(affine)
        pieces = gradient.split(ctx.sizes), images.split(ctx.sizes), *statistics.unbind(1)
        for norm, of_view, view, mean, scale in zip(ctx.norms, *pieces, strict=True):
            of_image, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
                of_view, view, affine[2 * norm], None, None, mean, scale, True, ctx.eps, [True] * 3
            )
            of_images.append(of_image)
            of_affine[2 * norm] += of_weight
            of_affine[2 * norm + 1] += of_bias
        return torch.cat(of_images), None, None, *of_affine
