"""Data outside general position: columns that say nothing new, unlike spreads, whole numbers.

The estimators are derived for samples with a density in all d dimensions, whose distances are all
different and whose columns have much the same spread. Elsewhere they can be off by nats:

- A column that is constant, or determined by the others (affinely, up to rounding), takes no part
  in a density. It is left out, and d is the number of the columns that remain.
- Columns, or directions of a track, or the two tracks of a pair, whose spreads differ by more than
  `UNEVEN`: balls of one radius for all of them are blind to the narrow ones. MI does not change
  under an invertible map of x alone or of y alone (Kraskov et al. 2004, DOI
  10.1103/PhysRevE.69.066138, eq. 4), so such a pair is estimated after one that makes the spreads
  equal: each column less its regression on the columns before it, in units of its spread.
- Values that recur, or are equally far apart. If they lie on a lattice its points are made exact,
  since 0.3 - 0.2 and 0.2 - 0.1 must be the same distance. Columns that have no other values are
  discrete: distances recur too, which no estimator takes. A pair whose samples do not coincide with
  k others is then estimated with uniform noise as wide as the lattice's cells: the samples can be
  read off it, so that MI stays what it is, and what was independent stays independent. What the
  estimators cannot do with other recurring values is a warning.

General position is told by one cheap look at all tracks, and such data pass as they came.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

UNEVEN = 8.0  # ratio of spreads above which balls see no more of the narrow; chance seldom makes it
RECURRING = 0.05  # fraction of recurring values up to which they are chance, or do little harm
ROUNDING = 4.0  # in units of eps times the largest value: what is no more than this is rounding


class EstimateWarning(UserWarning):
    """An estimate of entropy or MI that may be far off, for what the data are; says what to do."""


class Frame(NamedTuple):
    """A track in coordinates of equal spread, and the spreads in which it came."""

    z: Tensor  # [P, T, d], each column of spread 1, or 0 where the column is determined by others
    narrow: Tensor  # [P, 2]: the narrowest direction, as standard deviation and quartile range
    wide: Tensor  # [P, 2]: the widest column


class Series(NamedTuple):
    x: Tensor  # [P, T, d]
    valid: Tensor | None  # [P, T]
    rank: Tensor | None = None  # [P], float64: independent columns; d where it is not given
    frame: Frame | None = None
    log_scale: Tensor | None = None  # [P]: log of the volume of z's unit cube in x
    recurs: Tensor | None = None  # [P], bool: a column has recurring values and others, or is ranks
    cell: Tensor | None = None  # [P, T, d]: width of a discrete column's cell; 0 in other columns
    source: Tensor | None = None  # [P]: rows of one number are one track, circularly shifted
    distinct: bool | None = None  # known: no track has two samples at one place

    @property
    def d(self) -> int:
        return self.x.shape[2]

    def counts(self) -> Tensor:
        if self.valid is None:
            return torch.full(
                (len(self.x),), self.x.shape[1], dtype=torch.float64, device=self.x.device
            )
        return self.valid.sum(-1).double()

    def dimensions(self) -> int | Tensor:
        return self.d if self.rank is None else self.rank

    def part(self, rows: slice | Tensor) -> Series:
        """These tracks alone."""

        def cut(field: Tensor | None) -> Tensor | None:
            return None if field is None else field[rows]

        return self._replace(
            x=self.x[rows],
            valid=cut(self.valid),
            rank=cut(self.rank),
            frame=None if self.frame is None else Frame(*(field[rows] for field in self.frame)),
            log_scale=cut(self.log_scale),
            recurs=cut(self.recurs),
            cell=cut(self.cell),
            source=cut(self.source),
        )

    def rolled(self, shifts: list[int]) -> Series:
        """`[S·P, ...]`: all tracks later by the first shift, circularly, then by the second, ..."""

        def roll(field: Tensor) -> Tensor:
            return torch.cat([field.roll(shift, 1) for shift in shifts])

        every = self.part(torch.arange(len(self.x), device=self.x.device).repeat(len(shifts)))
        frame = None
        if self.frame is not None and every.frame is not None:
            frame = every.frame._replace(z=roll(self.frame.z))
        valid = None if self.valid is None else roll(self.valid)
        cell = None if self.cell is None else roll(self.cell)
        return every._replace(x=roll(self.x), valid=valid, frame=frame, cell=cell)

    def even(self) -> Series:
        """In the coordinates of equal spread."""
        if self.frame is None:
            return self
        return self._replace(x=self.frame.z, frame=None, distinct=None)


def prepare(*sides: Series) -> tuple[Series, ...]:
    """The tracks ready for the estimators; those of data in general position are what they were.

    All `sides` are looked at together: a track that is narrow beside another makes frames for all.
    """
    arrays = [side.x.cpu().numpy() for side in sides]
    masks = [None if side.valid is None else side.valid.cpu().numpy() for side in sides]
    out = [_exact(side, x, mask) for side, x, mask in zip(sides, arrays, masks, strict=True)]
    spreads = [_spread(x, mask) for x, mask in zip(arrays, masks, strict=True)]
    narrow, wide = (np.concatenate(s) for s in zip(*spreads, strict=True))
    moving = wide > 0
    if not moving.any() or wide[moving].max() <= UNEVEN * narrow[moving].min():
        return tuple(out)
    return tuple(with_frame(side) for side in out)


def prepare_scenes(x: Tensor, max_memory: int) -> list[Series]:
    """`prepare` of each of the scenes `[S, P, T, d]`, without masks.

    On a card those in general position stay there, and the host waits once for all that are.
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
    """Of scenes `[S, P, T, d]`, bool `[S, 2]`: surely what `prepare` lets pass; and `distinct`.

    What is close to the bounds of `prepare` is not sure.
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
    """Which pairs need `even()` tracks: `[P, Q]`, or `[P]` where paired; None if none has frames.

    By both measures of spread: standard deviations of heavy tails say little.
    """
    if x.frame is None or y.frame is None:
        return None
    narrow, wide = (
        (a, b) if layout == "paired" else (a[:, None], b[None, :])
        for a, b in ((x.frame.narrow, y.frame.narrow), (x.frame.wide, y.frame.wide))
    )
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

    In single precision: it is enough for a ratio of `UNEVEN`, and this looks at every pair. Columns
    that rest all the time do not count.
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
    narrow, wide = torch.full_like(count, torch.inf), torch.zeros_like(count)
    for c in range(len(columns)):
        wide = torch.maximum(wide, left[c][c])
    for c in range(len(columns)):
        pivot = left[c][c]
        narrow = torch.minimum(narrow, pivot.masked_fill(rests[:, c, None], torch.inf))
        unit = torch.where(pivot > 0, pivot, torch.inf)
        for i in range(c + 1, len(columns)):
            for j in range(c + 1, i + 1):
                left[i][j] = left[i][j] - left[i][c] * left[j][c] / unit
    return narrow, wide


def over_common(side: Series) -> Series:
    """Series cut to the samples of a pair, with frames and what recurs over these alone."""
    side = side._replace(rank=None, recurs=None, cell=None, distinct=None)
    mask = None if side.valid is None else side.valid.cpu().numpy()
    return with_frame(_exact(side, side.x.cpu().numpy(), mask))


def with_frame(side: Series) -> Series:
    """The tracks without the columns that are determined by others, and their frames."""
    x = side.x.cpu().numpy().astype(np.float64)
    present = np.ones(x.shape[:2], bool) if side.valid is None else side.valid.cpu().numpy()
    kept, z, narrow, wide, log_scale = _frames(x, present, float(torch.finfo(side.x.dtype).eps))
    device = side.x.device
    rank, reduced, cell = None, side.x, side.cell
    if not kept.all():
        rank = torch.from_numpy(kept.sum(1).astype(np.float64)).to(device)
        columns = torch.from_numpy(kept).to(device)[:, None]
        reduced = side.x * columns
        cell = None if cell is None else cell * columns
    frame = Frame(
        torch.from_numpy(z.astype(side.x.cpu().numpy().dtype)).to(device),
        torch.from_numpy(narrow).to(device),
        torch.from_numpy(wide).to(device),
    )
    scale = torch.from_numpy(log_scale).to(device)
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
    if d == 1:
        variance = np.einsum("pt,pt->p", columns[0], columns[0]) / count - mean[0] ** 2
        wide = np.sqrt(np.maximum(variance, 0))
        return wide, wide
    covariance = np.empty((d, d, len(x)))
    for a in range(d):
        for b in range(a + 1):
            product = np.einsum("pt,pt->p", columns[a], columns[b]) / count - mean[a] * mean[b]
            covariance[a, b] = covariance[b, a] = product
    wide = np.sqrt(np.maximum(covariance[range(d), range(d)], 0).max(0))
    return np.sqrt(np.maximum(_pivots(covariance).min(0), 0)), wide


def _pivots(covariance: np.ndarray) -> np.ndarray:
    """Variance of each column that the columns before it leave: `[d, d, ...]` -> `[d, ...]`."""
    left = covariance.copy()
    out = []
    for c in range(len(left)):
        pivot = left[c, c].copy()
        out.append(pivot)
        if c + 1 < len(left):
            factor = left[c] / np.where(pivot > 0, pivot, np.inf)
            left = left - left[:, c][:, None] * factor[None]
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

    The quartiles are left out, for the standard deviation, where most samples are at one place.
    """
    deviation = np.sqrt(np.einsum("pt,pt->p", column, column) / count)
    ordered = np.sort(np.where(present, column, np.inf), 1)
    last = np.maximum(count - 1, 0)
    at = [np.round(q * last).astype(np.int64)[:, None] for q in (0.25, 0.75)]
    some = present.any(1)
    low, high = (np.where(some, np.take_along_axis(ordered, i, 1)[:, 0], 0.0) for i in at)
    quartiles = (high - low) / 1.349  # of a normal distribution
    return np.stack([deviation, np.where(quartiles > 1e-3 * deviation, quartiles, deviation)], 1)


