"""Whole numbers, constant, repeated and nearly dependent columns: the right value, or a warning.

The truths are closed forms for normal variables, the value at the reduced dimension, or exact sums
over the joint distribution of discrete variables.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

import solo_infoaug
from solo_infoaug import EstimateWarning
from solo_infoaug.information import (
    _position,
    entropy,
    mutual_information,
    pairwise_mutual_information,
    pairwise_significance,
    top_k_partners,
)
from solo_infoaug.information._position import Series

ESTIMATORS = ("3kl", "ksg1", "ksg2")
PRECISIONS = (torch.float32, torch.float64)
RHO = 0.8
TRUTH = -0.5 * math.log(1 - RHO**2)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = normal(6, 500, 1, seed=1)
Y = RHO * X + math.sqrt(1 - RHO**2) * normal(6, 500, 1, seed=2)
P, Q = normal(6, 500, 1, seed=3), normal(6, 500, 1, seed=4)  # that say nothing


def beside(*columns: torch.Tensor) -> torch.Tensor:
    return torch.cat(columns, -1)


# Each has the MI of X with Y, by theory; the second entry is the same data in fewer columns.
DEGENERATE: dict[str, tuple[torch.Tensor, torch.Tensor, bool]] = {
    "constant": (beside(X, 0 * X), beside(Y, 0 * Y + 5), True),
    "constant and far": (beside(0 * X + 1e6, X), beside(Y, 0 * Y - 0.1), True),
    "repeated": (beside(X, X), Y, True),
    "repeated, other scale": (beside(X, -3 * X + 2), beside(Y, 0.1 * Y), True),
    "sum of others": (beside(X, P, X + P), beside(Y, Q, 0.3 * Y - 1.7 * Q + 0.1), False),
    "more columns than dimensions": (beside(X, P, X - P, 2 * X + P), Y, False),
    **{
        f"{name} {size:g}": pair
        for size in (0.1, 0.01, 1e-3, 1e-6)
        for name, pair in {
            "noise beside": (beside(X, size * P), beside(Y, size * Q), False),
            "nearly repeated": (beside(X, X + size * P), Y, False),
            "said in the small": (beside(size * X, P), beside(size * Y, Q), False),
            "unlike tracks": (X, size * Y, False),
        }.items()
    },
}


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_columns_have_the_value_at_the_true_dimension(name, estimator, dtype) -> None:
    x, y, exactly = DEGENERATE[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error", EstimateWarning)
        value = mutual_information(x.to(dtype), y.to(dtype), estimator)
    assert value.mean().item() == pytest.approx(TRUTH, abs=0.12)
    if exactly and dtype == torch.float64:
        torch.testing.assert_close(value, mutual_information(X, Y, estimator), rtol=0, atol=1e-12)


def scene_of(kind: str) -> torch.Tensor:
    """Tracks `[6, 120, 2]` of which some are degenerate in each way."""
    base = normal(6, 120, 2)
    base[1] += base[0]
    base[3, :, 0] += base[0, :, 0]
    if kind == "constant":
        base[3, :, 1] = 4.0
        base[4, :, 0] = 0.1
    elif kind == "repeated":
        base[3, :, 1] = 2 * base[3, :, 0]
    elif kind == "unlike":
        base[3:] *= torch.tensor([1.0, 0.01])
        base[5] *= 1000
    return base


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kind", ["constant", "repeated", "unlike"])
def test_pairs_of_a_scene_are_as_each_alone(backend, kind, estimator, masked) -> None:
    x = scene_of(kind)
    mask = None
    common = torch.ones(6, 120, dtype=torch.bool)
    if masked:
        common[:, 100:] = False
        mask = common
    value = pairwise_mutual_information(x, estimator, mask=mask)
    best, partner = top_k_partners(x, 2, estimator, mask=mask)
    for i in range(6):
        for j in range(i + 1, 6):
            a, b = x[i, common[i]], x[j, common[i]]
            alone = mutual_information(a, b, estimator).item()
            assert value[i, j].item() == pytest.approx(alone, abs=1e-6), (i, j)
    expected = value.clone().fill_diagonal_(-torch.inf).topk(2)
    torch.testing.assert_close(best, expected.values)
    assert torch.equal(partner, expected.indices)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_columns_that_rest_only_where_both_are_seen(backend, estimator) -> None:
    """Each track moves along both axes, but along one alone where the other is seen too."""
    x = torch.stack([beside(X, P)[0], beside(Y, Q)[0]])[:, :160]
    x[:, 30:130, 1] = 0.7
    mask = torch.ones(2, 160, dtype=torch.bool)
    mask[0, 130:] = False
    mask[1, :30] = False
    expected = mutual_information(x[0, 30:130, :1], x[1, 30:130, :1], estimator)
    with warnings.catch_warnings():
        warnings.simplefilter("error", EstimateWarning)
        value = pairwise_mutual_information(x, estimator, mask=mask)[0, 1]
    assert value.item() == pytest.approx(expected.item(), abs=1e-6)


def test_a_track_that_is_never_seen_beside_degenerate_ones() -> None:
    x = torch.stack([beside(X, 0 * X)[0], beside(Y, 0 * Y)[0], beside(P, Q)[0]])
    mask = torch.ones(3, 500, dtype=torch.bool)
    mask[2] = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value = pairwise_mutual_information(x, mask=mask)
    expected = mutual_information(X[0], Y[0])
    torch.testing.assert_close(value[0, 1], expected, rtol=0, atol=1e-9)
    assert torch.equal(value[2], torch.zeros(3, dtype=torch.float64))


def test_a_long_series_too() -> None:
    x = normal(1, 9000, 1, seed=5)
    y = RHO * x + math.sqrt(1 - RHO**2) * normal(1, 9000, 1, seed=6)
    value = mutual_information(beside(x, 0 * x), beside(y, 2 * y))
    torch.testing.assert_close(value, mutual_information(x, y), rtol=0, atol=1e-12)
    assert value.item() == pytest.approx(TRUTH, abs=0.05)


def test_significance_of_tracks_along_one_axis() -> None:
    x = torch.stack([beside(X, 0 * X)[0], beside(Y, 0 * Y)[0], beside(P, 0 * P)[0]])[:, :150]
    result, expected = (
        pairwise_significance(tracks, surrogates=39, generator=torch.Generator().manual_seed(0))
        for tracks in (x, x[..., :1].contiguous())
    )
    for one, other in zip(result, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert result.p_values[0, 1] == 1 / 40


@pytest.mark.parametrize("offset", [1e3, -1e6])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_offsets_change_nothing(estimator, offset) -> None:
    pairs = ((beside(X, P), beside(Y, Q)), (beside(X, 1e-3 * P), beside(Y, 1e-3 * Q)))
    for x, y in pairs:
        value = mutual_information(x, y, estimator)
        moved = mutual_information(x + offset, y - offset, estimator)
        torch.testing.assert_close(moved, value, rtol=0, atol=0.02)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_constant_but_for_rounding(estimator) -> None:
    x = torch.full((1, 500, 1), 0.1, dtype=torch.float64) * (1 + 1e-16 * P[:1].sign())
    assert mutual_information(x, Y[:1], estimator).item() == pytest.approx(0, abs=1e-12)


# --- general position --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("kind", ["white", "smooth", "correlated", "heavy tails"])
def test_data_in_general_position_pass_as_they_came(kind, dtype) -> None:
    """The tracks that the estimators get are the very tensor, without frames, ranks or flags."""
    x = normal(20, 200, 3).to(dtype)
    if kind == "smooth":
        x = x.unfold(1, 20, 1).mean(-1)
    elif kind == "correlated":
        x = x + 3 * normal(20, 200, 1, seed=1).to(dtype)
    elif kind == "heavy tails":
        x = x / (0.2 + normal(20, 200, 3, seed=1).abs()).to(dtype)
    (tracks,) = _position.prepare(_position.Series(x, None))
    assert tracks.x is x
    assert all(field is None for field in tracks[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("error", EstimateWarning)
        for estimator in ESTIMATORS:
            pairwise_mutual_information(x, estimator)
        entropy(x)


# --- values that recur -------------------------------------------------------------------------


def discretised(spacing: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers x and y `[6, 2000, 1]`."""
    x = normal(6, 2000, 1, seed=1)
    y = RHO * x + math.sqrt(1 - RHO**2) * normal(6, 2000, 1, seed=2)
    return (x / spacing).round(), (y / spacing).round()


