"""How right the estimators and the significance test are; the tables of docs/mutual-information.md.

    uv run python benchmarks/mutual_information_accuracy.py gaussian
    uv run python benchmarks/mutual_information_accuracy.py null
    uv run python benchmarks/mutual_information_accuracy.py whole
    uv run --with benchmark-mi --with jax==0.4.30 --with jaxlib==0.4.30 --with "scipy<1.13" \
        python benchmarks/mutual_information_accuracy.py tasks
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch

from solo_infoaug.information import mutual_information, pairwise_significance

ESTIMATORS = ("3kl", "ksg1", "ksg2")


def begin(head: list[str]) -> None:
    tell(head)
    print("|" + "---|" * len(head), flush=True)


def tell(row: list[str]) -> None:
    print("| " + " | ".join(row) + " |", flush=True)


def gaussian(runs: int) -> None:
    """Bias ± standard deviation, in nats, of `runs` estimates of -d/2·log(1 - ρ²)."""
    generator = torch.Generator().manual_seed(0)
    begin(["d", "ρ", "T", "true MI", *ESTIMATORS])
    for d in (1, 2, 3):
        for rho in (0.0, 0.3, 0.6, 0.9, 0.99):
            truth = abs(d / 2 * math.log(1 - rho**2))
            for samples in (50, 200, 1000):
                x, noise = torch.randn(2, runs, samples, d, generator=generator).unbind(0)
                y = rho * x + math.sqrt(1 - rho**2) * noise
                row = [str(d), f"{rho:g}", str(samples), f"{truth:.3f}"]
                for estimator in ESTIMATORS:
                    error = mutual_information(x, y, estimator) - truth
                    row.append(f"{error.mean():+.3f} ± {error.std():.3f}")
                tell(row)


def rounded_truth(spread: float, rho: float) -> float:
    """MI of two normal variables times the spread, rounded, by the table of their probabilities."""
    from scipy.stats import multivariate_normal

    edge = math.ceil(5 * spread)
    edges = (np.arange(-edge, edge + 2) - 0.5) / spread
    grid = np.stack(np.meshgrid(edges, edges, indexing="ij"), -1)
    below = multivariate_normal([0, 0], [[1, rho], [rho, 1]]).cdf(grid)
    p = np.clip(np.diff(np.diff(below, axis=0), axis=1), 0, None)
    independent = p.sum(1, keepdims=True) * p.sum(0)
    some = p > 0
    return float((p[some] * np.log(p[some] / independent[some])).sum())


def whole(runs: int) -> None:
    """Estimates for normal series that are rounded to whole numbers, and beside them unrounded."""
    generator = torch.Generator().manual_seed(0)
    begin(["d", "ρ", "spread", "T", "true MI", *ESTIMATORS, "not rounded"])
    for d in (1, 2, 3):
        for rho in (0.0, 0.8):
            for spread in (0.5, 1.0, 2.0, 5.0):
                truth = d * rounded_truth(spread, rho) if rho else 0.0
                for samples in (96, 240, 1000):
                    x, noise = torch.randn(2, runs, samples, d, generator=generator).unbind(0)
                    y = rho * x + math.sqrt(1 - rho**2) * noise
                    row = [str(d), f"{rho:g}", f"{spread:g}", str(samples), f"{truth:.2f}"]
                    a, b = (x * spread).round(), (y * spread).round()
                    found = [mutual_information(a, b, estimator) for estimator in ESTIMATORS]
                    found.append(mutual_information(x, y, "ksg1"))
                    tell([*row, *(f"{v.mean():.2f} ± {v.std():.2f}" for v in found)])


def tasks(samples: int, seeds: int) -> None:
    """Tasks of benchmark-mi with at most 3 + 3 dimensions, standardised, k = 3 as its KSG."""
    import bmi
    from bmi.estimators import KSGEnsembleFirstEstimator

    begin(["task", "true MI", *ESTIMATORS, "its KSG"])
    for name, task in bmi.benchmark.BENCHMARK_TASKS.items():
        if task.dim_x > 3 or task.dim_y > 3:
            continue
        drawn = [task.sample(samples, seed) for seed in range(seeds)]
        x, y = (torch.from_numpy(np.stack([np.asarray(d[i]) for d in drawn])) for i in (0, 1))
        x, y = ((v - v.mean(1, keepdim=True)) / v.std(1, keepdim=True) for v in (x, y))
        theirs = [
            KSGEnsembleFirstEstimator(neighborhoods=(3,), metric_x="chebyshev").estimate(a, b)
            for a, b in drawn
        ]
        row = [name, f"{task.mutual_information:.3f}"]
        for estimate in [mutual_information(x, y, e).numpy() for e in ESTIMATORS]:
            row.append(f"{estimate.mean():.3f} ± {estimate.std():.3f}")
        tell([*row, f"{np.mean(theirs):.3f} ± {np.std(theirs):.3f}"])


def autoregressive(shape: tuple[int, ...], coefficient: float, seed: int) -> torch.Tensor:
    """Independent stationary AR(1) series of unit variance, `[*shape, 1]`."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(shape, generator=generator) * math.sqrt(1 - coefficient**2)
    out = torch.empty(shape)
    out[..., 0] = torch.randn(shape[:-1], generator=generator)
    for t in range(1, shape[-1]):
        out[..., t] = coefficient * out[..., t - 1] + noise[..., t]
    return out[..., None]


def permutation_p_values(series: torch.Tensor, surrogates: int) -> torch.Tensor:
    """What an i.i.d. permutation of the samples would say of series[:, 0] and series[:, 1]."""
    x, y = series.unbind(1)
    value = mutual_information(x, y, "ksg1")
    reached = torch.ones(len(x))
    for _ in range(surrogates):
        reached += mutual_information(x, y[:, torch.randperm(y.shape[1])], "ksg1") >= value
    return reached / (surrogates + 1)


def null(pairs: int, samples: int, surrogates: int) -> None:
    """p-values of independent pairs: Kolmogorov-Smirnov, false alarms; power for coupled ones."""
    from scipy.stats import kstest

    torch.manual_seed(0)
    head = ["AR(1)", "shift: KS p", "p ≤ .05", "p ≤ .2"]
    begin([*head, "permutation: KS p", "p ≤ .05", "p ≤ .2", "shift: power at .05, r = .7"])
    for coefficient in (0.0, 0.5, 0.9, 0.99):
        series = autoregressive((pairs, 2, samples), coefficient, seed=1)
        row = [f"{coefficient:g}"]
        for p in (
            pairwise_significance(series, "ksg1", surrogates=surrogates).p_values[:, 0, 1],
            permutation_p_values(series, surrogates),
        ):
            spread = p - torch.rand(pairs) / (surrogates + 1)
            row += [f"{kstest(spread.numpy(), 'uniform').pvalue:.2g}"]
            row += [f"{(p <= level).float().mean():.3f}" for level in (0.05, 0.2)]
        coupled = series.clone()
        coupled[:, 1] = 0.7 * series[:, 0] + math.sqrt(1 - 0.7**2) * series[:, 1]
        power = pairwise_significance(coupled, "ksg1", surrogates=surrogates).p_values[:, 0, 1]
        tell([*row, f"{(power <= 0.05).float().mean():.3f}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("which", choices=["gaussian", "null", "tasks", "whole"])
    which = parser.parse_args().which
    if which == "gaussian":
        gaussian(runs=60)
    elif which == "null":
        null(pairs=60, samples=200, surrogates=39)
    elif which == "whole":
        whole(runs=40)
    else:
        tasks(samples=1000, seeds=5)


if __name__ == "__main__":
    main()
