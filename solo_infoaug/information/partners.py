"""The best partners of each track, without the matrix of all pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from solo_infoaug._checks import is_whole
from solo_infoaug.information.estimators import DEFAULT_MEMORY, check_scenes, warn_of
from solo_infoaug.information.formulas import upper_rows


def top_k_partners(
    trajectories: Tensor,
    count: int = 1,
    estimator: str = "3kl",
    k: int = 3,
    *,
    mask: Tensor | None = None,
    min_samples: int | None = None,
    units: str = "nats",
    max_memory: int = DEFAULT_MEMORY,
) -> tuple[Tensor, Tensor]:
    """The tracks that share most information with each track, best first.

    The numbers are those of `pairwise_mutual_information`, but only a band of rows is in memory at
    a time, which allows tens of thousands of tracks. All other arguments are those of that
    function; the mask is `[P, T]`.

    Args:
        trajectories: `[P, T, d]`, float32 or float64.
        count: how many partners, 1 to P - 1.

    Returns:
        MI `[P, count]` in the dtype of the trajectories, and partners `[P, count]`, int64. A track
        is not its own partner.

    Raises:
        ValueError: as `pairwise_mutual_information`; count out of range.

    Warns:
        EstimateWarning: as `pairwise_mutual_information`, of the tracks as they are.

    Examples:
        Tracks 0 and 1 move alike, as do 2 and 3.

        >>> steps = torch.randn(4, 200, 2, generator=torch.Generator().manual_seed(0))
        >>> steps[1::2] = steps[::2] + 0.1 * steps[1::2]
        >>> mi, partners = top_k_partners(steps)
        >>> partners[:, 0].tolist()
        [1, 0, 3, 2]
    """
    scenes, how = check_scenes(trajectories, mask, estimator, k, min_samples, units, max_memory)
    if trajectories.ndim != 3:
        raise ValueError(f"trajectories must be [P, T, d], got shape {tuple(trajectories.shape)}")
    tracks = scenes[0]
    total = len(trajectories)
    if not is_whole(count, 1) or count >= total:
        raise ValueError(f"count must be 1 to P - 1 = {total - 1}, got {count!r}")
    best = torch.full((total, count), -torch.inf, dtype=torch.float64, device=trajectories.device)
    partners = torch.full((total, count), -1, device=trajectories.device)

    def offer(rows: slice, value: Tensor, first: int) -> None:
        """Let tracks first, first + 1, ... compete for the places of the rows."""
        value, columns = value.topk(min(count, value.shape[1]), dim=1)
        values = torch.cat([best[rows], value], 1)
        candidates = torch.cat([partners[rows], columns + first], 1)
        best[rows], kept = values.topk(count, dim=1)
        partners[rows] = candidates.gather(1, kept)

    for rows, value in upper_rows(tracks, tracks, how):
        width = rows.stop - rows.start
        square = torch.triu(value[:, :width], 1)
        value[:, :width] = (square + square.T).fill_diagonal_(-torch.inf)
        offer(rows, value, rows.start)
        if rows.stop < total:
            offer(slice(rows.stop, total), value[:, width:].T, rows.start)
    warn_of(how)
    return (best * how.scale).to(trajectories.dtype), partners
