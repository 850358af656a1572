"""k-nearest-neighbour entropy and mutual information (MI) under the L∞ distance.

The public edge checks its arguments, once; `information` has the formulas; `_backend` chooses who
sums over the nearest neighbours: `_compiled` (numba, CPU), `_triton` (CUDA) or `_plain` (torch, any
device).

With ψ the digamma function, T samples, ρ the L∞ distance of a sample to its k-th neighbour:

- Kozachenko-Leonenko entropy: Ĥ(X) = ψ(T) - ψ(k) + (d/T) Σ log 2ρ.
- `3kl`: Ĥ(X) + Ĥ(Y) - Ĥ(X, Y); the name does not mean k = 3.
- `ksg1`: ψ(T) + ψ(k) - ⟨ψ(n_x + 1) + ψ(n_y + 1)⟩, n_x the samples nearer than ρ in x alone.
- `ksg2`: ψ(T) + ψ(k) - 1/k - ⟨ψ(n_x) + ψ(n_y)⟩, n_x the samples within the reach of the k
  neighbours.

Ties, which coarse whole numbers have plenty of, would make ρ = 0. A sample with k or more
others at distance 0 shares a cell with them: the entropies take log(cell) - ψ(ties + 1) for it, in
place of d·log 2ρ - ψ(k). The cell is as wide as the smallest distance between two different samples
of the track, d times; the cell of a pair is the product of both, so that it cancels out of the MI
and the plug-in estimate of tied samples remains. KSG counts what its cube really holds (see
`_plain.neighbour_sums`), which without ties is k. A constant track has MI 0 with everything, and
the entropy of a cell of width 2⁻¹²⁶: low, but finite. `_position` says what becomes of other data
outside general position.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from solo_infoaug.information import _plain, _position
from solo_infoaug.information._backend import neighbour_sums
from solo_infoaug.information._position import EstimateWarning, Series

ESTIMATORS = ("3kl", "ksg1", "ksg2")
UNITS = {"nats": 1.0, "bits": 1.0 / math.log(2.0)}
DEFAULT_MEMORY = 2**29
CONSTANT_WIDTH = 2.0**-126


class Notes:
    """What was met, by name. It is looked at in the end, so that nobody waits for a card before."""

    def __init__(self) -> None:
        self._met: dict[str, Tensor] = {}

    def add(self, name: str, met: Tensor) -> None:
        """`met`: bool, `[]`."""
        self._met[name] = self._met[name] | met if name in self._met else met

    def names(self) -> set[str]:
        """What was met; waits for the card, once."""
        if not self._met:
            return set()
        met = torch.stack(list(self._met.values())).tolist()
        return {name for name, is_met in zip(self._met, met, strict=True) if is_met}


class Estimator(NamedTuple):
    """How MI is estimated, checked; and what is met on the way."""

    kind: str
    """One of `ESTIMATORS`."""
    k: int
    min_count: int
    """The fewest samples for an estimate."""
    max_memory: int
    """Bytes."""
    scale: float
    """Of the unit, from nats."""
    notes: Notes | None
    """What an estimator cannot do with the data, for `warn_of`; None if nobody asks."""


def entropy(
    x: Tensor,
    k: int = 3,
    *,
    mask: Tensor | None = None,
    units: str = "nats",
    max_memory: int = DEFAULT_MEMORY,
) -> Tensor:
    """Kozachenko-Leonenko differential entropy of each track.

    Kozachenko and Leonenko (1987); in this form Kraskov et al. (2004), DOI
    10.1103/PhysRevE.69.066138. The bias is of order (k/T)^(2/d) for smooth densities: positive as a
    rule, growing with d. Samples are taken as independent; an autocorrelated track seems to have
    less entropy than it has.

    Args:
        x: `[..., T, d]`, float32 or float64.
        k: which neighbour; 1 <= k < T.
        mask: `[..., T]`, bool, true where there is a sample.
        units: `nats` or `bits`.
        max_memory: bytes that the work may take, beside input and output.

    Returns:
        `[...]`, in the dtype of x. A constant track, or one with no more than k samples, has the
        lowest value that is given, d·log(2⁻¹²⁶).

    Raises:
        ValueError: wrong type, dtype or shape, T <= k, NaN or infinite samples.

    Warns:
        EstimateWarning: columns that are constant or determined by others, whose entropy is -inf:
            the value is that of the other columns; or values that recur or lie on a lattice: it is
            that of cells as wide as the distance between values.
    """
    check_options(k, "3kl", units, max_memory)
    x, valid = check_series("x", x, mask, k)
    (tracks,) = _position.prepare(Series(x.reshape(-1, *x.shape[-2:]), _flat(valid)))
    value, constant = _entropy(tracks, k, max_memory)
    if tracks.cell is not None:
        _anew_with_noise(value, tracks, k, max_memory)
    if tracks.frame is not None:
        uneven = _position.uneven(tracks, tracks, "paired")
        assert uneven is not None
        assert tracks.log_scale is not None
        even, _ = _entropy(tracks.even(), k, max_memory)
        if tracks.cell is not None:
            uneven &= ~_discrete(tracks)
        value = torch.where(uneven, even + tracks.log_scale, value)
    value = value.masked_fill(constant, x.shape[-1] * math.log(CONSTANT_WIDTH))
    _warn_of_entropies(tracks, constant)
    return (value * UNITS[units]).reshape(x.shape[:-2]).to(x.dtype)


def mutual_information(
    x: Tensor,
    y: Tensor,
    estimator: str = "3kl",
    k: int = 3,
    *,
    mask: Tensor | None = None,
    min_samples: int | None = None,
    units: str = "nats",
    max_memory: int = DEFAULT_MEMORY,
) -> Tensor:
    """MI of x with y, batch by batch.

    Kraskov, Stögbauer, Grassberger (2004), DOI 10.1103/PhysRevE.69.066138: their equations 8 and 9
    are `ksg1` and `ksg2`; `3kl` is three entropies (see `entropy`), whose errors do not cancel, so
    that its bias is the largest of the three. All are biased towards 0 for strong dependence, by
    more the fewer the samples, and cannot exceed about ψ(T) - ψ(k); all of them scatter around 0,
    and below it, for independent series. The samples are taken as independent: see
    `pairwise_significance`. Distances in x and y are compared with each other: give both in the
    same unit, or standardise them; spreads that differ by more than 8 times are made equal.

    Args:
        x: `[..., T, dx]`, float32 or float64.
        y: `[..., T, dy]`, the same but for the last axis.
        estimator: `3kl`, `ksg1` or `ksg2`.
        k: which neighbour; 1 <= k < T.
        mask: `[..., T]`, bool, true where there is a sample of both.
        min_samples: fewest samples for an estimate; more than k. By default k + 1, with a mask
            16 or 4k, whichever is more.
        units: `nats` or `bits`.
        max_memory: bytes that the work may take, beside input and output.

    Returns:
        `[...]`, in the dtype of x. 0 where x or y is constant or has fewer than `min_samples`.

    Raises:
        ValueError: wrong type, dtype or shape, T <= k, NaN or infinite samples, unknown estimator.

    Warns:
        EstimateWarning: some values recur, or all are ranks (`3kl` and `ksg2`); samples lie on
            a curve or surface (`3kl`); no pair has `min_samples` samples.
    """
    check_options(k, estimator, units, max_memory)
    x, valid = check_series("x", x, mask, k)
    min_count = resolve_min_samples(min_samples, k, x.shape[-2], mask)
    how = Estimator(estimator, k, min_count, max_memory, UNITS[units], Notes())
    y, _ = check_series("y", y, mask if isinstance(y, Tensor) and y.ndim == x.ndim else None, k)
    if x.shape[:-1] != y.shape[:-1] or x.dtype != y.dtype or x.device != y.device:
        raise ValueError(
            f"y must be as x but for the last axis, {_describe(x)}; got {_describe(y)}"
        )
    a = Series(x.reshape(-1, *x.shape[-2:]), _flat(valid))
    a, b = _position.prepare(a, Series(y.reshape(-1, *y.shape[-2:]), a.valid))
    value = information(a, b, how, "paired")
    warn_of(how)
    return (value * how.scale).reshape(x.shape[:-2]).to(x.dtype)


def pairwise_mutual_information(
    trajectories: Tensor,
    estimator: str = "3kl",
    k: int = 3,
    *,
    mask: Tensor | None = None,
    min_samples: int | None = None,
    units: str = "nats",
    max_memory: int = DEFAULT_MEMORY,
) -> Tensor:
    """MI of every pair of tracks of a scene; estimators and their bias as in `mutual_information`.

    Args:
        trajectories: `[..., P, T, d]`, float32 or float64.
        estimator, k, min_samples, units, max_memory: as for `mutual_information`.
        mask: `[..., P, T]`, bool, true where a track has a sample. A pair uses the samples that
            both have; what lies outside may be anything, NaN too.

    Returns:
        `[..., P, P]`, symmetric, in the dtype of the trajectories. The diagonal is the estimate of
        a track with itself, finite and of no use. 0 where one of the two is constant over the
        common samples, or where these are fewer than `min_samples`.

    Raises:
        ValueError: as `mutual_information`.

    Warns:
        EstimateWarning: as `mutual_information`.
    """
    scenes, how = check_scenes(trajectories, mask, estimator, k, min_samples, units, max_memory)
    out = all_pairs(scenes, trajectories, how)
    warn_of(how)
    return out


# --- warnings ---------------------------------------------------------------------------------


def warn_of(how: Estimator) -> None:
    """One `EstimateWarning` about what an estimate of MI met; called by a public function."""
    notes, met = how.notes.names() if how.notes is not None else set(), []
    if "few" in notes and "enough" not in notes:
        met.append(
            "no pair has min_samples common samples, so that every MI is 0; give longer series, "
            "masks with more in common, or a smaller min_samples"
        )
    if "thin" in notes:
        met.append(
            "samples of a track lie on a curve or a surface and fill fewer dimensions than it has "
            "columns: 3kl can be off by nats, mostly too low; use ksg1"
        )
    if "ties" in notes:
        met.append(
            f"some values recur and others do not (tracks that rest now and then), or all are "
            f"equally far apart (ranks): {how.kind} can be off by a nat or more, either way; "
            f"use ksg1"
        )
    if met:
        warnings.warn("; ".join(met), EstimateWarning, stacklevel=3)


def _warn_of_entropies(tracks: Series, constant: Tensor) -> None:
    met = []
    if tracks.rank is not None:
        reduced = int(((tracks.rank < tracks.d) & ~constant).sum())
        if reduced:
            met.append(
                f"{reduced} of {len(constant)} tracks have columns that are constant or determined "
                f"by others, which makes their entropy -inf; theirs is that of the other columns"
            )
    recurs = _discrete(tracks) if tracks.recurs is None else _discrete(tracks) | tracks.recurs
    recur = int((recurs & ~constant).sum())
    if recur:
        met.append(
            f"values recur or lie on a lattice in {recur} of {len(constant)} tracks, which have no "
            f"density; theirs is the entropy of cells as wide as the distance between values"
        )
    if met:
        warnings.warn("; ".join(met), EstimateWarning, stacklevel=3)


# --- the formulas ------------------------------------------------------------------------------


def _entropy(tracks: Series, k: int, max_memory: int) -> tuple[Tensor, Tensor]:
    """Entropy in nats, float64, `[P]`; and which tracks have none: constant, or too short."""
    anything = Series(tracks.x[:1, :, :0], None)
    own = _marginal(tracks, anything, k, "all", max_memory)[:, 0]
    count = tracks.counts()
    log_cell = _log_cell(tracks, own, max_memory)
    d = tracks.dimensions()
    with one_thread(own.device):
        value = torch.digamma(count) + _log_volume(own, count, k, d, log_cell) / count
        return value, _constant(own, count) | (count <= k)


def _anew_with_noise(value: Tensor, tracks: Series, k: int, max_memory: int) -> None:
    """Entropies of discrete tracks whose samples do not coincide with k others, in place."""
    own = _marginal(tracks, Series(tracks.x[:1, :, :0], None), k, "all", max_memory)[:, 0]
    spread_out = own[:, 1] < (1 - _position.RECURRING) * tracks.counts()
    rows = (_discrete(tracks) & spread_out).nonzero()[:, 0]
    if not len(rows):
        return
    (noisy,) = _position.with_noise(tracks.part(rows))
    value[rows], _ = _entropy(noisy, k, max_memory)
    if tracks.frame is None:
        return
    framed = _position.with_frame(noisy)
    uneven = _position.uneven(framed, framed, "paired")
    assert uneven is not None
    assert framed.log_scale is not None
    even, _ = _entropy(framed.even(), k, max_memory)
    value[rows] = torch.where(uneven, even + framed.log_scale, value[rows])


def _discrete(tracks: Series) -> Tensor:
    """Which tracks have a discrete column, `[P]`."""
    if tracks.cell is None:
        return torch.zeros(len(tracks.x), dtype=torch.bool, device=tracks.x.device)
    return (tracks.cell != 0).any(-1).any(-1)


def information(x: Series, y: Series, how: Estimator, layout: str) -> Tensor:
    """MI in nats, float64: `[P, Q]`, or `[P]` where the layout is `paired`.

    What the estimator cannot do with these data is added to its notes.
    """
    noisy = None
    if x.cell is not None or y.cell is not None:
        noisy = _needs_noise(x, y, how, layout)
    with one_thread(x.x.device):
        uneven = _position.uneven(x, y, layout)
        suspects = None
        if layout != "paired" and x.valid is not None and y.valid is not None:
            suspects = _position.narrow_in_common(x, y, uneven)
        if noisy is not None and suspects is not None:
            noisy &= ~suspects
    elsewhere = [pairs for pairs in (uneven, noisy) if pairs is not None]
    value = _as_they_are(x, y, how, layout, elsewhere, suspects)
    if uneven is not None:
        with one_thread(x.x.device):
            pairs = torch.triu(uneven) if layout == "upper" else uneven
            some = int(pairs.sum())
        even_x = x.even()
        even_y = even_x if y is x else y.even()
        # a pair at a time takes ten times as long
        if layout != "paired" and 20 * some < pairs.numel():
            _anew(value, pairs, even_x, even_y, how)
        elif some:
            not_here = [~uneven] if noisy is None else [~uneven, noisy]
            even = _as_they_are(even_x, even_y, how, layout, not_here, suspects)
            value = torch.where(uneven, even, value)
    if suspects is not None:
        a, b = x._replace(frame=None), y._replace(frame=None)
        _anew(value, torch.triu(suspects), a, b, how, framed=True)
    if noisy is not None:
        _anew(value, noisy, x, y, how, noisy=True)
    return value


def _anew(
    value: Tensor,
    pairs: Tensor,
    x: Series,
    y: Series,
    how: Estimator,
    framed: bool = False,
    noisy: bool = False,
) -> None:
    """Estimate some pairs one by one, in place.

    `framed`: with frames over the common samples; `noisy`: with noise in discrete columns' cells.
    """
    rows, columns = pairs.nonzero().T[[0, -1]]
    step = max(1, how.max_memory // (64 * x.x.shape[1] * (x.d + (2 * y.d if noisy else 0))))
    for some in range(0, len(rows), step):
        i, j = rows[some : some + step], columns[some : some + step]
        a, b = over_shared(x.part(i), y.part(j))
        if framed:
            a, b = _position.over_common(a), _position.over_common(b)
        if noisy:
            a, b = _position.with_noise(a, b)
            if x.frame is not None or y.frame is not None:
                a, b = _position.with_frame(a), _position.with_frame(b)
        estimate = information(a, b, how, "paired")
        if value.ndim == 1:
            value[i] = estimate
        else:
            value[i, j] = estimate


def over_shared(a: Series, b: Series) -> tuple[Series, Series]:
    """Pairs of tracks cut to the samples that both have."""
    if a.valid is None or b.valid is None:
        return a, b
    common = a.valid & b.valid
    one, two = (
        side._replace(x=side.x * common[..., None], valid=common, source=None) for side in (a, b)
    )
    return one, two


def _as_they_are(
    x: Series,
    y: Series,
    how: Estimator,
    layout: str,
    elsewhere: list[Tensor],
    anew: Tensor | None,
) -> Tensor:
    """MI as `information`, in the coordinates that the tracks have.

    Nothing is noted of pairs whose value comes from other coordinates, or is to be taken `anew`.
    """
    k, notes = how.k, how.notes
    joint = neighbour_sums(x, y, k, how.kind, layout, how.max_memory)
    recurs = x.recurs is not None or y.recurs is not None
    if notes is not None and recurs and how.kind != "ksg1":
        notes.add("ties", _has_ties(joint, x, y, how, layout, anew))
    own = None if how.kind == "ksg1" else _marginals(x, y, k, layout, how.max_memory)
    with one_thread(x.x.device):
        count = _common_counts(x, y, layout)
        if notes is not None and count.numel():
            enough = (count >= how.min_count).any()
            notes.add("enough", enough)
            notes.add("few", ~enough)
        nothing, terms = count < how.min_count, joint[..., 2]
        if own is not None:  # ksg1 is 0 by itself where a track is constant
            if how.kind == "3kl":
                noted = ~nothing
                for other in elsewhere if anew is None else [*elsewhere, anew]:
                    noted = noted & ~other
                terms = _three_entropies(x, y, joint, own, count, noted, how, layout)
            nothing = nothing | _constant(own[0], count) | _constant(own[1], count)
        value = torch.digamma(count) + terms / count
        return value.masked_fill(nothing, 0.0)


def _three_entropies(
    x: Series,
    y: Series,
    joint: Tensor,
    own: tuple[Tensor, Tensor],
    count: Tensor,
    noted: Tensor,
    how: Estimator,
    layout: str,
) -> Tensor:
    """Log volumes of x and of y alone, less that of the pair; notes if any of `noted` is thin."""
    k, (own_x, own_y) = how.k, own
    if layout == "upper" and x.x.data_ptr() == y.x.data_ptr():  # a track with itself
        joint.diagonal(0, 0, 1).copy_(own_x.expand_as(joint).diagonal(0, 0, 1))
    cell_x = _log_cell(x, own_x, how.max_memory)
    cell_y = _log_cell(y, own_y if layout == "paired" else own_y.transpose(0, 1), how.max_memory)
    d_x, d_y = x.dimensions(), y.dimensions()
    if layout != "paired":
        cell_x, cell_y = cell_x[:, None], cell_y[None, :]
        d_x = d_x if isinstance(d_x, int) else d_x[:, None]
        d_y = d_y if isinstance(d_y, int) else d_y[None, :]
    if how.notes is not None and k > 1 and max(x.d, y.d) > 1:
        thin = (_thin(own_x, count, k, d_x) | _thin(own_y, count, k, d_y)) & noted
        how.notes.add("thin", (torch.triu(thin, 1) if layout == "upper" else thin).any())
    return (
        _log_volume(own_x, count, k, d_x, cell_x)
        + _log_volume(own_y, count, k, d_y, cell_y)
        - _log_volume(joint, count, k, d_x + d_y, cell_x + cell_y)
    )


def _has_ties(
    joint: Tensor, x: Series, y: Series, how: Estimator, layout: str, anew: Tensor | None
) -> Tensor:
    """Whether values recur beside others that do not, and the pairs' samples are not tied: `[]`.

    Such as a track that rests now and then: `3kl` and `ksg2` compare cells with balls there. Or
    ranks, which are further from each other than independent samples.
    """
    at_x, at_y = (
        torch.zeros(len(side.x), dtype=torch.bool, device=side.x.device) if v is None else v
        for side, v in ((x, x.recurs), (y, y.recurs))
    )
    doubtful = at_x | at_y if layout == "paired" else at_x[:, None] | at_y[None, :]
    doubtful = doubtful if anew is None else doubtful & ~anew
    some = doubtful.any()
    if not bool(some):
        return some
    if how.kind != "3kl":
        joint = neighbour_sums(x, y, how.k, "3kl", layout, how.max_memory)
    with one_thread(joint.device):
        return (doubtful & _untied(joint, x, y, how.min_count, layout)).any()


def _needs_noise(x: Series, y: Series, how: Estimator, layout: str) -> Tensor | None:
    """Pairs with a discrete column whose samples do not coincide with k others; None if none.

    `[P, Q]`, or `[P]` where paired. Where they do every estimator is the plug-in estimate.
    """
    at_x, at_y = _discrete(x), _discrete(y)
    pairs = at_x | at_y if layout == "paired" else at_x[:, None] | at_y[None, :]
    joint = neighbour_sums(x, y, how.k, "3kl", layout, how.max_memory)
    with one_thread(joint.device):
        pairs = pairs & _untied(joint, x, y, how.min_count, layout)
        return pairs if bool(pairs.any()) else None


def _untied(joint: Tensor, x: Series, y: Series, min_count: int, layout: str) -> Tensor:
    """Pairs of tracks that move, and have more than a few samples without ties.

    `[P, Q]`, or `[P]` where paired; of the upper ones not a track with itself.
    """
    count = _common_counts(x, y, layout)
    moves_x, moves_y = _moving(x), _moving(y)
    moves = moves_x & moves_y if layout == "paired" else moves_x[:, None] & moves_y[None, :]
    few = joint[..., 1] < (1 - _position.RECURRING) * count
    untied = moves & (count >= min_count) & few
    return torch.triu(untied, 1) if layout == "upper" else untied


def _thin(own: Tensor, count: Tensor, k: int, d: int | Tensor) -> Tensor:
    """Which tracks fill clearly less than their d dimensions, such as points on a curve.

    By the dimension d̂ = (ψ(k) - ψ(1)) / ⟨log ρ_k - log ρ_1⟩, which is d for any smooth density
    (Levina and Bickel 2004, "Maximum likelihood estimation of intrinsic dimension"). Its relative
    error is about 1/√T; edges make it smaller than d when samples are few.
    """
    steps = sum(1 / i for i in range(1, k))
    dimension = steps * count / (own[..., 0] - own[..., 3])
    return (own[..., 1] == 0) & (dimension < d * (0.8 - 1.8 / count.sqrt())) & (dimension < d - 0.4)


def _moving(side: Series) -> Tensor:
    """Which tracks are not constant, `[P]`."""
    if side.valid is None:
        return (side.x != side.x[:, :1]).any(-1).any(-1)
    first = side.valid.int().argmax(1)
    origin = side.x[torch.arange(len(first), device=first.device), first][:, None]
    return ((side.x != origin).any(-1) & side.valid).any(-1)


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Keep torch from waking its threads for sums of no size: they spin on, on the cores we use.

    To change their number takes a millisecond where cores are many, which a card does not need.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _log_volume(sums: Tensor, count: Tensor, k: int, d: int | Tensor, log_cell: Tensor) -> Tensor:
    """Σ d·log(2ρ) - ψ(k), and over the tied samples Σ log(cell) - ψ(ties + 1)."""
    logarithm, tied, psi, _ = sums.unbind(-1)
    free = d * logarithm + (count - tied) * (d * math.log(2.0) - _digamma(k))
    return free + tied * log_cell - psi


@functools.cache
def _digamma(k: int) -> float:
    return float(torch.digamma(torch.tensor(float(k), dtype=torch.float64)))


def _constant(sums: Tensor, count: Tensor) -> Tensor:
    """Whether every sample is tied with every other."""
    _, tied, psi, _ = sums.unbind(-1)
    every = count * torch.digamma(count)
    return (tied == count) & (psi > every - 1e-6)


def _log_cell(x: Series, own: Tensor, max_memory: int) -> Tensor:
    """d times the log of the cell that tied samples share, `[P]`; 0 for tracks without ties."""
    out = torch.zeros(len(x.x), dtype=torch.float64, device=x.x.device)
    if x.distinct:
        return out
    tied = (own[..., 1] > 0).reshape(len(out), -1).any(1)
    if bool(tied.any()):
        valid = None if x.valid is None else x.valid[tied]
        width = _plain.smallest_distances(x.x[tied], valid, max_memory)
        width = torch.where(width.isinf(), CONSTANT_WIDTH, width.clamp_min(CONSTANT_WIDTH))
        d = x.dimensions()
        out[tied] = (d if isinstance(d, int) else d[tied]) * width.log()
    return out


def _marginals(x: Series, y: Series, k: int, layout: str, max_memory: int) -> tuple[Tensor, Tensor]:
    """The sums of x and of y alone over each pair's samples, to broadcast with `[P, Q, 4]`."""
    own_x = _marginal(x, y, k, layout, max_memory)
    same = y.x is x.x and y.valid is x.valid
    own_y = own_x if same else _marginal(y, x, k, layout, max_memory)
    return own_x, own_y if layout == "paired" else own_y.transpose(0, 1)