# --- values that recur -------------------------------------------------------------------------


def _exact(side: Series, x: np.ndarray, mask: np.ndarray | None) -> Series:
    """The tracks with lattices made exact; those of which no distance recurs as they are."""
    columns = np.ascontiguousarray(x.transpose(0, 2, 1))
    ordered = np.sort(columns if mask is None else np.where(mask[:, None], columns, np.nan))
    steps = ordered[..., 1:] - ordered[..., :-1]  # absent samples are last, and their steps NaN
    if mask is None:
        size = np.maximum(ordered[..., -1], -ordered[..., 0])
        total = np.full((len(x), 1), x.shape[1])
    else:
        size, total = np.abs(columns).max(-1), mask.sum(1)[:, None]
    eps = float(np.finfo(x.dtype).eps)
    clump = (eps**0.75 * size).astype(x.dtype)  # sums of hundreds of tenths are not off by more
    near = steps <= clump[..., None]
    smallest = np.where(near | np.isnan(steps), np.inf, steps).min(-1)
    # ranks, or constant speed: no value recurs, but the distance between neighbours does
    alike = np.count_nonzero(steps <= (smallest + clump)[..., None], axis=-1)
    tied = np.count_nonzero(steps == 0, axis=-1)
    suspect = (alike > RECURRING * total) & (tied < total - 1)
    if not suspect.any():
        return side
    often = np.count_nonzero(near, axis=-1) > RECURRING * total
    recurs, cell = np.zeros(len(x), bool), np.zeros_like(x)
    out = x.copy()
    for track, c in np.argwhere(suspect).tolist():
        values = ordered[track, c]
        values = values[~np.isnan(values)]
        if values[-1] - values[0] <= ROUNDING * eps * size[track, c]:  # constant but for rounding
            out[track, :, c] = values[0]
            continue
        plain = tied[track, c] > RECURRING * len(values) or not often[track, c]
        points, is_lattice = _points(values, 0.0) if plain else (None, False)
        if not is_lattice:
            clumps = _points(values, float(clump[track, c]))
            points, is_lattice = (points, False) if clumps[0] is None else clumps
        if points is None or not (is_lattice or often[track, c]):
            continue
        rank = np.searchsorted(values, x[track, :, c])  # of each sample among the sorted
        rank = np.minimum(rank, len(values) - 1)
        points, width = _cells(points, is_lattice) if often[track, c] else (points, 0.0)
        out[track, :, c] = points[rank]
        cell[track, :, c] = width
        recurs[track] |= width == 0
    if not (recurs.any() or cell.any() or (out != x).any()):
        return side
    if mask is not None:
        out[~mask] = cell[~mask] = 0
    device = side.x.device
    return side._replace(
        x=torch.from_numpy(out).to(device),
        recurs=torch.from_numpy(recurs).to(device) if recurs.any() else None,
        cell=torch.from_numpy(cell).to(device) if cell.any() else None,
    )


