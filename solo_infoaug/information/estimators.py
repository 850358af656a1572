"""k-nearest-neighbour entropy and mutual information (MI) under the L∞ distance.

The public functions, which check their arguments once. `formulas` has the estimates. `_backend`
chooses what sums over the nearest neighbours: `_compiled` (numba, CPU), `_triton` (CUDA) or
`_plain` (torch, any device).

With ψ the digamma function, T samples, ρ the L∞ distance of a sample to its k-th neighbour:

- Kozachenko-Leonenko entropy: Ĥ(X) = ψ(T) - ψ(k) + (d/T) Σ log 2ρ.
- `3kl`: Ĥ(X) + Ĥ(Y) - Ĥ(X, Y); the name does not mean k = 3.
- `ksg1`: ψ(T) + ψ(k) - ⟨ψ(n_x + 1) + ψ(n_y + 1)⟩, n_x the samples nearer than ρ in x alone.
- `ksg2`: ψ(T) + ψ(k) - 1/k - ⟨ψ(n_x) + ψ(n_y)⟩, n_x the samples within the reach of the k
  neighbours.

Ties, which are common in coarse whole numbers, would make ρ = 0. A sample with k or more others at
distance 0 shares a cell with them: the entropies take log(cell) - ψ(ties + 1) for it, in place of
d·log 2ρ - ψ(k). The cell is as wide as the smallest distance between two different samples of the
track, d times; the cell of a pair is the product of both, so that it cancels out of the MI and the
plug-in estimate of tied samples remains. KSG counts what its cube really holds (see
`_plain.neighbour_sums`), which without ties is k. A constant track has MI 0 with everything, and
the entropy of a cell of width 2⁻¹²⁶: low, but finite. `_position` describes the treatment of other
data outside general position.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from torch import Tensor

from solo_infoaug._checks import is_whole
from solo_infoaug.information import _position
from solo_infoaug.information._position import EstimateWarning
from solo_infoaug.information._series import ESTIMATORS, Series
from solo_infoaug.information.formulas import (
    CONSTANT_WIDTH,
    Estimator,
    all_pairs,
    discrete,
    entropies,
    information,
)

UNITS = {"nats": 1.0, "bits": 1.0 / math.log(2.0)}
DEFAULT_MEMORY = 2**29


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
    10.1103/PhysRevE.69.066138. For smooth densities the bias is of order (k/T)^(2/d), usually
    positive, and grows with d. Samples are assumed to be independent; for an autocorrelated track
    the estimate is too low.

    Args:
        x: `[..., T, d]`, float32 or float64.
        k: which neighbour; 1 <= k < T.
        mask: `[..., T]`, bool, true where there is a sample.
        units: `nats` or `bits`.
        max_memory: bytes that the work may take, in addition to input and output.

    Returns:
        `[...]`, in the dtype of x. A constant track, or one with at most k samples, gets the lowest
        possible value, d·log(2⁻¹²⁶).

    Raises:
        ValueError: wrong type, dtype or shape, T <= k, NaN or infinite samples.

    Warns:
        EstimateWarning: some columns are constant or determined by others, so the entropy is -inf
            and the value is that of the other columns; or values recur or lie on a lattice, and the
            value is that of cells as wide as the distance between values.

    Examples:
        A uniform density of width 4 has the entropy log 4 = 1.39.

        >>> x = 4 * torch.rand(1000, 1, generator=torch.Generator().manual_seed(0))
        >>> round(entropy(x).item(), 1)
        1.4
    """
    check_options(k, "3kl", units, max_memory)
    x, valid = check_series("x", x, mask, k)
    (tracks,) = _position.prepare(Series(x.reshape(-1, *x.shape[-2:]), _flat(valid)))
    value, constant = entropies(tracks, k, max_memory)
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
    are `ksg1` and `ksg2`; `3kl` sums three entropies (see `entropy`), whose errors do not cancel,
    so it has the largest bias. For strong dependence all three are biased towards 0, more so with
    fewer samples, and cannot exceed about ψ(T) - ψ(k). For independent series they scatter around 0
    and may be negative. Samples are assumed to be independent; `pairwise_significance` tests
    autocorrelated series. Distances in x and y are compared with each other, so give both in the
    same unit, or standardise them. Spreads that differ by more than 8 times are made equal.

    Args:
        x: `[..., T, dx]`, float32 or float64.
        y: `[..., T, dy]`, like x except for the last axis.
        estimator: `3kl`, `ksg1` or `ksg2`.
        k: which neighbour; 1 <= k < T.
        mask: `[..., T]`, bool, true where there is a sample of both.
        min_samples: fewest samples for an estimate; more than k. By default k + 1, with a mask
            16 or 4k, whichever is more.
        units: `nats` or `bits`.
        max_memory: bytes that the work may take, in addition to input and output.

    Returns:
        `[...]`, in the dtype of x. 0 where x or y is constant or has fewer than `min_samples`.

    Raises:
        ValueError: wrong type, dtype or shape, T <= k, NaN or infinite samples, unknown estimator.

    Warns:
        EstimateWarning: some values recur, or all are ranks (`3kl` and `ksg2`); samples lie on
            a curve or surface (`3kl`); no pair has `min_samples` samples.

    Examples:
        Two normal variables with correlation 0.9 share -log(1 - 0.9²)/2 = 0.83 nats.

        >>> a, b = torch.randn(2, 500, 1, generator=torch.Generator().manual_seed(0))
        >>> round(mutual_information(a, 0.9 * a + 0.19**0.5 * b, "ksg1").item(), 1)
        0.8
    """
    check_options(k, estimator, units, max_memory)
    x, valid = check_series("x", x, mask, k)
    min_count = resolve_min_samples(min_samples, k, x.shape[-2], mask)
    how = Estimator(estimator, k, min_count, max_memory, UNITS[units], {})
    y, _ = check_series("y", y, mask if isinstance(y, Tensor) and y.ndim == x.ndim else None, k)
    if x.shape[:-1] != y.shape[:-1] or x.dtype != y.dtype or x.device != y.device:
        raise ValueError(
            f"y must be like x except for the last axis, {_describe(x)}; got {_describe(y)}"
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
    """MI of every pair of tracks of a scene; see `mutual_information` for estimators and their
    bias.

    `estimator`, `k`, `min_samples`, `units` and `max_memory` are those of `mutual_information`.

    Args:
        trajectories: `[..., P, T, d]`, float32 or float64.
        mask: `[..., P, T]`, bool, true where a track has a sample. A pair uses the samples that
            both have. Values outside of the mask are ignored, even NaN.

    Returns:
        `[..., P, P]`, symmetric, in the dtype of the trajectories. The diagonal is finite but has
        no meaning. The value is 0 if one of the two tracks is constant over the common samples, or
        if there are fewer than `min_samples`.

    Raises:
        ValueError: as `mutual_information`.

    Warns:
        EstimateWarning: as `mutual_information`.

    Examples:
        Of three tracks in the plane, the first two move alike.

        >>> steps = torch.randn(3, 200, 2, generator=torch.Generator().manual_seed(0))
        >>> steps[1] = steps[0] + 0.1 * steps[1]
        >>> mi = pairwise_mutual_information(steps)
        >>> mi.shape
        torch.Size([3, 3])
        >>> (mi > 1).tolist()
        [[True, True, False], [True, True, False], [False, False, True]]
    """
    scenes, how = check_scenes(trajectories, mask, estimator, k, min_samples, units, max_memory)
    out = all_pairs(scenes, trajectories, how)
    warn_of(how)
    return out


# --- warnings ---------------------------------------------------------------------------------


def warn_of(how: Estimator) -> None:
    """Give one `EstimateWarning` about all problems of an estimate; called by a public function."""
    known, met = how.notes or {}, []
    seen = torch.stack(list(known.values())).tolist() if known else []
    notes = {name for name, is_met in zip(known, seen, strict=True) if is_met}
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
    rank = tracks.dimensions()
    if reduced := int(((rank < tracks.d) & ~constant).sum()):
        met.append(
            f"{reduced} of {len(constant)} tracks have columns that are constant or determined by "
            f"others, which makes their entropy -inf; theirs is that of the other columns"
        )
    recurs = discrete(tracks) if tracks.recurs is None else discrete(tracks) | tracks.recurs
    if recur := int((recurs & ~constant).sum()):
        met.append(
            f"values recur or lie on a lattice in {recur} of {len(constant)} tracks, which have no "
            f"density; theirs is the entropy of cells as wide as the distance between values"
        )
    if met:
        warnings.warn("; ".join(met), EstimateWarning, stacklevel=3)


# --- the public edge ---------------------------------------------------------------------------


def check_options(k: int, estimator: str, units: str, max_memory: int) -> None:
    """Raise ValueError for options that no estimator takes."""
    for good, name, expected, value in (
        (is_whole(k, 1), "k", "an integer of at least 1", k),
        (estimator in ESTIMATORS, "estimator", f"one of {', '.join(ESTIMATORS)}", estimator),
        (units in tuple(UNITS), "units", f"one of {', '.join(UNITS)}", units),
        (is_whole(max_memory, 2**20), "max_memory", f"at least {2**20} bytes", max_memory),
    ):
        if not good:
            raise ValueError(f"{name} must be {expected}, got {value!r}")


def check_series(name: str, x: Tensor, mask: Tensor | None, k: int) -> tuple[Tensor, Tensor | None]:
    """x without gradient, and its mask. Masked samples become 0."""
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
    # see `_compiled._coordinates`: torch would wake its threads
    finite = np.isfinite(x.numpy()) if x.device.type == "cpu" else torch.isfinite(x)
    if not finite.all():
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
    how = Estimator(estimator, k, min_count, max_memory, UNITS[units], {})
    if x.ndim < 3 or x.shape[-3] < 1:
        raise ValueError(
            f"trajectories must be [..., P, T, d] with P >= 1, got shape {tuple(x.shape)}"
        )
    scenes = x.reshape(-1, *x.shape[-3:])
    if valid is None:
        return _position.prepare_scenes(scenes, max_memory), how
    pairs = zip(scenes, valid.reshape(-1, *valid.shape[-2:]), strict=True)
    return [_position.prepare(Series(*scene))[0] for scene in pairs], how


def resolve_min_samples(min_samples: int | None, k: int, samples: int, mask: Tensor | None) -> int:
    """The fewest samples for an estimate."""
    if min_samples is None:
        return k + 1 if mask is None else max(16, 4 * k)
    if not is_whole(min_samples, k + 1):
        raise ValueError(f"min_samples must be an integer above k={k}, got {min_samples!r}")
    if min_samples > samples:
        raise ValueError(f"min_samples must be at most T={samples}, got {min_samples}")
    return min_samples


def _flat(valid: Tensor | None) -> Tensor | None:
    return None if valid is None else valid.reshape(-1, valid.shape[-1])


def _describe(x: Tensor) -> str:
    return f"{list(x.shape)} {x.dtype} on {x.device}"
