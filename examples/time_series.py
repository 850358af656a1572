"""Mutual information of one's own time series, and which of it is more than chance.

uv run python examples/time_series.py
"""

from __future__ import annotations

import math

import torch

from solo_infoaug import pairwise_mutual_information, pairwise_significance


def series(length: int = 400, correlation: float = 0.8) -> torch.Tensor:
    """Four series [4, length, 1] of which the first two are correlated; replace it by your own.

    Several columns are one series in several dimensions, as x and y of a trajectory.
    """
    noise = torch.randn(4, length, generator=torch.Generator().manual_seed(0))
    noise[1] = correlation * noise[0] + math.sqrt(1 - correlation**2) * noise[1]
    return noise[:, :, None]


def main() -> tuple[torch.Tensor, torch.Tensor]:
    """Print the matrix of MI and the pairs that pass a test; returns MI and p-values, [4, 4]."""
    x = series()
    mi = pairwise_mutual_information(x, "ksg1")  # nats
    test = pairwise_significance(x, "ksg1", generator=torch.Generator().manual_seed(0))
    print("MI in nats:", mi, sep="\n")
    print(f"closed form of the first pair: {-0.5 * math.log(1 - 0.8**2):.3f}")
    for i, j in torch.triu_indices(4, 4, offset=1).T.tolist():
        print(f"series {i} and {j}: p = {test.p_values[i, j]:.3f}, q = {test.q_values[i, j]:.3f}")
    return mi, test.p_values


if __name__ == "__main__":
    main()