def discrete_truth(spacing: float) -> float:
    """Their exact MI, from the normal probabilities of all cells."""
    edge = math.ceil(5 / spacing)
    edges = (np.arange(-edge, edge + 2) - 0.5) * spacing
    grid = np.stack(np.meshgrid(edges, edges, indexing="ij"), -1)
    below = multivariate_normal([0, 0], [[1, RHO], [RHO, 1]]).cdf(grid)
    p = np.clip(np.diff(np.diff(below, axis=0), axis=1), 0, None)
    independent = p.sum(1, keepdims=True) * p.sum(0)
    some = p > 0
    return float((p[some] * np.log(p[some] / independent[some])).sum())


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("spacing", [1.0, 2.0])
def test_coarse_numbers_have_the_value_of_discrete_variables(spacing, estimator) -> None:
    x, y = discretised(spacing)
    truth = discrete_truth(spacing)
    with warnings.catch_warnings():
        warnings.simplefilter("error", EstimateWarning)
        value = mutual_information(x, y, estimator)
    assert value.mean().item() == pytest.approx(truth, abs=0.03)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("unit", [0.5, 0.1, 1 / 3, 1e-3, 1000.0])
@pytest.mark.parametrize("fine", [0.1, 1.0])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.filterwarnings("ignore::solo_infoaug.EstimateWarning")
def test_the_unit_of_whole_numbers_does_not_matter(estimator, fine, unit, dtype) -> None:
    """0.3 - 0.2 is another number than 0.2 - 0.1, and must be the same distance."""
    x, y = discretised(fine)
    x, y = x[:2, :400], y[:2, :400]
    expected = mutual_information(x, y, estimator)
    value = mutual_information((unit * x).to(dtype), (unit * y).to(dtype), estimator)
    torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.filterwarnings("ignore::solo_infoaug.EstimateWarning")
