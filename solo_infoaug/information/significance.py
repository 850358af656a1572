"""Is the mutual information of a pair more than its autocorrelation explains?

Two independent but smooth series share far more MI by chance than independent samples do. Permuting
the samples would destroy the autocorrelation as well, and nearly every pair would seem significant.
A circular time shift breaks only the coupling.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from solo_infoaug._checks import is_whole
from solo_infoaug.information._series import Series
from solo_infoaug.information.estimators import DEFAULT_MEMORY, check_scenes, warn_of
from solo_infoaug.information.formulas import (
    Estimator,
    all_pairs,
    information,
    one_thread,
    over_shared,
    upper_rows,
)


class Significance(NamedTuple):
    """What `pairwise_significance` returns, each `[..., P, P]` and symmetric."""

    mi: Tensor
    """MI in nats."""
    p_values: Tensor
    """P(MI of shifted pairs >= MI of the pair) if the pair is independent; 1 on the diagonal."""
    q_values: Tensor
    """Smallest false-discovery rate, over all pairs of the scene, at which the pair is found."""


def pairwise_significance(
    trajectories: Tensor,
    estimator: str = "3kl",
    k: int = 3,
    *,
    surrogates: int = 199,
    min_shift: int = 1,
    generator: torch.Generator | None = None,
    mask: Tensor | None = None,
    min_samples: int | None = None,
    max_memory: int = DEFAULT_MEMORY,
) -> Significance:
    """Test every pair of tracks against circularly time-shifted surrogates of itself.

    A surrogate shifts the second track of each pair by the same number of frames, drawn without
    replacement from `min_shift` ... T - `min_shift`; p = (1 + #{MI of surrogate >= MI}) / (1 +
    number of surrogates). The test is exact for series whose distribution is invariant under
    circular shifts, and nearly exact if T is many correlation times. With `min_shift` > 1, shifts
    near the true alignment, where coupled smooth series still share information, are left out. This
    gives more power, but the test is no longer exact.

    Lancaster et al. (2018), DOI 10.1016/j.physrep.2018.06.001 (time-shifted surrogates); Benjamini
    and Hochberg (1995), DOI 10.1111/j.2517-6161.1995.tb02031.x (false-discovery rate).

    `estimator`, `k`, `min_samples` and `max_memory` are those of `pairwise_mutual_information`.

    Args:
        trajectories: `[..., P, T, d]`, float32 or float64, regularly sampled.
        surrogates: how many shifts; no p-value is below 1 / (1 + surrogates). There are at most
            T + 1 - 2·min_shift shifts, and no more than that are used.
        min_shift: smallest shift, in frames, in either direction.
        generator: for the choice of shifts; by default PyTorch's own.
        mask: `[..., P, T]`, bool, true where a track has a sample. It is shifted with its track;
            a surrogate with fewer than `min_samples` common samples is left out of the p-value.

    Returns:
        `Significance(mi, p_values, q_values)`; mi in nats. Pairs with too few samples or without
        motion have MI 0 and p = q = 1.

    Raises:
        ValueError: as `pairwise_mutual_information`; no shift to draw.

    Warns:
        EstimateWarning: as `pairwise_mutual_information`, of the tracks as they are.

    Examples:
        Three series; the second follows the first.

        >>> series = torch.randn(3, 100, 1, generator=torch.Generator().manual_seed(0))
        >>> series[1] = series[0] + 0.1 * series[1]
        >>> draws = torch.Generator().manual_seed(0)
        >>> found = pairwise_significance(series, "ksg1", surrogates=99, generator=draws)
        >>> (found.q_values < 0.05).tolist()
        [[False, True, False], [True, False, False], [False, False, False]]
    """
    scenes, how = check_scenes(trajectories, mask, estimator, k, min_samples, "nats", max_memory)
    samples = trajectories.shape[-2]
    if not is_whole(surrogates, 1):
        raise ValueError(f"surrogates must be an integer of at least 1, got {surrogates!r}")
    if not is_whole(min_shift, 1) or min_shift > samples // 2:
        raise ValueError(f"min_shift must be 1 to T/2 = {samples // 2} frames, got {min_shift!r}")
    if not isinstance(generator, torch.Generator | None):
        raise ValueError(f"generator must be a torch.Generator or None, got {generator!r}")
    mi = all_pairs(scenes, trajectories, how)
    warn_of(how)
    drawn = torch.randperm(samples + 1 - 2 * min_shift, generator=generator) + min_shift
    shifts, quiet = drawn[:surrogates].tolist(), how._replace(notes=None)
    flat = zip(scenes, mi.reshape(-1, *mi.shape[-2:]), strict=True)
    p_values = torch.stack([_p_values(tracks, of, shifts, quiet) for tracks, of in flat])
    q_values = torch.stack([_q_values(p) for p in p_values])
    return Significance(mi, p_values.reshape(mi.shape), q_values.reshape(mi.shape))


def shifted_information(
    trajectories: Tensor,
    pairs: Tensor,
    shifts: list[int],
    estimator: str = "3kl",
    k: int = 3,
    *,
    mask: Tensor | None = None,
    max_memory: int = DEFAULT_MEMORY,
) -> Tensor:
    """MI of `pairs` of tracks, int64 `[M, 2]`, the second of each shifted circularly in time.

    By each of S `shifts`, in frames: `[M, S]`, float64, nats; 0 where there are too few samples.
    The other arguments, and errors, are those of `pairwise_mutual_information`, of one scene. The
    mask is shifted with its track, and a pair uses the samples that both then have.
    """
    (tracks,), how = check_scenes(trajectories, mask, estimator, k, None, "nats", max_memory)
    how = how._replace(notes=None)
    count = len(tracks.x)
    tracks = tracks._replace(source=torch.arange(count, device=pairs.device))
    out = torch.zeros(len(pairs), len(shifts), dtype=torch.float64, device=pairs.device)
    # Pairs that have all samples go by themselves: a shift does not change what each has alone
    whole = (tracks.counts() == trajectories.shape[1])[pairs].all(1)
    for rows in (whole.nonzero()[:, 0], (~whole).nonzero()[:, 0]):
        step = max(1, max_memory // (64 * max(len(rows), count) * trajectories[0].numel()))
        for start in range(0, len(shifts) if len(rows) else 0, step):
            some = shifts[start : start + step]
            # All shifts of a pair, then of the next: what its first track needs is found once
            one, two = pairs[rows].repeat_interleave(len(some), 0).unbind(1)
            later = count * torch.arange(len(some), device=two.device).repeat(len(rows))
            with one_thread(pairs.device):
                a, b = tracks.part(one), tracks.rolled(some).part(two + later)
                if not whole[rows[0]]:
                    a, b = over_shared(a, b)
            value = information(a, b, how, "paired")
            out[rows, start : start + step] = value.reshape(len(rows), len(some))
    return out


def _p_values(tracks: Series, mi: Tensor, shifts: list[int], how: Estimator) -> Tensor:
    """p-values `[P, P]`, symmetric; 1 on the diagonal."""
    reached, drawn = torch.ones_like(mi), torch.ones_like(mi)
    for shift in shifts:
        shifted = tracks.rolled([shift])
        valid = shifted.valid
        for rows, value in upper_rows(tracks, shifted, how):
            surrogate = value.to(mi.dtype)
            enough: Tensor | bool = True
            if tracks.valid is not None and valid is not None:
                common = tracks.valid[rows].float() @ valid[rows.start :].float().T
                enough = common >= how.min_count
            reached[rows, rows.start :] += (surrogate >= mi[rows, rows.start :]) & enough
            drawn[rows, rows.start :] += enough
    upper = torch.triu(torch.where(mi == 0, 1.0, reached / drawn), 1)
    return (upper + upper.T).fill_diagonal_(1.0)


def _q_values(p_values: Tensor) -> Tensor:
    """Step-up q-values over the pairs above the diagonal."""
    from scipy.stats import false_discovery_control  # half a second, for those who test

    i, j = torch.triu_indices(len(p_values), len(p_values), 1, device=p_values.device)
    out = torch.ones_like(p_values)
    if len(i):
        q = false_discovery_control(p_values[i, j].double().cpu().numpy())
        out[i, j] = out[j, i] = torch.from_numpy(q).to(out)
    return out
