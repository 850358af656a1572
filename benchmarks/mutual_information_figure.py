"""Estimation time against the number of samples, ours and the KD-tree's: docs/figures.

uv run python benchmarks/mutual_information_figure.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.spatial import cKDTree

from solo_infoaug.information import pairwise_mutual_information

TARGET = Path(__file__).resolve().parent.parent / "docs/figures/mutual-information-time.png"
# samples, tracks for ours, pairs for the KD-tree, turns
SIZES = [
    (50, 128, 60, 5),
    (100, 128, 60, 5),
    (200, 96, 40, 5),
    (500, 48, 20, 4),
    (1000, 32, 8, 4),
    (2000, 12, 4, 3),
    (5000, 4, 2, 3),
    (10_000, 3, 1, 3),
    (30_000, 2, 1, 2),
    (100_000, 2, 1, 2),
]


def best(work: Callable[[], object], turns: int) -> float:
    spent = []
    for _ in range(turns):
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
    return min(spent)


def kd_tree(x: np.ndarray, y: np.ndarray) -> None:
    for z in (x, y, np.concatenate([x, y], 1)):
        np.log(cKDTree(z).query(z, 4, p=np.inf)[0][:, -1]).sum()


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    pairwise_mutual_information(torch.randn(3, 50, 3))
    pairwise_mutual_information(torch.randn(2, 9000, 3))
    ours, tree = [], []
    for samples, tracks, pairs, turns in SIZES:
        x = torch.randn(tracks, samples, 3, generator=generator)
        a = x.double().numpy()
        count = tracks * (tracks - 1) / 2
        ours.append(best(lambda x=x: pairwise_mutual_information(x), turns) / count)
        loop = range(pairs)
        spent = best(lambda a=a, r=loop: [kd_tree(a[n % len(a)], a[n - 1]) for n in r], turns)
        tree.append(spent / pairs)
        print(f"| {samples} | {ours[-1] * 1e6:.3g} | {tree[-1] * 1e6:.3g} |", flush=True)
    sizes = [size[0] for size in SIZES]
    figure, axes = plt.subplots(figsize=(5.5, 3.8), layout="constrained")
    axes.loglog(sizes, tree, "s--", color="tab:gray", label="SciPy KD-tree, one core")
    axes.loglog(sizes, ours, "o-", color="tab:blue", label="solo-infoaug, all pairs, all cores")
    axes.set_xlabel("samples T of a track, d = 3")
    axes.set_ylabel("seconds a pair")
    axes.set_title("3KL mutual information: time against samples", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(TARGET, dpi=130)


if __name__ == "__main__":
    main()
