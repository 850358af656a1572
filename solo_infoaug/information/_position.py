"""Data outside general position: redundant columns, unequal spreads, recurring values.

The estimators are derived for samples with a density in all d dimensions, whose distances are all
different and whose columns have much the same spread. Elsewhere they can be off by nats:

- A column that is constant, or determined by the others (affinely, up to rounding), takes no part
  in a density. It is left out, and d is the number of the columns that remain.
- Columns, or directions of a track, or the two tracks of a pair, whose spreads differ by more than
  `UNEVEN`: balls of one radius for all of them are blind to the narrow ones. MI does not change
  under an invertible map of x alone or of y alone (Kraskov et al. 2004, DOI
  10.1103/PhysRevE.69.066138, eq. 4), so such a pair is estimated after one that makes the spreads
  equal: each column less its regression on the columns before it, in units of its spread.
- Values that recur, or are equally far apart: see `_recurring`.

One cheap check finds data in general position, which are not changed.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from solo_infoaug.information._recurring import RECURRING, ROUNDING, exact
from solo_infoaug.information._series import Frame, Series, facing

UNEVEN = 8.0  # ratio of spreads above which balls see no more of the narrow; chance seldom makes it


class EstimateWarning(UserWarning):
    """The data may make an estimate of entropy or MI far off. The message says what to do."""


def prepare(*sides: Series) -> tuple[Series, ...]:
    """The tracks, ready for the estimators. Data in general position are not changed.

    All `sides` are checked together: if one track is narrow compared with another, all get frames.
    """
    arrays = [side.x.cpu().numpy() for side in sides]
    masks = [None if side.valid is None else side.valid.cpu().numpy() for side in sides]
    out = [exact(side, x, mask) for side, x, mask in zip(sides, arrays, masks, strict=True)]
    spreads = [_spread(x, mask) for x, mask in zip(arrays, masks, strict=True)]
    narrow, wide = (np.concatenate(s) for s in zip(*spreads, strict=True))
    moving = wide > 0
    if not moving.any() or wide[moving].max() <= UNEVEN * narrow[moving].min():
        return tuple(out)
    return tuple(with_frame(side) for side in out)


def prepare_scenes(x: Tensor, max_memory: int) -> list[Series]:
    """`prepare` of each of the scenes `[S, P, T, d]`, without masks.

    On a GPU, scenes in general position stay there, and the host waits only once for all of them.
    """
    if x.device.type == "cpu" or x.numel() == 0:
        return [prepare(Series(scene, None))[0] for scene in x]
    step = max(1, max_memory // (12 * x[0].numel() * x.element_size()))
    seen = torch.cat([_in_general_position(some) for some in x.split(step)]).tolist()
    return [
        Series(scene, None, distinct=distinct) if general else prepare(Series(scene, None))[0]
        for scene, (general, distinct) in zip(x, seen, strict=True)
    ]


def _in_general_position(x: Tensor) -> Tensor:
    """For scenes `[S, P, T, d]`, bool `[S, 2]`: `prepare` would surely not change it; `distinct`.

    Scenes close to the limits of `prepare` do not count as sure.
    """
    ordered = x.mT.sort(-1).values
    steps = ordered[..., 1:] - ordered[..., :-1]
    clump = torch.finfo(x.dtype).eps ** 0.75 * x.abs().amax(-2)
    apart = torch.where(steps > clump[..., None], steps, torch.inf).amin(-1)
    alike = (steps <= (apart + clump)[..., None]).sum(-1).amax((1, 2))
    distinct = (steps != 0).all(-1).any(-1).all(-1)
    centred = (x - x[..., :1, :]).double()
    centred = centred - centred.mean(-2, keepdim=True)
    columns = centred.split(1, -1)
    left = torch.stack([(centred * column).mean(-2) for column in columns], -1)  # covariance
    wide = left.diagonal(0, -2, -1).amax(-1)
    narrow = torch.full_like(wide, torch.inf)
    for c in range(x.shape[-1]):
        pivot = left[..., c, c]
        narrow = torch.minimum(narrow, pivot)
        row, column = left[..., c, None, :], left[..., :, c, None]
        left = left - row * column / torch.where(pivot > 0, pivot, torch.inf)[..., None, None]
    moving = wide > 0
    widest = torch.where(moving, wide, 0.0).amax(-1)
    narrowest = torch.where(moving, narrow, torch.inf).amin(-1)
    even = widest <= 0.99 * UNEVEN**2 * narrowest
    return torch.stack([even & (alike <= 0.99 * RECURRING * x.shape[-2]), distinct], -1)


def uneven(x: Series, y: Series, layout: str) -> Tensor | None:
    """Which pairs need `even()` tracks: `[P, Q]`, or `[P]` if paired; None if no track has frames.

    By both measures of spread: standard deviations of heavy tails say little.
    """
    if x.frame is None or y.frame is None:
        return None
    narrow = facing(x.frame.narrow, y.frame.narrow, layout)
    wide = facing(x.frame.wide, y.frame.wide, layout)
    return (torch.maximum(*wide) > UNEVEN * torch.minimum(*narrow)).all(-1)


def narrow_in_common(x: Series, y: Series, evened: Tensor | None) -> Tensor | None:
    """Pairs that lose a column, or become uneven, over the samples that both have: `[P, Q]`.

    `evened`: which pairs are estimated in even coordinates. None if there are no such pairs.
    """
    suspects = _narrow_in_common(x, y)
    if evened is not None and bool(evened.any()):
        even_x = x.even()
        even = _narrow_in_common(even_x, even_x if y is x else y.even())
        suspects = torch.where(evened, even, suspects)
    return suspects if bool(suspects.any()) else None


def _narrow_in_common(x: Series, y: Series) -> Tensor:
    narrow_x, wide_x = _common_spread(x, y)
    if y is x:
        narrow_y, wide_y = narrow_x.T, wide_x.T
    else:
        narrow_y, wide_y = (spread.T for spread in _common_spread(y, x))
    wide = torch.maximum(wide_x, wide_y)
    return (wide > UNEVEN**2 * torch.minimum(narrow_x, narrow_y)) & (wide_x > 0) & (wide_y > 0)


def _common_spread(x: Series, y: Series) -> tuple[Tensor, Tensor]:
    """Narrowest and widest variance of x over the samples that y has too, `[P, Q]`.

    Single precision is enough for a ratio of `UNEVEN` and fast enough for every pair. Constant
    columns do not count.
    """
    assert x.valid is not None
    assert y.valid is not None
    own = x.valid
    total = own.sum(1).clamp_min(1)[:, None]
    centred = (x.x - (x.x.sum(1) / total)[:, None]).float() * own[..., None]
    rests = (centred == 0).all(1)  # [P, d]
    columns = list(centred.permute(2, 0, 1).contiguous())
    pairs = [(i, j) for i in range(len(columns)) for j in range(i + 1)]
    products = [columns[i] * columns[j] for i, j in pairs]
    # One product of matrices for all sums over common samples.
    terms = torch.cat([own.float(), *columns, *products])
    sums = (terms @ y.valid.float().T).reshape(-1, len(own), len(y.valid))
    count = sums[0].clamp_min(1)
    mean = sums[1 : 1 + len(columns)] / count
    left: list[list[Tensor]] = [[] for _ in columns]
    for (i, j), product in zip(pairs, sums[1 + len(columns) :], strict=True):
        left[i].append(product / count - mean[i] * mean[j])
    wide = torch.stack([row[-1] for row in left]).amax(0).clamp_min(0)
    narrow = torch.full_like(count, torch.inf)
    for c in range(len(columns)):
        pivot = left[c][c]
        narrow = torch.minimum(narrow, pivot.masked_fill(rests[:, c, None], torch.inf))
        unit = torch.where(pivot > 0, pivot, torch.inf)
        for i in range(c + 1, len(columns)):
            for j in range(c + 1, i + 1):
                left[i][j] = left[i][j] - left[i][c] * left[j][c] / unit
    return narrow, wide


def over_common(side: Series) -> Series:
    """Series cut to the common samples of a pair, with frames and recurring values of these
    alone."""
    side = side._replace(rank=None, recurs=None, cell=None, distinct=None)
    mask = None if side.valid is None else side.valid.cpu().numpy()
    return with_frame(exact(side, side.x.cpu().numpy(), mask))


def with_frame(side: Series) -> Series:
    """The tracks without the columns that are determined by others, and their frames."""
    x, device = side.x.cpu().numpy().astype(np.float64), side.x.device
    present = np.ones(x.shape[:2], bool) if side.valid is None else side.valid.cpu().numpy()
    kept, *found = _frames(x, present, float(torch.finfo(side.x.dtype).eps))
    z, narrow, wide, scale = (torch.from_numpy(array).to(device) for array in found)
    rank, reduced, cell = None, side.x, side.cell
    if not kept.all():
        rank = torch.from_numpy(kept.sum(1).astype(np.float64)).to(device)
        columns = torch.from_numpy(kept).to(device)[:, None]
        reduced = side.x * columns
        cell = None if cell is None else cell * columns
    frame = Frame(z.to(side.x.dtype), narrow, wide)
    return side._replace(x=reduced, rank=rank, frame=frame, log_scale=scale, cell=cell)


def _spread(x: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviations of the narrowest direction and the widest column of each track, `[P]`.

    The narrowest of the directions that elimination finds; the true one is not much narrower.
    """
    origin = x[:, :1] if mask is None else x[np.arange(len(x)), mask.argmax(1)][:, None]
    columns = [x[:, :, c] - origin[:, :, c] for c in range(x.shape[2])]
    if mask is None:
        count = np.full(len(x), float(x.shape[1]))
    else:
        count = np.maximum(mask.sum(1), 1).astype(np.float64)
        columns = [column * mask for column in columns]
    mean = [column.sum(1, dtype=np.float64) / count for column in columns]
    d = len(columns)
    covariance = np.empty((d, d, len(x)))
    for a in range(d):
        for b in range(a + 1):
            product = np.einsum("pt,pt->p", columns[a], columns[b]) / count - mean[a] * mean[b]
            covariance[a, b] = covariance[b, a] = product
    wide = np.sqrt(np.maximum(covariance[range(d), range(d)], 0).max(0))
    return np.sqrt(np.maximum(_pivots(covariance).min(0), 0)), wide