def _marginal(x: Series, y: Series, k: int, layout: str, max_memory: int) -> Tensor:
    """The sums of x alone, over the samples that y has too: a pair whose other side has d = 0."""
    if layout == "paired" and x.source is not None:  # once for all shifts of a track
        number, row = torch.unique(x.source, return_inverse=True)
        first = torch.empty_like(number)
        first[row] = torch.arange(len(row), device=row.device)
        return _marginal(x.part(first)._replace(source=None), y, k, layout, max_memory)[row]
    if layout == "paired" or y.valid is None:  # y's samples are x's own
        masks, group = None, None
    else:
        masks, group = torch.unique(y.valid, dim=0, return_inverse=True)
    nothing = x.x.new_empty(1 if masks is None else len(masks), x.x.shape[1], 0)
    sums = neighbour_sums(x, Series(nothing, masks), k, "3kl", "all", max_memory)
    if group is not None:
        return sums[:, group]
    return sums[:, 0] if layout == "paired" else sums


def _common_counts(x: Series, y: Series, layout: str) -> Tensor:
    if x.valid is None or y.valid is None or layout == "paired":
        count = x.counts() if y.valid is None or layout == "paired" else y.counts()
        if layout == "paired":
            return count
        return count[:, None] if y.valid is None else count[None, :]
    return x.valid.double() @ y.valid.double().T


