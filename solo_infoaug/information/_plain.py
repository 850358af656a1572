"""Sums over nearest neighbours in plain torch: any device, no compiler.

A block of distances is `[T, *pairs, R]`: to every sample s (first axis) from R of the samples t
(last axis), so that a selection over s is a loop of element-wise operations on what the cache
holds. The distance to oneself, and to a sample that is absent, is +inf: they are nobody's
neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from solo_infoaug.information._series import Series

_LONG = 4096
_INSERTION_LIMIT = 16  # above this k a selection over the stacked distances beats the insertion


def neighbour_sums(x: Series, y: Series, k: int, kind: str, layout: str, max_memory: int) -> Tensor:
    """What all estimators are made of: sums over the samples that both tracks of a pair have.

    With ρ the L∞ distance of a sample to its k-th neighbour in the joint space of the pair:

    - `[..., 0]`, kind `3kl`: Σ log ρ over the samples with ρ > 0;
    - `[..., 1]`, kind `3kl`: how many samples have ρ = 0;
    - `[..., 2]`, kind `3kl`: Σ ψ(ties + 1) over these, ties the number of samples at distance 0;
    - `[..., 3]`, kind `3kl`, where dy = 0 and k > 1: Σ log of the distance to the first neighbour,
      over the samples where it is not 0; otherwise undefined;
    - `[..., 2]`, kind `ksg1`: Σ ψ(n + 1) - ψ(n_x + 1) - ψ(n_y + 1), n the samples nearer than ρ in
      the joint space (k - 1, but for ties) and n_x, n_y those nearer than ρ in one variable;
    - `[..., 2]`, kind `ksg2`: Σ ψ(n) - 1/n - ψ(n_x) - ψ(n_y), n the samples within ρ, n_x and n_y
      those within the reach of these in one variable.

    Where ρ = 0, both KSG kinds take ψ(n + 1) - ψ(n_x + 1) - ψ(n_y + 1) of the samples at distance
    0.

    Of x and y nothing is read but `x`, `[P, T, dx]` and `[Q, T, dy]`, either of them with d >= 0,
    and `valid`, `[P, T]` and `[Q, T]`.
    The layout is `all` pairs, `[P, Q, 4]`; the `upper` ones, j >= i, others undefined; or `paired`,
    x[p] with y[p] only, `[P, 4]`. The result is float64.
    """
    paired = layout == "paired"
    many, others, samples = len(x.x), len(y.x), x.x.shape[1]
    shape = (many, 4) if paired else (many, others, 4)
    out = torch.zeros(shape, dtype=torch.float64, device=x.x.device)
    side, rows = _block_shape(x.x, others, k, max_memory, paired)
    for i in _slices(many, side):
        for j in [i] if paired else _slices(others, side):
            if layout == "upper" and j.stop <= i.start:
                continue
            for t in _slices(samples, rows):
                to_x, to_y = _distances(x.x, x.valid, i, t), _distances(y.x, y.valid, j, t)
                if paired:
                    out[i] += _sums(to_x, to_y, k, kind, y.d == 0)
                else:
                    out[i, j] += _sums(to_x[:, :, None], to_y[:, None], k, kind, y.d == 0)
    return out


def smallest_distances(x: Tensor, valid: Tensor | None, max_memory: int) -> Tensor:
    """The smallest distance between two different samples of each track, +inf if there is none.

    `[P, T, d]` -> `[P]`, float64.
    """
    if len(x) > 1 and x.shape[1] > _LONG:
        masks = [None] * len(x) if valid is None else list(valid[:, None].unbind(0))
        return torch.cat(
            [smallest_distances(a[None], b, max_memory) for a, b in zip(x, masks, strict=True)]
        )
    if x.shape[1] > _LONG:  # so many samples are worth sorting
        different = x[0] if valid is None else x[0, valid[0]]
        x, valid = torch.unique(different, dim=0)[None], None
    out = torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)
    side, rows = _block_shape(x, 1, 1, max_memory, paired=True)
    for i in _slices(len(x), side):
        for t in _slices(x.shape[1], rows):
            distances = _distances(x, valid, i, t)
            distances.masked_fill_(distances == 0, math.inf)
            out[i] = torch.minimum(out[i], distances.amin((0, 2)).double())
    return out


def _distances(x: Tensor, valid: Tensor | None, tracks: slice, rows: slice) -> Tensor:
    """L∞ distances `[T, tracks, rows]`."""
    series = x[tracks]
    out = x.new_zeros(series.shape[1], series.shape[0], rows.stop - rows.start)
    for column in series.unbind(-1):
        torch.maximum(out, (column.T[:, :, None] - column[None, :, rows]).abs(), out=out)
    own = torch.arange(rows.start, rows.stop, device=x.device)
    out[own, :, own - rows.start] = math.inf
    if valid is not None:
        absent = ~valid[tracks]
        out.masked_fill_(absent.T[:, :, None], math.inf)
        out.masked_fill_(absent[None, :, rows], math.inf)
    return out


def _sums(to_x: Tensor, to_y: Tensor, k: int, kind: str, alone: bool) -> Tensor:
    rho = _kth_smallest(to_x, to_y, k)
    absent = rho.isinf()
    tied = rho == 0
    zero = torch.zeros_like(rho, dtype=torch.float64)
    logarithm, psi, first = zero, zero, zero
    if kind == "3kl":
        logarithm = torch.where(tied | absent, zero, rho.double().log())
        if alone and k > 1:
            nearest = torch.maximum(to_x, to_y).amin(0).double()
            first = torch.where((nearest == 0) | absent, zero, nearest.log())
        if bool(tied.any()):
            here = torch.zeros_like(rho)
            near, _, _ = _count_within(to_x, to_y, here, here, here)
            psi = torch.where(tied, torch.digamma(near + 1), zero)
    else:
        if kind == "ksg1":
            inside = torch.where(tied, rho, torch.nextafter(rho, torch.zeros_like(rho)))
            counts = _count_within(to_x, to_y, inside, inside, inside)
        else:
            counts = _count_within(to_x, to_y, *_reach(to_x, to_y, rho), rho)
        near, near_x, near_y = counts
        psi = torch.digamma(near + 1) - torch.digamma(near_x + 1) - torch.digamma(near_y + 1)
        if kind == "ksg2":
            free = torch.digamma(near) - 1 / near - torch.digamma(near_x) - torch.digamma(near_y)
            psi = torch.where(tied, psi, free)
        psi = torch.where(absent, zero, psi)
    return torch.stack([v.double().sum(-1) for v in (logarithm, tied, psi, first)], -1)


def _kth_smallest(to_x: Tensor, to_y: Tensor, k: int) -> Tensor:
    if k > _INSERTION_LIMIT:
        return torch.maximum(to_x, to_y).kthvalue(k, dim=0).values
    best = [torch.full_like(torch.maximum(to_x[0], to_y[0]), math.inf) for _ in range(k)]
    for here_x, here_y in zip(to_x, to_y, strict=True):
        new = torch.maximum(here_x, here_y)
        for i in range(k - 1, 0, -1):
            torch.minimum(best[i], torch.maximum(best[i - 1], new), out=best[i])
        torch.minimum(best[0], new, out=best[0])
    return best[-1]


def _reach(to_x: Tensor, to_y: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
    """How far in x, and in y, the samples within ρ of the joint space lie."""
    reach_x, reach_y = torch.zeros_like(rho), torch.zeros_like(rho)
    for here_x, here_y in zip(to_x, to_y, strict=True):
        near = torch.maximum(here_x, here_y) <= rho
        reach_x = torch.where(near, torch.maximum(reach_x, here_x), reach_x)
        reach_y = torch.where(near, torch.maximum(reach_y, here_y), reach_y)
    return reach_x, reach_y


def _count_within(
    to_x: Tensor, to_y: Tensor, limit_x: Tensor, limit_y: Tensor, limit: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples that both have and that lie within the limits: in the joint space, in x, in y."""
    near, near_x, near_y = (torch.zeros_like(limit, dtype=torch.int32) for _ in range(3))
    for here_x, here_y in zip(to_x, to_y, strict=True):
        joint = torch.maximum(here_x, here_y)
        present = ~joint.isinf()
        near += present & (joint <= limit)
        near_x += present & (here_x <= limit_x)
        near_y += present & (here_y <= limit_y)
    return near.double(), near_x.double(), near_y.double()


def _slices(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def _block_shape(x: Tensor, others: int, k: int, max_memory: int, paired: bool) -> tuple[int, int]:
    """Tracks on a side and rows t of a block: in the CPU's cache, within `max_memory` elsewhere."""
    budget = max_memory if x.is_cuda else min(max_memory, 2**22)
    samples = x.shape[1]
    side = max(1, min(1024 if paired else 32, max(len(x), others)))
    while True:
        pairs = side if paired else side * side
        # Two sides of distances and one temporary; k smallest and a dozen temporaries a pair.
        a_row = x.element_size() * (3 * side * samples + (k + 12) * pairs)
        if k > _INSERTION_LIMIT:
            a_row += 3 * x.element_size() * pairs * samples
        if side == 1 or budget // a_row >= min(samples, 8):
            return side, max(1, min(samples, budget // a_row))
        side //= 2