def test_sums_of_tenths(estimator) -> None:
    """A walk in steps of a tenth comes to the same place by other roundings."""
    steps = normal(2, 400, 1).round()
    whole, tenths = steps.cumsum(1) % 7, (0.1 * steps).cumsum(1)
    tenths = tenths - 0.1 * (steps.cumsum(1) - whole)
    value = mutual_information(tenths[:1], tenths[1:], estimator)
    expected = mutual_information(whole[:1], whole[1:], estimator)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-5)


def resting() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = normal(200, 2, seed=1), normal(200, 2, seed=2)
    return torch.where(normal(200, 1, seed=3) > 0, x, 0.0), y


def ranks() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = (normal(200, 1, seed=seed).argsort(0).double() for seed in (1, 2))
    return x, y


def angles() -> tuple[torch.Tensor, torch.Tensor]:
    angle = 2 * math.pi * torch.rand(200, 1, generator=torch.Generator().manual_seed(0))
    other = angle + 0.3 * normal(200, 1).float()
    return beside(angle.cos(), angle.sin()), beside(other.cos(), other.sin())


@pytest.mark.parametrize("data", [resting, ranks])
@pytest.mark.parametrize(
    "call",
    [
        lambda x, y, e: mutual_information(x, y, e),
        lambda x, y, e: pairwise_mutual_information(torch.stack([x, y]), e),
        lambda x, y, e: top_k_partners(torch.stack([x, y]), 1, e)[0],
        lambda x, y, e: pairwise_significance(torch.stack([x, y]), e, surrogates=2).mi,
    ],
)
def test_rests_and_ranks_are_a_warning_that_recommends_what_is_right(backend, call, data) -> None:
    x, y = data()
    for estimator in ("3kl", "ksg2"):
        with pytest.warns(EstimateWarning, match=f"ranks.: {estimator} can be .* use ksg1") as seen:
            call(x, y, estimator)
        assert len(seen) == 1
        assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", EstimateWarning)
        assert mutual_information(x, y, "ksg1").item() == pytest.approx(0, abs=0.15)