def _cells(points: np.ndarray, is_lattice: bool) -> tuple[np.ndarray, float]:
    """The sorted values of a discrete column on a lattice, and how wide its cells are.

    Values that are on none, or on one that is empty for the most part, are put on one in their
    order, which leaves MI what it is. Width 0 where more than a few values come once: the column
    has a density too.
    """
    values, which, counts = np.unique(points, return_inverse=True, return_counts=True)
    once = np.count_nonzero(counts == 1) > RECURRING * len(points)
    spacing, span = float(np.diff(values).min()), float(values[-1] - values[0])
    if is_lattice and (once or 2 * len(values) > span / spacing):
        return points, spacing
    if once:
        return points, 0.0
    width = span / (len(values) - 1)
    return (values[0] + which * width).astype(points.dtype), width


def with_noise(*sides: Series) -> tuple[Series, ...]:
    """The series of each row, of one or of two sides, with uniform noise in their cells; float64.

    The noise depends on the joint samples of the row alone: neither on their order, nor on which
    side is the first, nor on units, nor on other rows. Two sides never get the same noise.
    """
    ranks = [_ranks(side) for side in sides]
    sorted_, order = _in_order(ranks)
    first = np.zeros(len(order), bool)  # whether the second side comes first
    if len(sides) == 2:
        sorted_back, order_back = _in_order(ranks[::-1])
        if sides[0].d == sides[1].d:
            differ = (sorted_ != sorted_back).reshape(len(order), -1)
            at = np.arange(len(order)), differ.argmax(1)
            first = sorted_back.reshape(differ.shape)[at] < sorted_.reshape(differ.shape)[at]
        else:
            first[:] = sides[0].d > sides[1].d
        order = np.where(first[:, None], order_back, order)
        sorted_ = np.where(first[:, None, None], sorted_back, sorted_)
    if sides[0].valid is not None:
        sorted_ = sorted_ * np.sort(sides[0].valid.cpu().numpy(), 1)[:, ::-1, None]
    noise = np.empty_like(sorted_, np.float64)  # of the side that comes first to begin with
    np.put_along_axis(noise, order[..., None], _uniform(sorted_), 1)
    d, width = sides[0].d, noise.shape[-1]
    swapped = np.concatenate([noise[:, :, width - d :], noise[:, :, : width - d]], -1)
    noise = np.where(first[:, None, None], swapped, noise)
    out = []
    for side, own in zip(sides, np.split(noise, [d], -1), strict=False):
        x = side.x.double()
        if side.cell is not None:
            x = x + torch.from_numpy(own).to(x.device) * side.cell
        out.append(Series(x, side.valid, side.rank, recurs=side.recurs))
    return tuple(out)


