"""The f-MICL loss over batches, queues, momentum keys and ranks.

    L = −(1/N) Σ_i s(x_i, y_i) + α · mean over negative pairs of f*(s)

Reference: Lu, Zhang, Sun, Guo, Yu: f-MICL. TMLR 10/2023, arXiv:2402.10150. Features are normalised
here. Everything is computed in float32 (float64 stays float64), even under autocast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from numbers import Real
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from solo_infoaug.objectives.divergences import get_divergence
from solo_infoaug.objectives.similarities import get_similarity, log_kernel


class Setting(NamedTuple):
    """α and σ of a task; the paper sets them per task, not per divergence."""

    alpha: float
    sigma: float


VISION = Setting(alpha=40.0, sigma=math.sqrt(1 / 2))
"""The paper's setting for images: 1/(2σ²) = 1."""
TEXT = Setting(alpha=409600.0, sigma=math.sqrt(1 / 40))
"""The paper's setting for sentences: 1/(2σ²) = 20."""

NEGATIVES = ("views", "keys")


class FMICLTerms(NamedTuple):
    """The two terms of the objective, scalars: mean s over positives, mean f*(s) over negatives."""

    positive: Tensor
    negative: Tensor

    def loss(self, alpha: float) -> Tensor:
        """−positive + α · negative."""
        return alpha * self.negative - self.positive


def fmicl_terms(
    x: Tensor,
    y: Tensor,
    divergence: str = "kl",
    similarity: str = "gaussian",
    *,
    sigma: float = VISION.sigma,
    order: float | None = None,
    queue: Tensor | None = None,
    negatives: str = "views",
    gather: bool = False,
) -> FMICLTerms:
    """The positive and the negative term of f-MICL apart; arguments as in `fmicl_loss`."""
    _check_features(x, y, queue, negatives, gather)
    pointwise = _pointwise(divergence, similarity, sigma, order)
    own = None if queue is None else queue[None]
    return _terms(x[None], y[None], own, *pointwise, negatives=negatives, gather=gather)


def fmicl_view_terms(
    views: Sequence[Tensor],
    divergence: str = "kl",
    similarity: str = "gaussian",
    *,
    sigma: float = VISION.sigma,
    order: float | None = None,
    gather: bool = False,
) -> FMICLTerms:
    """The two terms over V ≥ 2 views [N, D] of the same samples, in which no view is special.

    Positives are all pairs of views of a sample; negatives are all pairs of samples in each view.
    For V = 2 it is the mean of `fmicl_terms(x, y)` and `fmicl_terms(y, x)`.

    Raises:
        ValueError: for fewer than two views, and as `fmicl_loss`.
    """
    if len(views) < 2:
        raise ValueError(f"views: expected at least 2 views [N, D], got {len(views)}")
    for view in views:
        _check_features(views[0], view, None, "views", gather)
    value, penalty = _pointwise(divergence, similarity, sigma, order)
    with torch.autocast(device_type=views[0].device.type, enabled=False):
        z = on_sphere(torch.stack(list(views)))
        cosines = torch.stack([(a * b).sum(-1) for a, b in combinations(z.unbind(), 2)])
        return FMICLTerms(value(cosines).mean(), _others(z, z, penalty, gather))


