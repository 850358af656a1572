"""What is known of the true values: closed forms, identities, ties, and what must be refused."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from solo_infoaug.information import (
    entropy,
    mutual_information,
    pairwise_mutual_information,
    top_k_partners,
)

# Tied samples are what some of these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore::solo_infoaug.information.EstimateWarning")

ESTIMATORS = ("3kl", "ksg1", "ksg2")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def coupled(rho: float, *shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Normal x and y whose components correlate with ρ, pair by pair: MI = -d/2·log(1 - ρ²)."""
    x = normal(*shape, seed=seed)
    return x, rho * x + math.sqrt(1 - rho**2) * normal(*shape, seed=seed + 1)


# The bounds on the mean of 40 runs are those of docs/mutual-information.md, with room for the seed.
@pytest.mark.parametrize(
    ("estimator", "d", "rho", "low", "high"),
    [
        ("3kl", 1, 0.0, -0.03, 0.03),
        ("3kl", 1, 0.6, -0.04, 0.03),
        ("3kl", 1, 0.9, -0.08, 0.03),
        ("3kl", 2, 0.6, -0.15, 0.05),
        ("ksg1", 1, 0.0, -0.02, 0.02),
        ("ksg1", 1, 0.9, -0.03, 0.03),
        ("ksg1", 2, 0.6, -0.05, 0.03),
        ("ksg1", 3, 0.0, -0.03, 0.03),
        ("ksg2", 1, 0.0, -0.03, 0.03),
        ("ksg2", 1, 0.9, -0.03, 0.03),
        ("ksg2", 2, 0.6, -0.06, 0.05),
    ],
)
def test_gaussian(estimator, d, rho, low, high) -> None:
    x, y = coupled(rho, 40, 1000, d)
    error = mutual_information(x, y, estimator).mean() + d / 2 * math.log(1 - rho**2)
    assert low < error < high


@pytest.mark.parametrize("d", [1, 2, 3])
def test_entropy_closed_forms(d) -> None:
    assert entropy(normal(20, 2000, d)).mean().item() == pytest.approx(
        d / 2 * math.log(2 * math.pi * math.e), abs=0.05 * d
    )
    uniform = 3 * torch.rand(20, 2000, d, generator=torch.Generator().manual_seed(0))
    assert entropy(uniform).mean().item() == pytest.approx(d * math.log(3), abs=0.1 * d)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_identities(estimator) -> None:
    x, y = coupled(0.8, 4, 200, 2)
    value = mutual_information(x, y, estimator)
    torch.testing.assert_close(mutual_information(y, x, estimator), value)
    shifted = mutual_information(x + 7, y - 3, estimator)
    torch.testing.assert_close(shifted, value, rtol=0, atol=1e-9)
    torch.testing.assert_close(mutual_information(5 * x, 5 * y, estimator), value)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mutual_information(x[:, order], y[:, order], estimator), value)
    bits = mutual_information(x, y, estimator, units="bits")
    torch.testing.assert_close(bits * math.log(2), value)
    stacked = torch.stack([x[0], y[0]])
    assert pairwise_mutual_information(stacked, estimator)[0, 1] == pytest.approx(value[0].item())


def test_entropy_follows_scale() -> None:
    x = normal(3, 100, 2)
    torch.testing.assert_close(entropy(5 * x), entropy(x) + 2 * math.log(5))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_noise_shares_nothing(estimator) -> None:
    value = mutual_information(normal(100, 300, 2), normal(100, 300, 2, seed=9), estimator)
    band = 4 * value.std() / 10
    bias = 0.08 if estimator == "3kl" else 0.02
    assert abs(value.mean()) < band + bias


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_processing_loses_information(estimator) -> None:
    x = normal(30, 500, 1)
    y = x + 0.5 * normal(30, 500, 1, seed=1)
    z = y + 1.0 * normal(30, 500, 1, seed=2)
    near, far = (mutual_information(x, other, estimator).mean() for other in (y, z))
    truth = [0.5 * math.log(1 + 1 / v) for v in (0.25, 1.25)]
    assert near > far + 0.3
    assert near.item() == pytest.approx(truth[0], abs=0.05)
    assert far.item() == pytest.approx(truth[1], abs=0.05)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_ties_and_constants_stay_finite(backend, estimator) -> None:
    x = (2 * normal(6, 60, 2, dtype=torch.float32)).round()
    x[0] = 4.0
    x[1, 3:] = 0.0
    x[2] = x[3]
    value = pairwise_mutual_information(x, estimator)
    assert torch.isfinite(value).all()
    assert torch.equal(value[0], torch.zeros(6))
    assert torch.isfinite(entropy(x)).all()
    assert entropy(x)[0] == entropy(x).min()


