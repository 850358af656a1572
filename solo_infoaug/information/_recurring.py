"""Values that recur, or are equally far apart: lattices made exact, and noise in their cells.

If values lie on a lattice, its points are made exact, because 0.3 - 0.2 and 0.2 - 0.1 must be the
same distance. Columns with only such values are discrete: distances recur too, which no estimator
can handle. If the samples of a pair do not coincide with k others, uniform noise as wide as the
lattice's cells is added. The samples can still be read off, so MI does not change, and independent
tracks stay independent. Other recurring values that the estimators cannot handle give a warning.
"""

from __future__ import annotations

import numpy as np
import torch

from solo_infoaug.information._series import Series

RECURRING = 0.05  # fraction of recurring values up to which they are chance, or do little harm
ROUNDING = 4.0  # in units of eps times the largest value: smaller differences are rounding
_OFF = 0.05  # of the spacing: values of a lattice are not farther from its points


def exact(side: Series, x: np.ndarray, mask: np.ndarray | None) -> Series:
    """The tracks with lattices made exact. Tracks without recurring distances are not changed."""
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
    rows = ordered[suspect]
    span = np.nanmax(rows, axis=-1) - rows[:, 0]
    constant = np.zeros_like(suspect)  # but for rounding
    constant[suspect] = span <= ROUNDING * eps * size[suspect]
    # Most are chance: on no lattice, and without clumps
    suspect[suspect] = (constant | often)[suspect] | _may_be_lattice(rows, clump[suspect])
    recurs, cell = np.zeros(len(x), bool), np.zeros_like(x)
    out = x.copy()
    for track, c in np.argwhere(suspect).tolist():
        values = ordered[track, c]
        values = values[~np.isnan(values)]
        if constant[track, c]:
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

    Values on no lattice, or on a mostly empty one, are replaced by a lattice in the same order,
    which does not change MI. The width is 0 if more than a few values occur once: the column then
    has a density as well.
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

    The noise depends only on the joint samples of the row, not on their order, on which side is
    first, on units, or on other rows. Two sides never get the same noise.
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

    Each content has its own noise: one draw for all rows would bias all of them in the same
    direction. SplitMix64 makes it from seed and place.
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
    offsets = first.astype(np.float64) - first[0]
    # The smallest step has rounding in it: refine by the whole range
    spacing = (float(values[-1]) - float(values[0])) / float(np.round(offsets[-1] / spacing))
    multiples = np.round(offsets / spacing)
    off = np.abs(offsets - multiples * spacing).max()
    bits = 12 if values.dtype == np.float32 else 26
    rounding = max(close, ROUNDING * float(np.finfo(values.dtype).eps * np.abs(values).max()))
    if off > rounding or off > _OFF * spacing or multiples[-1] >= 2.0**bits:
        return first[clump], False
    mantissa, exponent = np.frexp(spacing)
    short = np.ldexp(np.round(mantissa * 2.0**bits) / 2.0**bits, exponent)
    return (multiples * short).astype(values.dtype)[clump], True


def _may_be_lattice(ordered: np.ndarray, clump: np.ndarray) -> np.ndarray:
    """bool [N]: whether `_points` may find a lattice in the rows [N, T], sorted, with NaN last.

    With clumps as wide as `clump` [N], or 0. It looks at all rows at once.
    """
    steps = np.diff(ordered).astype(np.float64)
    offsets = ordered.astype(np.float64) - ordered[:, :1]
    span = np.nanmax(offsets, axis=1, keepdims=True)
    found = np.zeros(len(ordered), bool)
    for close in (np.zeros_like(clump), clump):
        distinct = steps > close[:, None]
        first = np.pad(distinct, ((0, 0), (1, 0)), constant_values=True)
        spacing = np.where(distinct, steps, np.inf).min(axis=1, keepdims=True)
        last = np.where(first, offsets, 0).max(axis=1, keepdims=True)
        spacing = span / np.maximum(np.round(last / spacing), 1)
        off = np.abs(offsets - np.round(offsets / spacing) * spacing)
        # a little more than `_points` allows, which adds up in another order
        found |= np.where(first, off, 0).max(axis=1) <= 1.01 * _OFF * spacing[:, 0]
    return found
