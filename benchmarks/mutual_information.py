"""How fast `pairwise_mutual_information` is, beside a KD-tree loop and every peer at hand.

    uv run python benchmarks/mutual_information.py
    uv run --with libksg --with normi --with benchmark-mi --with jax==0.4.30 \\
        --with jaxlib==0.4.30 --with "scipy<1.13" python benchmarks/mutual_information.py

Each row measures ours whole: distances, entropies and all pairs, on all threads. The KD-tree loop
is NPEET's algorithm for the same estimator (a SciPy tree a track, and a tree a pair in the joint
space), on one core, over a sample of the pairs; with `--workers` its queries use several. Peers run
a sample of the pairs too; they estimate KSG. The contestants of a row take turns, and the best turn
of each counts. `x KD-tree` compares elapsed time; `CPU` the processor time of both, which a machine
that is busy with other work distorts less, and which threads do not improve.

The floor is one max and the 2k - 1 min and max of the insertion for each of a pair's T² distances,
at the rate at which this machine does them when all is in the first-level cache.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree

from solo_infoaug.information import pairwise_mutual_information

ROWS = [(196, 96, 2), (196, 96, 3), (400, 240, 3), (64, 1000, 3), (2, 10_000, 3), (2, 100_000, 3)]
GOALS = [150, 150, 75, 25, 1, 1]
SAMPLED_PAIRS = [300, 300, 150, 30, 1, 1]
K = 3


def tracks(shape: tuple[int, int, int], kind: str) -> torch.Tensor:
    """Independent normal samples, the hardest for a search that prunes, or random walks."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return x.cumsum(1) / shape[1] ** 0.5 if kind == "walk" else x


def seconds(work: Callable[[], object]) -> np.ndarray:
    """Elapsed time and processor time."""
    start = np.array([time.perf_counter(), time.process_time()])
    work()
    return np.array([time.perf_counter(), time.process_time()]) - start


