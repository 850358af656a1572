"""k-NN and the linear probe: time and accuracy beside scikit-learn's in the same run.

    python benchmarks/probes.py [--images N] [--tests M] [--features D] [--classes K] [--device cpu]

Features are made up: overlapping classes, with variances that fall as those of a backbone's
features do. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from solo_infoaug.evaluation import knn_accuracy, linear_accuracy


def features(count: int, classes: int, dims: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    spread = torch.arange(1, dims + 1).float().pow(-0.7)
    turn = torch.linalg.qr(torch.randn(dims, dims, generator=random))[0]
    centres = 0.25 * torch.randn(classes, dims, generator=random)
    y = torch.randint(classes, (count,), generator=random)
    return ((torch.randn(count, dims, generator=random) + centres[y]) * spread) @ turn + 1, y


def timed(work: Callable[[], float]) -> str:
    start = time.perf_counter()
    accuracy = work()
    return f"{time.perf_counter() - start:.1f} s | {accuracy:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (
        ("images", 50_000),
        ("tests", 10_000),
        ("features", 512),
        ("classes", 10),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    random = torch.Generator().manual_seed(0)
    x, y = features(given.images + given.tests, given.classes, given.features, random)
    train, test = (x[: given.images], y[: given.images]), (x[given.images :], y[given.images :])
    name = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
    print(
        f"{given.images} × {given.features} features to learn from, {given.tests} to test, "
        f"{given.classes} classes; {name}, {torch.get_num_threads()} threads\n\n"
        "| | torch | per cent | scikit-learn | per cent |\n|---|---:|---:|---:|---:|"
    )
    arrays = [tensor.numpy() for tensor in (*train, *test)]

    def theirs(model: object) -> Callable[[], float]:
        return lambda: 100 * model.fit(*arrays[:2]).score(*arrays[2:])  # type: ignore[attr-defined]

    def nearest(k: int, temperature: float) -> None:
        model = KNeighborsClassifier(
            k, metric="cosine", weights=lambda d: np.exp((1 - d) / temperature)
        )
        ours = timed(lambda: knn_accuracy(train, test, k, temperature, given.device))
        row = f"{ours} | {timed(theirs(model))}"
        print(f"| k-NN, {k} neighbours, temperature {temperature} | {row} |", flush=True)

    nearest(20, 0.07)
    nearest(200, 0.1)
    ours = timed(lambda: linear_accuracy(train, test, given.device))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    print(f"| linear probe | {ours} | {timed(theirs(model))} |", flush=True)


if __name__ == "__main__":
    main()
