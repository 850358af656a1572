"""Entropy and mutual information of checked series; see `estimators`.

`_backend` chooses what sums over the nearest neighbours. Here the sums become estimates, in nats.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from solo_infoaug.information import _plain, _position
from solo_infoaug.information._backend import neighbour_sums
from solo_infoaug.information._recurring import RECURRING, with_noise
from solo_infoaug.information._series import Series, facing

CONSTANT_WIDTH = 2.0**-126


class Estimator(NamedTuple):
    """Checked options of an estimate of MI, and notes of the problems that it meets."""

    kind: str
    """One of `ESTIMATORS`."""
    k: int
    min_count: int
    """The fewest samples for an estimate."""
    max_memory: int
    """Bytes."""
    scale: float
    """Of the unit, from nats."""
    notes: dict[str, Tensor] | None
    """Problems of the data for an estimator: name → bool, `[]`; None: not noted.

    They are read at the end, so that nothing waits for the GPU earlier.
    """

    def note(self, name: str, met: Tensor) -> None:
        """`met` or met before."""
        if self.notes is not None:
            self.notes[name] = self.notes.get(name, met) | met


def entropies(tracks: Series, k: int, max_memory: int) -> tuple[Tensor, Tensor]:
    """Entropies in nats, float64, `[P]`; and which tracks have none: constant, or too short."""
    value, own, none = _entropy(tracks, k, max_memory)
    if tracks.cell is not None:  # discrete tracks whose samples do not coincide with k others
        spread_out = own[:, 1] < (1 - RECURRING) * tracks.counts()
        rows = (discrete(tracks) & spread_out).nonzero()[:, 0]
        if len(rows):
            (noisy,) = with_noise(tracks.part(rows))
            value[rows], *_ = _entropy(noisy, k, max_memory)
            if tracks.frame is not None:
                framed = _position.with_frame(noisy)
                value[rows] = _evened(value[rows], framed, k, max_memory)
    if tracks.frame is not None:
        even = _evened(value, tracks, k, max_memory)
        value = even if tracks.cell is None else torch.where(discrete(tracks), value, even)
    return value, none


def _entropy(tracks: Series, k: int, max_memory: int) -> tuple[Tensor, Tensor, Tensor]:
    """In the coordinates that the tracks have: entropies, sums, and which have no entropy."""
    own = _marginal(tracks, Series(tracks.x[:1, :, :0], None), k, "all", max_memory)[:, 0]
    count = tracks.counts()
    log_cell = _log_cell(tracks, own, max_memory)
    with one_thread(own.device):
        volume = _log_volume(own, count, k, tracks.dimensions(), log_cell)
        return torch.digamma(count) + volume / count, own, _constant(own, count) | (count <= k)


def _evened(value: Tensor, tracks: Series, k: int, max_memory: int) -> Tensor:
    """`value`, and for tracks with unlike spreads their entropy by way of even ones."""
    uneven = _position.uneven(tracks, tracks, "paired")
    assert uneven is not None
    assert tracks.log_scale is not None
    even, *_ = _entropy(tracks.even(), k, max_memory)
    return torch.where(uneven, even + tracks.log_scale, value)


def discrete(tracks: Series) -> Tensor:
    """Which tracks have a discrete column, `[P]`."""
    return _none(tracks) if tracks.cell is None else (tracks.cell != 0).any(-1).any(-1)


def _none(tracks: Series) -> Tensor:
    return torch.zeros(len(tracks.x), dtype=torch.bool, device=tracks.x.device)


def information(x: Series, y: Series, how: Estimator, layout: str) -> Tensor:
    """MI in nats, float64: `[P, Q]`, or `[P]` where the layout is `paired`.

    Problems of the data are added to the estimator's notes.
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
            a, b = with_noise(a, b)
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
    x: Series, y: Series, how: Estimator, layout: str, elsewhere: list[Tensor], anew: Tensor | None
) -> Tensor:
    """MI as `information`, in the coordinates that the tracks have.

    Pairs whose value comes from other coordinates, or is estimated `anew`, are not noted.
    """
    joint = neighbour_sums(x, y, how.k, how.kind, layout, how.max_memory)
    recurs = x.recurs is not None or y.recurs is not None
    if how.notes is not None and recurs and how.kind != "ksg1":
        how.note("ties", _has_ties(joint, x, y, how, layout, anew))
    own = None if how.kind == "ksg1" else _marginals(x, y, how.k, layout, how.max_memory)
    with one_thread(x.x.device):
        count = _common_counts(x, y, layout)
        if how.notes is not None and count.numel():
            enough = (count >= how.min_count).any()
            how.note("enough", enough)
            how.note("few", ~enough)
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
    cell_x, cell_y = facing(cell_x, cell_y, layout)
    d_x, d_y = facing(x.dimensions(), y.dimensions(), layout)
    if how.notes is not None and k > 1 and max(x.d, y.d) > 1:
        thin = (_thin(own_x, count, k, d_x) | _thin(own_y, count, k, d_y)) & noted
        how.note("thin", (torch.triu(thin, 1) if layout == "upper" else thin).any())
    return (
        _log_volume(own_x, count, k, d_x, cell_x)
        + _log_volume(own_y, count, k, d_y, cell_y)
        - _log_volume(joint, count, k, d_x + d_y, cell_x + cell_y)
    )


def _has_ties(
    joint: Tensor, x: Series, y: Series, how: Estimator, layout: str, anew: Tensor | None
) -> Tensor:
    """Whether only some values recur, and the pairs' samples are not tied: `[]`.

    For example a track that rests now and then, where `3kl` and `ksg2` compare cells with balls; or
    ranks, which are further from each other than independent samples.
    """
    ours, theirs = (_none(side) if side.recurs is None else side.recurs for side in (x, y))
    at_x, at_y = facing(ours, theirs, layout)
    doubtful = at_x | at_y
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
    at_x, at_y = facing(discrete(x), discrete(y), layout)
    joint = neighbour_sums(x, y, how.k, "3kl", layout, how.max_memory)
    with one_thread(joint.device):
        pairs = (at_x | at_y) & _untied(joint, x, y, how.min_count, layout)
        return pairs if bool(pairs.any()) else None


def _untied(joint: Tensor, x: Series, y: Series, min_count: int, layout: str) -> Tensor:
    """Pairs of tracks that move, and have more than a few samples without ties.

    `[P, Q]`, or `[P]` where paired; of the upper ones not a track with itself.
    """
    count = _common_counts(x, y, layout)
    moves_x, moves_y = facing(_moving(x), _moving(y), layout)
    few = joint[..., 1] < (1 - RECURRING) * count
    untied = moves_x & moves_y & (count >= min_count) & few
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
    """Keep torch from waking its threads for tiny sums: they would spin on the cores that we use.

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
        some = x.part(tied)
        width = _plain.smallest_distances(some.x, some.valid, max_memory)
        width = torch.where(width.isinf(), CONSTANT_WIDTH, width.clamp_min(CONSTANT_WIDTH))
        out[tied] = some.dimensions() * width.log()
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
    if layout == "paired":
        return x.counts()
    if x.valid is None or y.valid is None:
        return x.counts()[:, None] if y.valid is None else y.counts()[None, :]
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