def whole(spread: float, *shape: int, seed: int) -> torch.Tensor:
    return (spread * normal(*shape, seed=seed)).round()


BITS, BOOK = (normal(20, 240, 1, seed=5) > 0).double(), torch.tensor([-2.0, -1.7, 0.1, 0.15, 2.2])
INDEPENDENT: dict[str, tuple[torch.Tensor, torch.Tensor]] = {
    **{
        f"{samples} samples, {d} columns, spread {spread:g}": (
            whole(spread, 20, samples, d, seed=1),
            whole(spread, 20, samples, d, seed=2),
        )
        for samples, d, spread in (
            (96, 1, 1), (96, 1, 5), (96, 2, 0.5), (96, 2, 1), (96, 3, 1), (96, 3, 5),
            (240, 2, 2), (240, 3, 1), (1000, 2, 2), (1000, 3, 2),
        )
    },
    "half": (whole(1, 20, 240, 2, seed=1), normal(20, 240, 2, seed=2)),
    "bits": (BITS, normal(20, 240, 1, seed=6)),
    "mixed columns": (beside(BITS, normal(20, 240, 1, seed=6)), whole(2, 20, 240, 2, seed=7)),
    "a code of numbers": (
        BOOK.double()[whole(2, 20, 240, 2, seed=8).long() % 5],
        BOOK.double()[whole(2, 20, 240, 2, seed=9).long() % 5],
    ),
    "unlike units": (whole(3, 20, 240, 2, seed=1), 10 * whole(3, 20, 240, 2, seed=2)),
}  # fmt: skip


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", INDEPENDENT)
def test_independent_discrete_series_have_none(name, estimator) -> None:
    """`3kl` has the bias that it has for what is not discrete, up to -0.4 nats in 3 + 3 columns."""
    x, y = INDEPENDENT[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error", EstimateWarning)
        value = mutual_information(x, y, estimator).mean().item()
    assert value == pytest.approx(0, abs=0.05) or (estimator == "3kl" and -0.4 < value < 0.15)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("spacing", [0.2, 0.5, 1.0])
def test_dependent_whole_numbers(spacing, estimator) -> None:
    x, y = discretised(spacing)
    truth = discrete_truth(spacing)
    value = mutual_information(x, y, estimator)
    assert value.mean().item() == pytest.approx(truth, abs=0.05)
    both = mutual_information(beside(x, Q_LONG), beside(y, P_LONG), "ksg1").mean().item()
    assert both == pytest.approx(truth, abs=0.12)


P_LONG, Q_LONG = whole(2, 6, 2000, 1, seed=3), whole(2, 6, 2000, 1, seed=4)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_discrete_series_with_itself_has_its_entropy(estimator) -> None:
    x, _ = discretised(0.5)
    p = torch.bincount((x[0, :, 0] - x[0].min()).long()).double() / 2000
    expected = -(p * p.clamp_min(1e-9).log()).sum().item()
    for same in (x[:1], -x[:1], 3 * x[:1] + 1):
        value = mutual_information(x[:1], same, estimator).item()
        assert value == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_noise_leaves_identities_exact(estimator) -> None:
    x, y = whole(2, 3, 200, 3, seed=1), whole(2, 3, 200, 2, seed=2)
    value = mutual_information(x, y, estimator)
    close = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(mutual_information(y, x, estimator), value, **close)
    torch.testing.assert_close(mutual_information(0.1 * x, 0.1 * y, estimator), value, **close)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        mutual_information(x[:, order], y[:, order], estimator), value, **close
    )
    torch.testing.assert_close(mutual_information(x[1], y[1], estimator), value[1], **close)
    scene = torch.cat([x[..., :2], y])
    mask = torch.ones(6, 200, dtype=torch.bool)
    every = pairwise_mutual_information(scene, estimator)
    assert torch.equal(every, every.T)
    alone = mutual_information(scene[:3], scene[3:], estimator)
    torch.testing.assert_close(every[range(3), range(3, 6)], alone, **close)
    mask[4, 150:] = False
    masked = pairwise_mutual_information(scene, estimator, mask=mask)[0, 4]
    cut = mutual_information(scene[0, :150], scene[4, :150], estimator)
    torch.testing.assert_close(masked, cut, **close)


