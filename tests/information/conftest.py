"""The oracle: the estimators once more, as loops over the definitions in float64 NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import digamma

from solo_infoaug.information import _backend


def _chebyshev(x: np.ndarray) -> np.ndarray:
    """Distances `[T, T]`, to oneself infinite."""
    distances = np.abs(x[:, None] - x[None]).max(-1)
    np.fill_diagonal(distances, np.inf)
    return distances


def _entropy(distances: np.ndarray, k: int, d: int, log_cell: float) -> float:
    total = 0.0
    for row in distances:
        rho = np.sort(row)[k - 1]
        if rho > 0:
            total += d * np.log(2 * rho) - digamma(k)
        else:
            total += log_cell - digamma((row == 0).sum() + 1)
    return float(digamma(len(distances)) + total / len(distances))


def _log_cell(x: np.ndarray) -> float:
    distances = _chebyshev(x)
    distances = distances[np.isfinite(distances) & (distances > 0)]
    return x.shape[1] * np.log(distances.min()) if len(distances) else 0.0


def entropy(x: torch.Tensor, k: int) -> float:
    array = x.double().numpy()
    return _entropy(_chebyshev(array), k, array.shape[1], _log_cell(array))


def mutual_information(
    x: torch.Tensor, y: torch.Tensor, estimator: str, k: int, common: torch.Tensor | None = None
) -> float:
    """`common`: which samples both have; x and y may have more, for the cells of their ties."""
    a, b = x.double().numpy(), y.double().numpy()
    cell_a, cell_b = _log_cell(a), _log_cell(b)
    if common is not None:
        a, b = a[common.numpy()], b[common.numpy()]
    if (a == a[0]).all() or (b == b[0]).all():
        return 0.0
    to_a, to_b = _chebyshev(a), _chebyshev(b)
    joint = np.maximum(to_a, to_b)
    if estimator == "3kl":
        d_a, d_b = a.shape[1], b.shape[1]
        return (
            _entropy(to_a, k, d_a, cell_a)
            + _entropy(to_b, k, d_b, cell_b)
            - _entropy(joint, k, d_a + d_b, cell_a + cell_b)
        )
    total = 0.0
    for row, row_a, row_b in zip(joint, to_a, to_b, strict=True):
        rho = np.sort(row)[k - 1]
        if rho == 0:
            counts = [(r == 0).sum() + 1 for r in (row, row_a, row_b)]
            extra = 0.0
        elif estimator == "ksg1":
            counts = [(r < rho).sum() + 1 for r in (row, row_a, row_b)]
            extra = 0.0
        else:
            near = row <= rho
            counts = [
                near.sum(),
                (row_a <= row_a[near].max()).sum(),
                (row_b <= row_b[near].max()).sum(),
            ]
            extra = -1 / near.sum()
        total += digamma(counts[0]) - digamma(counts[1]) - digamma(counts[2]) + extra
    return float(digamma(len(a)) + total / len(a))


@pytest.fixture(scope="session")
def oracle() -> SimpleNamespace:
    return SimpleNamespace(entropy=entropy, mutual_information=mutual_information)


@pytest.fixture(params=["compiled", "plain"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each test that asks for it runs on numba and on plain torch."""
    if request.param == "compiled":
        pytest.importorskip("numba")
    else:
        monkeypatch.setattr(_backend, "_compiled", lambda: None)
    return request.param