def all_pairs(scenes: list[Series], x: Tensor, how: Estimator) -> Tensor:
    """`pairwise_mutual_information` of trajectories x that were checked and made into scenes."""
    out = torch.empty(len(scenes), x.shape[-3], x.shape[-3], dtype=x.dtype, device=x.device)
    for scene, tracks in zip(out, scenes, strict=True):
        for rows, value in upper_rows(tracks, tracks, how):
            with one_thread(x.device):
                block = (torch.triu(value) * how.scale).to(x.dtype)
                scene[rows, rows.start :] = block
                scene[rows.start :, rows] = block.T
                here = block[:, : rows.stop - rows.start]
                scene[rows, rows] = here + torch.triu(here, 1).T
    return out.reshape(*x.shape[:-2], x.shape[-3])


def upper_rows(x: Series, y: Series, how: Estimator) -> Iterator[tuple[slice, Tensor]]:
    """MI of x[i] with y[j] for j >= i, in nats, by bands of rows: `[rows, P - rows.start]`.

    What lies below the diagonal is undefined. x and y have the same number of tracks.
    """
    tracks = len(x.x)
    # A dozen float64 numbers a pair live at a time.
    band = max(1, min(tracks, how.max_memory // 2 // (96 * tracks)))
    if band < tracks:
        band = max(1, band // 32 * 32)
    for start in range(0, tracks, band):
        rows, rest = slice(start, min(start + band, tracks)), slice(start, tracks)
        top, right = x.part(rows), y.part(rest)
        if start == 0 and band == tracks and x is y:
            top = right = x
        yield rows, information(top, right, how, "upper")


# --- the public edge ---------------------------------------------------------------------------


def check_options(k: int, estimator: str, units: str, max_memory: int) -> None:
    """Raise ValueError for options that no estimator takes."""
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise ValueError(f"k must be an integer of at least 1, got {k!r}")
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}")
    if units not in tuple(UNITS):
        raise ValueError(f"units must be one of {', '.join(UNITS)}, got {units!r}")
    if not isinstance(max_memory, int) or isinstance(max_memory, bool) or max_memory < 2**20:
        raise ValueError(f"max_memory must be at least {2**20} bytes, got {max_memory!r}")


def check_series(name: str, x: Tensor, mask: Tensor | None, k: int) -> tuple[Tensor, Tensor | None]:
    """x without gradient, and its mask; samples that the mask leaves out become 0."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a torch tensor, got {type(x).__name__}")
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} must be float32 or float64, got {x.dtype}")
    if x.layout != torch.strided:
        raise ValueError(f"{name} must be a dense tensor, got {x.layout}")
    if x.ndim < 2 or x.shape[-1] < 1:
        raise ValueError(f"{name} must be [..., T, d] with d >= 1, got shape {tuple(x.shape)}")
    if x.shape[-2] <= k:
        raise ValueError(f"{name} must have more than k={k} samples, got T={x.shape[-2]}")
    x = x.detach()
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"mask must be a bool tensor, got {got}")
        if mask.shape != x.shape[:-1]:
            raise ValueError(
                f"mask must have the shape {tuple(x.shape[:-1])} of {name}, got {tuple(mask.shape)}"
            )
        mask = mask.to(x.device)
        x = x.masked_fill(~mask[..., None], 0.0)
    if x.device.type == "cpu":  # see `_compiled._coordinates`: torch would wake its threads
        finite = bool(np.isfinite(x.numpy()).all())
    else:
        finite = bool(torch.isfinite(x).all())
    if not finite:
        bad = int((~torch.isfinite(x)).sum())
        raise ValueError(f"{name} must be finite, got {bad} values that are NaN or infinite")
    return x, mask


def check_scenes(
    trajectories: Tensor,
    mask: Tensor | None,
    estimator: str,
    k: int,
    min_samples: int | None,
    units: str,
    max_memory: int,
) -> tuple[list[Series], Estimator]:
    """The scenes of `[..., P, T, d]`, and how the MI of their pairs is estimated."""
    check_options(k, estimator, units, max_memory)
    x, valid = check_series("trajectories", trajectories, mask, k)
    min_count = resolve_min_samples(min_samples, k, x.shape[-2], mask)
    how = Estimator(estimator, k, min_count, max_memory, UNITS[units], Notes())
    if x.ndim < 3:
        raise ValueError(f"trajectories must be [..., P, T, d], got shape {tuple(x.shape)}")
    if x.shape[-3] < 1:
        raise ValueError(f"trajectories must have at least one track, got shape {tuple(x.shape)}")
    scenes = x.reshape(-1, *x.shape[-3:])
    if valid is None:
        return _position.prepare_scenes(scenes, max_memory), how
    pairs = zip(scenes, valid.reshape(-1, *valid.shape[-2:]), strict=True)
    return [_position.prepare(Series(*scene))[0] for scene in pairs], how


def resolve_min_samples(min_samples: int | None, k: int, samples: int, mask: Tensor | None) -> int:
    """The fewest samples for an estimate."""
    if min_samples is None:
        return k + 1 if mask is None else max(16, 4 * k)
    if not isinstance(min_samples, int) or isinstance(min_samples, bool) or min_samples <= k:
        raise ValueError(f"min_samples must be an integer above k={k}, got {min_samples!r}")
    if min_samples > samples:
        raise ValueError(f"min_samples must be at most T={samples}, got {min_samples}")
    return min_samples


def _flat(valid: Tensor | None) -> Tensor | None:
    return None if valid is None else valid.reshape(-1, valid.shape[-1])


def _describe(x: Tensor) -> str:
    return f"{list(x.shape)} {x.dtype} on {x.device}"