def fmicl_loss(
    x: Tensor,
    y: Tensor,
    divergence: str = "kl",
    similarity: str = "gaussian",
    *,
    alpha: float = VISION.alpha,
    sigma: float = VISION.sigma,
    order: float | None = None,
    queue: Tensor | None = None,
    negatives: str = "views",
    gather: bool = False,
) -> Tensor:
    """Contrastive loss from an f-divergence, [N, D], [N, D] → scalar.

    Positives are (x_i, y_i). Negatives are, of each x_i:

        default             x_j, j ≠ i: the other samples of the same view (the paper's batch form)
        negatives="keys"    y_j, j ≠ i: the other samples' momentum keys (MoCo v3)
        queue=[M, D]        every entry of the queue (MoCo v2+)

    Args:
        x: features [N, D], or queries; normalised here.
        y: features [N, D] of the positives, or momentum keys; normalised here.
        divergence: one of `DIVERGENCES`.
        similarity: "gaussian" (s = f′∘G_σ) or "cosine".
        alpha: weight α > 0 of the negative term; the paper's 40 for images, `TEXT` for sentences.
        sigma: width σ > 0 of the kernel; 1/(2σ²) is the paper's 1 for images, 20 for sentences.
        order: a of `tsallis` (default `DEFAULT_ORDER`); other divergences have none.
        queue: past keys [M, D] as the negatives.
        negatives: "views" or "keys".
        gather: take the negatives from all ranks, with gradients. Averaged over the ranks (as DDP
            does), loss and gradients are those of one process with the whole batch. Every rank must
            hold the same N. Without an initialised process group it has no effect.

    Returns:
        The loss, float32 (float64 for float64 features).

    Raises:
        ValueError: shapes, dtypes or devices do not match; a name is unknown; the divergence is
            refused; α, σ or the order is out of range; the batch has no negatives; or there is a
            queue together with `negatives="keys"` or `gather`.

    Examples:
        Two samples, each equal to its positive and at right angles to the other: -1 + 40·e⁻².

        >>> features = torch.eye(2)
        >>> round(fmicl_loss(features, features).item(), 3)
        4.413
    """
    numbers: dict[str, Any] = {"alpha": alpha, "sigma": sigma, "order": order}
    loss = FMICLLoss(divergence, similarity, **numbers, negatives=negatives, gather=gather)
    return loss(x, y, queue)


class FMICLLoss(nn.Module):
    """`fmicl_loss` with fixed options, otherwise stateless. Arguments and errors are the same."""

    def __init__(
        self,
        divergence: str = "kl",
        similarity: str = "gaussian",
        *,
        alpha: float = VISION.alpha,
        sigma: float = VISION.sigma,
        order: float | None = None,
        negatives: str = "views",
        gather: bool = False,
    ) -> None:
        super().__init__()
        check_positive("alpha", alpha)
        _pointwise(divergence, similarity, sigma, order)  # checks them
        _check_negatives(negatives)
        self.alpha = alpha
        self.options: dict[str, Any] = {
            "divergence": divergence,
            "similarity": similarity,
            "sigma": sigma,
            "order": order,
            "negatives": negatives,
            "gather": gather,
        }

    def terms(self, x: Tensor, y: Tensor, queue: Tensor | None = None) -> FMICLTerms:
        """[N, D], [N, D] → the two terms apart."""
        return fmicl_terms(x, y, queue=queue, **self.options)

    def mean_terms(
        self, queries: Sequence[Tensor], keys: Sequence[Tensor], queues: Tensor | None = None
    ) -> FMICLTerms:
        """V times [N, D], [N, D] (and [V, M, D]) → the mean of their `terms`, in one go."""
        for i, (x, y) in enumerate(zip(queries, keys, strict=True)):
            queue = None if queues is None else queues[i]
            _check_features(x, y, queue, self.options["negatives"], self.options["gather"])
        options = dict(self.options)
        shared = {name: options.pop(name) for name in ("negatives", "gather")}
        x, y = torch.stack(list(queries)), torch.stack(list(keys))
        return _terms(x, y, queues, *_pointwise(**options), **shared)

    def forward(self, x: Tensor, y: Tensor, queue: Tensor | None = None) -> Tensor:
        """[N, D], [N, D] (and [M, D]) → scalar."""
        return self.terms(x, y, queue).loss(self.alpha)

    def view_terms(self, views: Sequence[Tensor]) -> FMICLTerms:
        """V views [N, D] → the two terms apart, in which no view is special."""
        options = {key: self.options[key] for key in self.options if key != "negatives"}
        return fmicl_view_terms(views, **options)

    def extra_repr(self) -> str:
        """The settings, for `print(model)`."""
        options = {"alpha": self.alpha, **self.options}
        return ", ".join(f"{key}={value!r}" for key, value in options.items())