def test_significance_of_whole_numbers() -> None:
    x = whole(2, 12, 96, 2, seed=1)
    x[1] = (x[0] + x[1]).div(2).round()
    found = pairwise_significance(
        x, "ksg1", surrogates=39, generator=torch.Generator().manual_seed(0)
    ).p_values
    assert found[0, 1] == 1 / 40
    p = found[torch.triu(torch.ones(12, 12), 1).bool()][1:]
    assert (p <= 0.2).double().mean().item() == pytest.approx(0.2, abs=0.12)


def test_points_on_a_curve_are_a_warning_of_3kl(backend) -> None:
    x, y = angles()
    with pytest.warns(EstimateWarning, match="lie on a curve .* use ksg1"):
        mutual_information(x, y)
    truth = math.log(2 * math.pi) - 0.5 * math.log(2 * math.pi * math.e * 0.09)
    with warnings.catch_warnings():
        warnings.simplefilter("error", EstimateWarning)
        for estimator in ("ksg1", "ksg2"):
            value = mutual_information(x, y, estimator).item()
            assert value == pytest.approx(truth, abs=0.15)


def test_a_mask_that_leaves_too_little_is_a_warning() -> None:
    mask = torch.zeros(6, 500, dtype=torch.bool)
    mask[:, :10] = True
    with pytest.warns(EstimateWarning, match="no pair has min_samples common samples"):
        value = mutual_information(X, Y, mask=mask)
    assert torch.equal(value, torch.zeros(6, dtype=torch.float64))


# --- entropy -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_entropy_of_unlike_columns(size) -> None:
    expected = math.log(2 * math.pi * math.e) + math.log(size)
    with warnings.catch_warnings():
        warnings.simplefilter("error", EstimateWarning)
        value = entropy(beside(X, size * P))
        rotated = entropy(beside(X + size * P, X - size * P)) - math.log(2)
    assert value.mean().item() == pytest.approx(expected, abs=0.1)
    assert rotated.mean().item() == pytest.approx(expected, abs=0.1)


def test_entropy_without_a_density_is_that_of_the_other_columns_and_a_warning() -> None:
    for x in (beside(X, 0 * X + 3), beside(X, X)):
        with pytest.warns(EstimateWarning, match="6 of 6 tracks have columns that are constant"):
            value = entropy(x)
        torch.testing.assert_close(value, entropy(X), rtol=0, atol=1e-12)
    with pytest.warns(EstimateWarning, match="values recur or lie on a lattice in 6 of 6 tracks"):
        entropy(X.round())


@pytest.mark.parametrize(("d", "spread"), [(1, 0.5), (1, 5.0), (2, 2.0), (3, 1.0)])
@pytest.mark.filterwarnings("ignore::solo_infoaug.EstimateWarning")
def test_entropy_of_whole_numbers_is_that_of_their_cells(d, spread) -> None:
    edges = torch.arange(-60, 62, dtype=torch.float64) - 0.5
    p = torch.special.ndtr(edges / spread).diff()
    expected = -d * (p * p.clamp_min(1e-30).log()).sum().item()
    x = whole(spread, 10, 1000, d, seed=1)
    assert entropy(x).mean().item() == pytest.approx(expected, abs=0.06)
    assert entropy(10 * x).mean().item() == pytest.approx(expected + d * math.log(10), abs=0.06)