def kd_tree_loop(x: np.ndarray, pairs: np.ndarray, workers: int) -> np.ndarray:
    """Seconds that all pairs of x would take: those of the sample, scaled, and every track once."""

    def nearest(z: np.ndarray) -> float:
        distance = cKDTree(z).query(z, K + 1, p=np.inf, workers=workers)[0][:, -1]
        return np.log(distance).sum()

    joint = seconds(lambda: [nearest(np.concatenate([x[i], x[j]], 1)) for i, j in pairs])
    some = x[: max(2, len(pairs) // 4)]
    alone = seconds(lambda: [nearest(track) for track in some])
    total = len(x) * (len(x) - 1) // 2
    return joint / len(pairs) * total + alone / len(some) * len(x)


def peers() -> dict[str, Callable[[np.ndarray, np.ndarray], object]]:
    """MI of one pair `[T, d]`, `[T, d]`, by each peer that can be imported."""
    found: dict[str, Callable[[np.ndarray, np.ndarray], object]] = {}
    try:
        from libKSG import KSG

        found["libksg (d = 1)"] = lambda a, b: KSG().mi(a[:, 0], b[:, 0], k=K)
    except ImportError:
        pass
    try:
        from normi import NormalizedMI

        def normi(a: np.ndarray, b: np.ndarray) -> object:
            model = NormalizedMI(n_dims=a.shape[1], k=K, n_jobs=1, verbose=False)
            return model.fit(np.concatenate([a, b], 1))

        found["normi"] = normi
    except ImportError:
        pass
    try:
        from bmi.estimators import KSGEnsembleFirstEstimator

        found["benchmark-mi"] = lambda a, b: KSGEnsembleFirstEstimator(
            neighborhoods=(K,), metric_x="chebyshev"
        ).estimate(a, b)
    except ImportError:
        pass
    return found


def vector_rate() -> float:
    """Minima and maxima of 8 numbers that one core does in a second, operands in the cache."""
    try:
        from numba import njit

        from solo_infoaug.information import _kernels
    except ImportError:
        return float("nan")
    select, lanes = _kernels._select, _kernels.LANES

    @njit(nogil=True)
    def repeat(strip, best, ks, times):
        for _ in range(times):
            select(strip, 0, strip, 0, 64, best, 0, ks)

    strip = np.arange(64 * lanes, dtype=np.int32)
    rates, times = [], 20_000
    for k in (3, 6):
        best, ks = np.zeros(k * lanes, np.int32), (0,) * k
        repeat(strip, best, ks, 1)
        spent = [seconds(lambda b=best, z=ks: repeat(strip, b, z, times))[1] for _ in range(9)]
        rates.append(times * 64 * (2 * k - 1) / min(spent))  # max(a, a) is compiled away
    return max(rates)


def peak_memory(row: int, kind: str) -> tuple[float, float]:
    """MiB that a row adds to a process that has compiled already, and that process's peak."""
    command = [sys.executable, __file__, "--peak-of", str(row), "--data", kind]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(told[0]), float(told[1])


def tell_peak(row: int, kind: str) -> None:
    x = tracks(ROWS[row], kind)
    long = ROWS[row][1] > 8000
    pairwise_mutual_information(tracks((2, 9000, 3) if long else (3, 40, 2), kind))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pairwise_mutual_information(x)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print((after - before) / 1024, after / 1024)


def machine() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":")[1].strip()
    return (
        f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; Python "
        f"{platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="*", default=range(len(ROWS)))
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--data", choices=["noise", "walk"], default="noise")
    parser.add_argument("--workers", type=int, default=1, help="of the KD-tree's queries")
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of is not None:
        tell_peak(options.peak_of, options.data)
        return

    others = peers()
    rate = vector_rate()
    print(
        f"{machine()}; load {os.getloadavg()[0]:.1f}; data: {options.data}; KD-tree workers: "
        f"{options.workers}; {rate / 1e9:.2f}e9 vector operations a second and core\n"
    )
    head = ["P, T, d", "pairs/s", "added MiB", "peak MiB", "of floor", "x KD-tree", "CPU", "goal"]
    head += [f"x {name}" for name in others]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)
    for row in options.rows:
        count, samples, _ = shape = ROWS[row]
        x = tracks(shape, options.data)
        array = x.double().numpy()
        total = count * (count - 1) // 2
        chosen = np.random.default_rng(0).integers(total, size=SAMPLED_PAIRS[row])
        pairs = np.stack(np.triu_indices(count, 1), 1)[chosen]
        pairwise_mutual_information(x[:2])  # compile
        ours, tree = [], []
        theirs: dict[str, list[float]] = {name: [] for name in others}
        for turn in range(options.turns if samples < 50_000 else 3):
            ours.append(seconds(lambda x=x: pairwise_mutual_information(x)))
            tree.append(kd_tree_loop(array, pairs, options.workers))
            for name, peer in others.items():
                if turn < 2 and samples <= 1000:
                    few = pairs[:5]
                    spent = seconds(lambda p=peer, f=few, a=array: [p(a[i], a[j]) for i, j in f])
                    theirs[name].append(spent[0] / len(few) * total)
        (best, processor), (tree_best, tree_processor) = np.min(ours, 0), np.min(tree, 0)
        floor = total * samples**2 / 8 * 2 * K / (rate * torch.get_num_threads())
        added, peak = peak_memory(row, options.data)
        cells = [
            ", ".join(map(str, shape)),
            f"{total / best:,.3g}" if total / best < 1000 else f"{total / best:,.0f}",
            f"{added:.0f}",
            f"{peak:.0f}",
            f"{floor / best:.0%}",
            f"{tree_best / best:.1f}",
            f"{tree_processor / processor:.1f}",
            f"{GOALS[row]}",
        ]
        cells += [f"{min(v) / best:.1f}" if v else "" for v in theirs.values()]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