def _uniform(content: np.ndarray) -> np.ndarray:
    """Numbers in -1/2 to 1/2, float64 `[P, T, d]`, that depend on what is in the row as a whole.

    Drawn anew for each content: one draw for all rows would be wrong for all in the same direction.
    By SplitMix64, as a function of seed and place.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    rows, columns = content.shape[1:]
    place = np.arange(rows * columns, dtype=np.uint64).reshape(rows, columns)
    words = _mixed(content.astype(np.uint64) * golden + _mixed(place * golden) * (content != 0))
    seed = _mixed(words.sum((1, 2), dtype=np.uint64))
    bits = _mixed(seed[:, None, None] + (place + np.uint64(1)) * golden)
    return (bits >> np.uint64(11)) * 2.0**-53 - 0.5


def _mixed(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _in_order(ranks: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Joint samples sorted by all columns `[P, T, d]`, and the order that sorts them `[P, T]`."""
    keys = np.concatenate(ranks, -1)
    order = np.lexsort(keys.transpose(2, 0, 1)[::-1])
    return np.take_along_axis(keys, order[..., None], 1), order


def _ranks(side: Series) -> np.ndarray:
    """How many different values of its column are smaller than each; absent samples are last."""
    x = side.x.cpu().numpy()
    absent = None if side.valid is None else ~side.valid.cpu().numpy()
    if absent is not None:
        x = np.where(absent[..., None], np.inf, x)
    order = x.argsort(1)
    ordered = np.take_along_axis(x, order, 1)
    rank = np.zeros(x.shape, np.int64)
    rank[:, 1:] = np.cumsum(ordered[:, 1:] != ordered[:, :-1], 1)
    out = np.empty_like(rank)
    np.put_along_axis(out, order, rank, 1)
    return out


def _points(values: np.ndarray, close: float) -> tuple[np.ndarray | None, bool]:
    """For sorted values that lie in clumps no wider than rounding: one value a clump.

    None if they do not; and whether the clumps are on a lattice, whose points are then exact
    multiples of its spacing, so that equal distances are equal as numbers.
    """
    steps = np.diff(values).astype(np.float64)
    distinct = steps > close
    if not distinct.any():
        return None, False
    spacing = float(steps[distinct].min())
    if spacing < 100 * close:
        return None, False
    clump = np.concatenate([[0], np.cumsum(distinct)])
    first = values[np.concatenate([[True], distinct])]
    span = float(values[-1]) - float(values[0])
    multiples = np.round((first.astype(np.float64) - first[0]) / spacing)
    for _ in range(3):  # the smallest step has rounding in it: refine by the whole range
        spacing = span / multiples[-1]
        multiples = np.round((first.astype(np.float64) - first[0]) / spacing)
    off = np.abs((first.astype(np.float64) - first[0]) - multiples * spacing).max()
    bits = 12 if values.dtype == np.float32 else 26
    rounding = max(close, ROUNDING * float(np.finfo(values.dtype).eps * np.abs(values).max()))
    if off > rounding or off > 0.05 * spacing or multiples[-1] >= 2.0**bits:
        return first[clump], False
    mantissa, exponent = np.frexp(spacing)
    short = np.ldexp(np.round(mantissa * 2.0**bits) / 2.0**bits, exponent)
    return (multiples * short).astype(values.dtype)[clump], True
