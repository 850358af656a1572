"""Null calibration and power of the time-shift test, and why permutations will not do."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import kstest

from solo_infoaug.information import (
    mutual_information,
    pairwise_mutual_information,
    pairwise_significance,
)
from solo_infoaug.information.significance import shifted_information


def autoregressive(tracks: int, samples: int, coefficient: float, seed: int) -> torch.Tensor:
    """Independent stationary AR(1) series of unit variance, `[tracks, samples, 1]`."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(tracks, samples, generator=generator) * (1 - coefficient**2) ** 0.5
    out = torch.empty(tracks, samples)
    out[:, 0] = torch.randn(tracks, generator=generator)
    for t in range(1, samples):
        out[:, t] = coefficient * out[:, t - 1] + noise[:, t]
    return out[..., None]


@pytest.mark.parametrize("masked", [False, True])
def test_shifted_information_is_that_of_each_shifted_pair(masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    tracks = torch.randn(5, 40, 2, generator=generator, dtype=torch.float64)
    mask = torch.rand(5, 40, generator=generator) < 0.9 if masked else None
    pairs, shifts = torch.tensor([[0, 1], [3, 2], [4, 0]]), [3, 11]
    found = shifted_information(tracks, pairs, shifts, "3kl", 3, mask=mask)
    assert found.shape == (3, 2)
    for row, (one, two) in enumerate(pairs.tolist()):
        for column, shift in enumerate(shifts):
            both = None if mask is None else mask[one] & mask[two].roll(shift)
            moved = tracks[two].roll(shift, 0)
            expected = mutual_information(tracks[one], moved, "3kl", 3, mask=both)
            torch.testing.assert_close(found[row, column], expected)


@pytest.mark.parametrize(
    ("coefficient", "samples"), [(0.0, 60), (0.5, 60), (0.9, 150), (0.99, 400)]
)
def test_p_values_are_uniform_for_independent_series(coefficient, samples) -> None:
    scenes = 100
    series = autoregressive(2 * scenes, samples, coefficient, seed=1)
    series = series.reshape(scenes, 2, samples, 1)
    generator = torch.Generator().manual_seed(2)
    p = pairwise_significance(series, "ksg1", surrogates=39, generator=generator).p_values[:, 0, 1]
    spread = p - torch.rand(scenes, generator=generator) / 40  # p-values come in steps of 1/40
    assert kstest(spread.numpy(), "uniform").pvalue > 0.01


def test_permutation_finds_what_is_not_there() -> None:
    x = autoregressive(40, 200, 0.95, seed=1)
    y = autoregressive(40, 200, 0.95, seed=2)
    value = mutual_information(x, y, "ksg1")
    generator = torch.Generator().manual_seed(0)
    reached = torch.ones(40)
    for _ in range(39):
        order = torch.randperm(200, generator=generator)
        reached += mutual_information(x, y[:, order], "ksg1") >= value
    assert (reached / 40 <= 0.05).float().mean() > 0.4  # where 0.05 is right


@pytest.mark.parametrize("estimator", ["3kl", "ksg1"])
def test_coupled_series_are_found(estimator) -> None:
    series = autoregressive(8, 300, 0.9, seed=3)
    series[1] = series[0] + 0.3 * series[1]
    result = pairwise_significance(
        series, estimator, surrogates=199, generator=torch.Generator().manual_seed(0)
    )
    assert result.p_values[0, 1] <= 0.02
    assert result.q_values[0, 1] == result.q_values.fill_diagonal_(1).min()
    assert torch.equal(result.p_values, result.p_values.T)
    torch.testing.assert_close(result.mi, pairwise_mutual_information(series, estimator))


def test_false_discoveries_are_controlled() -> None:
    found = []
    for seed in range(10):
        series = autoregressive(8, 100, 0.5, seed)
        generator = torch.Generator().manual_seed(seed)
        q = pairwise_significance(series, surrogates=99, generator=generator).q_values
        found.append(bool((q <= 0.1).any()))
    assert sum(found) <= 3


def test_q_values_step_up() -> None:
    series = autoregressive(6, 80, 0.5, seed=0)
    generator = torch.Generator().manual_seed(0)
    result = pairwise_significance(series, surrogates=49, generator=generator)
    upper = torch.triu(torch.ones(6, 6, dtype=torch.bool), 1)
    p, q = result.p_values[upper], result.q_values[upper]
    for level in (0.2, 0.5, 0.9):
        ordered = p.sort().values
        passing = (ordered <= level * torch.arange(1, 16) / 15 + 1e-6).nonzero()
        expected = int(passing[-1]) + 1 if len(passing) else 0
        assert int((q <= level + 1e-6).sum()) == expected


def test_masks_and_constant_tracks() -> None:
    series = autoregressive(4, 80, 0.5, seed=0)
    series[3] = 1.0
    mask = torch.ones(4, 80, dtype=torch.bool)
    mask[0, 50:] = False
    result = pairwise_significance(
        series, mask=mask, surrogates=19, generator=torch.Generator().manual_seed(0)
    )
    assert torch.isfinite(result.mi).all()
    assert (result.p_values[3] == 1).all()
    assert ((result.p_values > 0) & (result.p_values <= 1)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"surrogates": 0}, "surrogates must be an integer of at least 1, got 0"),
        ({"min_shift": 21}, "min_shift must be 1 to T/2 = 20 frames, got 21"),
        ({"generator": 7}, "generator must be a torch.Generator or None, got 7"),
    ],
)
def test_errors(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        pairwise_significance(torch.randn(2, 40, 1), **options)