# --- the rest ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: mutual_information(X, Y, min_samples=600),
            "min_samples must be at most T=500, got 600",
        ),
        (
            lambda: mutual_information(X.to_sparse(), Y),
            "x must be a dense tensor, got torch.sparse",
        ),
        (lambda: mutual_information(X, Y, units=["nats"]), "units must be one of nats, bits, got"),
        (lambda: mutual_information(X, Y.long()), "y must be float32 or float64, got torch.int64"),
        (lambda: top_k_partners(X, True), "count must be 1 to P - 1 = 5, got True"),
        (
            lambda: pairwise_significance(X, generator=0),
            "generator must be a torch.Generator or None, got 0",
        ),
        (lambda: pairwise_significance(X, surrogates=True), "surrogates must be .*, got True"),
    ],
)
def test_errors(call: Callable[[], object], message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_public_names_are_at_the_top() -> None:
    assert solo_infoaug.top_k_partners is top_k_partners
    assert solo_infoaug.pairwise_significance is pairwise_significance
    assert {"top_k_partners", "pairwise_significance", "EstimateWarning"} <= set(dir(solo_infoaug))


@pytest.mark.parametrize("layout", ["upper", "paired"])
def test_a_task_is_short_enough_for_ctrl_c(layout) -> None:
    compiled = pytest.importorskip("solo_infoaug.information._compiled")
    for tracks, samples in ((64, 8000), (2, 30_000), (1000, 1000)):
        blocks, _ = compiled._blocks(tracks, tracks, samples, layout, threads=2)
        for block in blocks:
            pairs = (block.i1 - block.i0) * (block.j1 - block.j0)
            work = pairs * (block.t1 - block.t0) * samples
            assert work <= 2 * compiled.INTERRUPT


def test_an_error_stops_the_other_threads() -> None:
    compiled = pytest.importorskip("solo_infoaug.information._compiled")
    done = []

    def run(task: int, _: object) -> tuple[object, np.ndarray]:
        if task == 1:
            raise KeyboardInterrupt
        time.sleep(0.01)
        done.append(task)
        return ..., np.zeros(1)

    with pytest.raises(KeyboardInterrupt):
        compiled._share(range(1000), 2, lambda: None, run, np.zeros(1))
    assert len(done) < 999


def _scenes() -> torch.Tensor:
    """Of 6 tracks each: in general position; nearly uneven; uneven; at rest; ties; on a line."""
    x = torch.randn(6, 6, 50, 3, generator=torch.Generator().manual_seed(0))
    x[1, 2, :, 1] *= 3
    x[2, 2, :, 1] *= 20
    x[3, 3] = 1.0
    x[4] = x[4].round()
    x[5, 1, :, 2] = x[5, 1, :, 0] - x[5, 1, :, 1]
    return x


def test_what_the_card_lets_pass_the_host_lets_pass() -> None:
    x = _scenes()
    general, distinct = _position._in_general_position(x).T.tolist()
    assert general == [True, True, False, False, False, False]
    assert distinct == [True, True, True, False, False, True]
    for scene, passes in zip(x, general, strict=True):
        (prepared,) = _position.prepare(Series(scene, None))
        if passes:
            assert prepared.x is scene
            assert prepared.frame is None
            assert prepared.recurs is None


def test_scenes_in_general_position_are_waited_for_together(monkeypatch) -> None:
    """As on a card: whatever makes a number of Python from a tensor would wait there."""
    pytest.importorskip("numba")
    from torch.utils._python_dispatch import TorchDispatchMode

    waits = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._local_scalar_dense.default:
                waits.append(function)
            return function(*args, **(kwargs or {}))

    def as_on_a_card(x: torch.Tensor, max_memory: int) -> list[Series]:
        assert bool(_position._in_general_position(x).all())
        return [Series(scene, None, distinct=True) for scene in x]

    x = torch.randn(7, 6, 50, 3, generator=torch.Generator().manual_seed(0))
    expected = pairwise_mutual_information(x)
    monkeypatch.setattr(_position, "prepare_scenes", as_on_a_card)
    found = []
    for scenes in (1, 7):
        waits.clear()
        with Watch():
            got = pairwise_mutual_information(x[:scenes])
        assert torch.equal(got, expected[:scenes])
        found.append(len(waits))
    assert found[0] == found[1] <= 8