def check_positive(name: str, value: object) -> None:
    """Raise a ValueError that names the argument unless `value` is a finite number above 0."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:  # type: ignore[arg-type, operator]
        raise ValueError(f"{name}: expected a finite number above 0, got {value!r}")


def gather_across_ranks(x: Tensor) -> Tensor:
    """[N, D] of each rank → [ranks · N, D] in rank order; gradients flow back to their rank.

    `x` itself where no process group is initialised. Collective: all ranks must call it, with
    tensors of one shape.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        gathered: Tensor = _Gather.apply(x)
        return gathered
    return x


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()  # and the parts like it: NCCL takes no others
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def _pointwise(
    divergence: str, similarity: str, sigma: float, order: float | None
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """s and f*(s) as functions of the inner product of unit vectors."""
    check_positive("sigma", sigma)
    div, sim = get_divergence(divergence, order), get_similarity(similarity)
    return (
        lambda cosine: sim.value(log_kernel(cosine, sigma), div),
        lambda cosine: sim.penalty(log_kernel(cosine, sigma), div),
    )


def _terms(
    x: Tensor,
    y: Tensor,
    queue: Tensor | None,
    value: Callable[[Tensor], Tensor],
    penalty: Callable[[Tensor], Tensor],
    *,
    negatives: str,
    gather: bool,
) -> FMICLTerms:
    """[V, N, D], [V, N, D] (and [V, M, D]) → the two terms, means over V."""
    with torch.autocast(device_type=x.device.type, enabled=False):
        x, y = on_sphere(x), on_sphere(y)
        positive = value((x * y).sum(-1)).mean()
        if queue is not None:
            return FMICLTerms(positive, penalty(x @ on_sphere(queue).mT).mean())
        return FMICLTerms(positive, _others(x, x if negatives == "views" else y, penalty, gather))


def _others(x: Tensor, others: Tensor, penalty: Callable[[Tensor], Tensor], gather: bool) -> Tensor:
    """Mean penalty of x_i against others_j of all ranks, j ≠ i; unit vectors [V, N, D] → scalar."""
    everyone = others
    if gather:
        everyone = gather_across_ranks(others.transpose(0, 1)).transpose(0, 1)
    rows, columns = x.shape[1], everyone.shape[1]
    first = 0 if columns == others.shape[1] else dist.get_rank() * rows
    if columns < 2:
        raise ValueError(
            "x: expected at least 2 samples, or a queue, to have negatives, got a batch of 1"
        )
    penalties = penalty(x @ everyone.mT)
    same = torch.zeros(rows, columns, dtype=torch.bool, device=x.device)
    same.diagonal(first).fill_(True)
    return penalties.masked_fill(same, 0).sum() / (len(x) * rows * (columns - 1))


def on_sphere(x: Tensor) -> Tensor:
    """Rows of unit length, in float32 unless float64 came."""
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1)


def _check_negatives(negatives: str) -> None:
    if negatives not in NEGATIVES:
        raise ValueError(f"negatives: expected one of {', '.join(NEGATIVES)}, got {negatives!r}")


def _check_features(
    x: Tensor, y: Tensor, queue: Tensor | None, negatives: str, gather: bool
) -> None:
    _check_negatives(negatives)
    if x.ndim != 2 or not x.is_floating_point():
        got = f"{x.dtype} {list(x.shape)}"
        raise ValueError(f"x: expected floating-point features [N, D], got {got}")
    if y.shape != x.shape or not y.is_floating_point() or y.device != x.device:
        raise ValueError(
            f"y: expected floating-point features {list(x.shape)} on {x.device} like x, "
            f"got {y.dtype} {list(y.shape)} on {y.device}"
        )
    if queue is None:
        return
    width = x.shape[1]
    if queue.ndim != 2 or queue.shape[1] != width or len(queue) == 0:
        raise ValueError(f"queue: expected [M, {width}] with M ≥ 1 like x, got {list(queue.shape)}")
    if not queue.is_floating_point() or queue.device != x.device:
        raise ValueError(
            f"queue: expected floating-point features on {x.device} like x, "
            f"got {queue.dtype} on {queue.device}"
        )
    if negatives != "views" or gather:
        raise ValueError(
            f"queue: expected no queue with negatives={negatives!r}, gather={gather}: "
            "with a queue, its entries are the negatives, and all ranks have the same queue"
        )