def test_independent_tracks_that_often_rest() -> None:
    """Half of the time at the same place, independently: nothing is shared, whatever the ties."""
    x = normal(40, 400, 1)
    still = torch.rand(40, 400, generator=torch.Generator().manual_seed(3)) < 0.5
    x = (torch.where(still[..., None], 0.0, x) * 2).round()
    value = pairwise_mutual_information(x)
    upper = value[torch.triu(torch.ones(40, 40, dtype=torch.bool), 1)]
    assert abs(upper.mean()) < 0.1


def test_mask_is_the_same_as_cutting() -> None:
    x = normal(3, 90, 2)
    mask = torch.ones(3, 90, dtype=torch.bool)
    mask[:, 60:] = False
    cut = pairwise_mutual_information(x[:, :60])
    x[:, 60:] = torch.nan
    torch.testing.assert_close(pairwise_mutual_information(x, mask=mask), cut)
    own = mutual_information(x[0], x[1], mask=mask[0])
    torch.testing.assert_close(own, cut[0, 1])
    torch.testing.assert_close(entropy(x, mask=mask), entropy(x[:, :60]))


def test_too_few_common_samples_are_no_evidence() -> None:
    x = normal(2, 40, 1)
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[0, 20:] = False
    mask[1, :10] = False
    assert pairwise_mutual_information(x, mask=mask)[0, 1] == 0
    assert pairwise_mutual_information(x, mask=mask, min_samples=10)[0, 1] != 0


def test_takes_no_gradient_and_leaves_its_input_alone() -> None:
    x = normal(3, 30, 2).requires_grad_()
    before = x.detach().clone()
    assert not pairwise_mutual_information(x).requires_grad
    assert torch.equal(x, before)


def test_two_samples_more_than_none() -> None:
    assert torch.isfinite(pairwise_mutual_information(normal(3, 2, 1), k=1)).all()


X = normal(4, 20, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: entropy(X, k=0), "k must be an integer of at least 1, got 0"),
        (lambda: entropy(X, k=20), "x must have more than k=20 samples, got T=20"),
        (lambda: entropy(X, units="bit"), "units must be one of nats, bits, got 'bit'"),
        (lambda: entropy(X.numpy()), "x must be a torch tensor, got ndarray"),
        (lambda: entropy(X.long()), "x must be float32 or float64, got torch.int64"),
        (lambda: entropy(X.half()), "x must be float32 or float64, got torch.float16"),
        (lambda: entropy(X[0, :, 0]), r"x must be \[..., T, d\] with d >= 1, got shape \(20,\)"),
        (lambda: entropy(X / 0), "x must be finite, got 160 values"),
        (lambda: entropy(X, max_memory=10), "max_memory must be at least 1048576 bytes, got 10"),
        (lambda: mutual_information(X, X[:2]), r"y must be like x .* got \[2, 20, 2\]"),
        (lambda: mutual_information(X, X.float()), "y must be like x .* torch.float32"),
        (lambda: mutual_information(X, X, "ksg"), "estimator must be one of .* got 'ksg'"),
        (lambda: mutual_information(X, X * torch.nan), "y must be finite, got 160"),
        (lambda: pairwise_mutual_information(X[0]), r"trajectories must be .* \(20, 2\)"),
        (
            lambda: pairwise_mutual_information(X, mask=torch.ones(4, 20)),
            "mask must be a bool tensor, got torch.float32",
        ),
        (
            lambda: pairwise_mutual_information(X, mask=torch.ones(4, 19, dtype=torch.bool)),
            r"mask must have the shape \(4, 20\) of trajectories, got \(4, 19\)",
        ),
        (lambda: pairwise_mutual_information(X, min_samples=3), "min_samples .* above k=3, got 3"),
        (lambda: top_k_partners(X, 4), "count must be 1 to P - 1 = 3, got 4"),
        (lambda: top_k_partners(X[None], 1), r"trajectories must be \[P, T, d\]"),
    ],
)
def test_errors_name_argument_expectation_and_value(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_import_is_lazy() -> None:
    code = "import sys, solo_infoaug.information; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