def _pivots(covariance: np.ndarray) -> np.ndarray:
    """Variance of each column that the columns before it leave: `[d, d, ...]` -> `[d, ...]`."""
    left, out = covariance, []
    for c in range(len(left)):
        out.append(pivot := left[c, c])
        left = left - left[:, c, None] * (left[c] / np.where(pivot > 0, pivot, np.inf))[None]
    return np.stack(out)


def _frames(
    x: np.ndarray, present: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Kept columns `[P, d]`, z, narrow, wide and log of the volume of z's unit cube `[P]`.

    Gram-Schmidt over the columns, twice for precision. Element by element, so that equal samples
    stay equal.
    """
    tracks, _, d = x.shape
    count = np.maximum(present.sum(1), 1).astype(np.float64)
    kept, z = np.zeros((tracks, d), bool), np.zeros_like(x)
    narrow, wide = np.full((tracks, 2), np.inf), np.zeros((tracks, 2))
    log_scale = np.zeros(tracks)
    basis: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for c in range(d):
        column = np.where(present, x[:, :, c], 0.0)
        noise = ROUNDING * eps * np.abs(column).max(1)
        column = np.where(present, column - (column.sum(1) / count)[:, None], 0.0)
        column_spread = _two_spreads(column, present, count)
        for _ in range(2):
            for other, square, other_noise in basis:
                factor = np.einsum("pt,pt->p", column, other) / np.where(square > 0, square, np.inf)
                column = column - factor[:, None] * other
                noise = noise + np.abs(factor) * other_noise
        spread = _two_spreads(column, present, count)
        keep = spread[:, 0] > noise
        kept[:, c] = keep
        column = np.where(keep[:, None], column, 0.0)
        basis.append((column, np.einsum("pt,pt->p", column, column), noise))
        unit = np.where(keep, spread[:, 1], 1.0)
        z[:, :, c] = column / unit[:, None]
        log_scale += np.log(unit)
        narrow = np.where(keep[:, None], np.minimum(narrow, spread), narrow)
        wide = np.where(keep[:, None], np.maximum(wide, column_spread), wide)
    return kept, z, narrow, wide, log_scale


def _two_spreads(column: np.ndarray, present: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Standard deviation and distance of the quartiles in its units, `[P, 2]`.

    If most samples are at one place, the standard deviation replaces the quartiles.
    """
    deviation = np.sqrt(np.einsum("pt,pt->p", column, column) / count)
    ordered = np.sort(np.where(present, column, np.inf), 1)
    last = np.maximum(count - 1, 0)
    at = [np.round(q * last).astype(np.int64)[:, None] for q in (0.25, 0.75)]
    some = present.any(1)
    low, high = (np.where(some, np.take_along_axis(ordered, i, 1)[:, 0], 0.0) for i in at)
    quartiles = (high - low) / 1.349  # of a normal distribution
    return np.stack([deviation, np.where(quartiles > 1e-3 * deviation, quartiles, deviation)], 1)
