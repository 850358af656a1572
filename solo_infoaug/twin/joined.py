"""A step's views in one pass of the backbone, with the numbers of a pass for each.

A pass reads, converts and adds to every weight, however few images it has: two passes of 24 images
take longer than one of 48. Batch norm alone looks across images, so it sees each view by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from solo_infoaug.twin.batch_norm import norms_of


@contextmanager
def joined(backbone: nn.Module, views: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the first of `views` of a size that the backbone is given takes the others along.

    Each view is to be given once, as solo-learn's base class does. What is given with other
    arguments (MAE's share of masked patches), or is none of `views`, gets a pass of its own; and
    so does all where PyTorch compiles, which would do that anew every step.
    """
    ready: dict[int, Tensor] = {}
    alone = backbone.forward

    def forward(view: Tensor, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or args or kwargs:
            return alone(view, *args, **kwargs)
        alike = [other for other in views if other.shape == view.shape]
        if len(alike) < 2 or not any(other is view for other in alike):
            return alone(view)
        if id(view) not in ready:
            with ExitStack() as stack:
                for norm in norms_of(backbone):
                    if norm.training:
                        stack.enter_context(_replaced(norm, _by_view(norm.forward, len(alike))))
                features = alone(torch.cat(alike)).chunk(len(alike))
            ready.update(zip(map(id, alike), features, strict=True))
        return ready.pop(id(view))

    with _replaced(backbone, forward):
        yield


def _by_view(forward: Callable[[Tensor], Tensor], views: int) -> Callable[[Tensor], Tensor]:
    return lambda images: torch.cat([forward(view) for view in images.chunk(views)])


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
