"""Batch norm in a backbone that sees two distributions: a run's images, and patches of video.

`shared`    one set of statistics and weights for both, as if the twins were more of the same data.
`separate`  the branch has its own, as in AdvProp (Xie et al. 2020,
            arXiv:1911.09665).
`frozen`    the branch is normalised by the running statistics, and does not change them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def norms_of(backbone: nn.Module) -> list[_BatchNorm]:
    """The backbone's batch norms, in the order of its modules."""
    return [module for module in backbone.modules() if isinstance(module, _BatchNorm)]


def own_norms(backbone: nn.Module) -> nn.ModuleList:
    """Copies of the backbone's batch norms, for `exchanged`."""
    return nn.ModuleList(copy.deepcopy(norm) for norm in norms_of(backbone))


@contextmanager
def exchanged(backbone: nn.Module, own: nn.ModuleList) -> Iterator[None]:
    """Inside, the backbone's batch norms use the weights and statistics of `own`."""
    pairs = list(zip(norms_of(backbone), own, strict=True))
    _exchange(pairs)
    try:
        yield
    finally:
        _exchange(pairs)


def _exchange(pairs: list[tuple[_BatchNorm, nn.Module]]) -> None:
    for a, b in pairs:
        for held in ("_parameters", "_buffers"):
            vars(a)[held], vars(b)[held] = vars(b)[held], vars(a)[held]


@contextmanager
def frozen(backbone: nn.Module) -> Iterator[None]:
    """Inside, the backbone's batch norms use their running statistics and do not update them."""
    norms = norms_of(backbone)
    training = [norm.training for norm in norms]
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm, was in zip(norms, training, strict=True):
            norm.training = was


def seen(
    backbone: nn.Module, own: nn.ModuleList | None, *, is_frozen: bool
) -> AbstractContextManager[None]:
    """Inside, the backbone's batch norms are frozen if `is_frozen`, else exchanged for `own` if
    given."""
    if is_frozen:
        return frozen(backbone)
    return nullcontext() if own is None else exchanged(backbone, own)
