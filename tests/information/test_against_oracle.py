"""Every estimator against the loops of conftest.py: random, tied, masked, in both precisions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from solo_infoaug.information import (
    _backend,
    entropy,
    mutual_information,
    pairwise_mutual_information,
    top_k_partners,
)

# Tied samples are what some of these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore::solo_infoaug.information.EstimateWarning")

ESTIMATORS = ("3kl", "ksg1", "ksg2")
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
few = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Tracks `[P, T, d]`, and a mask or none: white or smooth, some of them tied or constant."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tracks, samples = draw(st.integers(2, 5)), draw(st.integers(7, 130))
    d = draw(st.integers(1, 3))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    x = torch.randn(tracks, samples, d, generator=generator, dtype=dtype)
    if draw(st.booleans()):
        x = x.cumsum(1)
    levels = draw(st.sampled_from([None, None, 2.0, 0.5]))
    if levels is not None:  # whole numbers, but with values between them
        x = torch.where(torch.rand(x.shape, generator=generator) < 0.3, x, (x * levels).round())
    if draw(st.booleans()):
        x[0] = 3.5
    mask = None
    if draw(st.booleans()):
        mask = torch.rand(tracks, samples, generator=generator) < draw(st.floats(0.3, 1.0))
    return x, mask


@few
@given(scene=scenes(), k=st.sampled_from([1, 3]))
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_pairwise(backend, oracle, estimator, scene, k) -> None:
    x, mask = scene
    garbage = x if mask is None else torch.where(mask[..., None], x, torch.nan)
    got = pairwise_mutual_information(garbage, estimator, k, mask=mask)
    assert got.dtype == x.dtype
    assert torch.equal(got, got.T)
    least = k + 1 if mask is None else 16
    for i in range(len(x)):
        for j in range(i, len(x)):
            if mask is None:
                expected = oracle.mutual_information(x[i], x[j], estimator, k)
            else:
                common = mask[i] & mask[j]
                # Outside its mask a track has no samples: repeat one, which adds no cell width.
                a, b = (
                    torch.where(mask[n][:, None], x[n], x[n][mask[n]][0]) if mask[n].any() else x[n]
                    for n in (i, j)
                )
                expected = 0.0
                if common.sum() >= least:
                    expected = oracle.mutual_information(a, b, estimator, k, common)
            assert got[i, j].item() == pytest.approx(expected, abs=TOLERANCE[x.dtype]), (i, j)


@few
@given(scene=scenes(), k=st.sampled_from([1, 3]))
def test_entropy(backend, oracle, scene, k) -> None:
    x, mask = scene
    got = entropy(x, k, mask=mask)
    for n, track in enumerate(x):
        present = track if mask is None else track[mask[n]]
        if len(present) <= k or (present == present[0]).all():
            assert got[n].item() == pytest.approx(-126 * 0.6931471805599453 * x.shape[2])
        else:
            assert got[n].item() == pytest.approx(
                oracle.entropy(present, k), abs=TOLERANCE[x.dtype]
            )


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_of_unlike_width(backend, oracle, estimator, dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 50, 3, generator=generator, dtype=dtype)
    y = x[..., :1] + torch.randn(2, 3, 50, 1, generator=generator, dtype=dtype)
    got = mutual_information(x, y, estimator)
    assert got.shape == (2, 3)
    for index in ((0, 0), (1, 2)):
        expected = oracle.mutual_information(x[index], y[index], estimator, 3)
        assert got[index].item() == pytest.approx(expected, abs=TOLERANCE[dtype])


def test_many_neighbours(backend, oracle) -> None:
    x = torch.randn(2, 80, 2, generator=torch.Generator().manual_seed(0))
    expected = oracle.mutual_information(x[0], x[1], "3kl", 40)
    assert pairwise_mutual_information(x, k=40)[0, 1].item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_long_series_by_a_tree(oracle, monkeypatch, tied) -> None:
    pytest.importorskip("numba")
    monkeypatch.setattr(_backend, "LONG", 500)
    x = torch.randn(3, 700, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[1] += x[0]
    if tied:  # but not all: whole numbers alone get noise
        x = torch.where(x.abs() < 1.5, (2 * x).round(), x)
    mask = torch.ones(3, 700, dtype=torch.bool)
    mask[2, 600:] = False
    plain = pairwise_mutual_information(x)
    masked = pairwise_mutual_information(x, mask=mask)
    assert plain[0, 1].item() == pytest.approx(oracle.mutual_information(x[0], x[1], "3kl", 3))
    cut = torch.where(mask[2][:, None], x[2], x[2, 0])
    expected = oracle.mutual_information(x[0], cut, "3kl", 3, mask[2])
    assert masked[0, 2].item() == pytest.approx(expected)
    assert masked[0, 1].item() == pytest.approx(plain[0, 1].item(), abs=1e-10)


@pytest.mark.parametrize("masked", [False, True])
def test_memory_bound_changes_nothing(masked) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(120, 30, 2, generator=generator)
    mask = torch.rand(120, 30, generator=generator) < 0.9 if masked else None
    whole = pairwise_mutual_information(x, mask=mask)
    banded = pairwise_mutual_information(x, mask=mask, max_memory=2**20)
    torch.testing.assert_close(banded, whole, rtol=0, atol=1e-5)
    for memory in (2**20, 2**29):
        value, partner = top_k_partners(x, 4, mask=mask, max_memory=memory)
        expected = whole.clone().fill_diagonal_(-torch.inf).topk(4)
        torch.testing.assert_close(value, expected.values, rtol=0, atol=1e-5)
        assert (partner == expected.indices).float().mean() > 0.99


def test_scenes_are_independent() -> None:
    x = torch.randn(3, 5, 40, 2, generator=torch.Generator().manual_seed(0))
    both = pairwise_mutual_information(x)
    assert both.shape == (3, 5, 5)
    torch.testing.assert_close(both[1], pairwise_mutual_information(x[1]), rtol=0, atol=1e-5)
