"""k-NN and the linear probe against scikit-learn's and against definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

from solo_infoaug.evaluation import knn_accuracy, linear_accuracy
from solo_infoaug.evaluation.probes import fit_linear, knn_labels

Labelled = tuple[Tensor, Tensor]


def made_up(count: int, classes: int, dims: int, seed: int = 0) -> tuple[Labelled, Labelled]:
    """Overlapping classes in correlated features, as a backbone's are."""
    random = torch.Generator().manual_seed(seed)
    spread = torch.arange(1, dims + 1).float().pow(-0.7)
    turn = torch.linalg.qr(torch.randn(dims, dims, generator=random))[0]
    centres = 0.5 * torch.randn(classes, dims, generator=random)
    y = torch.randint(classes, (2 * count,), generator=random)
    x = ((torch.randn(2 * count, dims, generator=random) + centres[y]) * spread) @ turn + 1
    return (x[:count], y[:count]), (x[count:], y[count:])


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda":
        request.getfixturevalue("cuda")
    return str(request.param)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (200, 0.1)])
def test_knn_is_scikit_learns(device: str, k: int, temperature: float) -> None:
    train, test = made_up(1000, 10, 32)
    theirs = KNeighborsClassifier(
        k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / temperature)
    )
    # in double precision neither rounds
    doubled = train[0].double(), train[1]
    expected = theirs.fit(doubled[0].numpy(), train[1].numpy()).predict(test[0].double().numpy())
    ours = knn_labels(doubled, test[0].double(), k, temperature, device)
    assert ours.tolist() == expected.tolist()
    single = knn_labels(train, test[0], k, temperature, device)
    assert (single == ours).float().mean() > 0.998
    accuracy = 100 * float(np.mean(expected == test[1].numpy()))
    assert 30 < accuracy < 90
    assert knn_accuracy(train, test, k, temperature, device) == pytest.approx(accuracy, abs=0.2)


def test_votes_by_hand() -> None:
    """One near neighbour against two farther ones: the temperature decides; labels are kept."""
    angles = torch.tensor([0.1, 0.5, -0.5, 3.0])
    train = torch.stack([angles.cos(), angles.sin()], 1), torch.tensor([7, 30, 30, 5])
    asked = torch.tensor([[2.0, 0.0]])
    near, far = np.cos(0.1), np.cos(0.5)
    assert np.exp(near / 0.07) > 2 * np.exp(far / 0.07)
    assert np.exp(near / 1.0) < 2 * np.exp(far / 1.0)
    assert knn_labels(train, asked, 3, 0.07, "cpu").tolist() == [7]
    assert knn_labels(train, asked, 3, 1.0, "cpu").tolist() == [30]
    assert knn_labels(train, asked, 100, 0.001, "cpu").tolist() == [7]  # nothing overflows
    assert knn_accuracy(train, (asked, torch.tensor([8])), 1) == 0  # a label nobody learned


@pytest.mark.parametrize("classes", [2, 10])
def test_probe_is_scikit_learns(device: str, classes: int) -> None:
    train, test = made_up(1500, classes, 64)
    x, y = (tensor.numpy() for tensor in train)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=5000, tol=1e-8))
    theirs.fit(x.astype(np.float64), y)
    weights, bias = fit_linear(train, device)
    # what is added to all classes changes no probability; scikit-learn has one vector for two
    weights, bias = weights - weights.mean(0), bias - bias.mean()
    if classes == 2:
        weights, bias = 2 * weights[1:], 2 * bias[1:]
    expected = theirs[-1].coef_ / theirs[0].scale_
    assert np.abs(weights.numpy() - expected).max() < 3e-3 * np.abs(expected).max()
    their_bias = theirs[-1].intercept_ - expected @ theirs[0].mean_
    assert bias.numpy() == pytest.approx(their_bias - their_bias.mean() * (classes > 2), abs=0.02)
    # as it was used here before, stopped at its default tolerance
    usual = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500)).fit(x, y)
    accuracy = 100 * usual.score(test[0].numpy(), test[1].numpy())
    assert 60 < accuracy < 99
    assert linear_accuracy(train, test, device) == pytest.approx(accuracy, abs=0.2)


def test_gradient_of_the_objective_is_zero_at_the_probe() -> None:
    """The objective of the docstring, in double precision."""
    (x, y), _ = made_up(400, 5, 16)
    weights, bias = (tensor.double() for tensor in fit_linear((x, y), "cpu"))
    x = x.double()
    standard = (x - x.mean(0)) / x.std(0, correction=0)
    plain = (weights * x.std(0, correction=0)).requires_grad_()
    shift = (bias + weights @ x.mean(0)).requires_grad_()
    loss = F.cross_entropy(standard @ plain.T + shift, y, reduction="sum")
    (loss + 5 * (plain**2).sum()).backward()
    for gradient in (plain.grad, shift.grad):
        assert gradient.abs().max() < 1e-3 * len(x)


def test_features_that_are_constant_and_labels_with_gaps() -> None:
    (x, y), (x_test, y_test) = made_up(400, 3, 16)
    labels = torch.tensor([4, 9, 2])
    plain = linear_accuracy((x, y), (x_test, y_test))
    more = [torch.cat([z, torch.full((400, 1), 0.1), torch.zeros(400, 2)], 1) for z in (x, x_test)]
    again = linear_accuracy((more[0], labels[y]), (more[1], labels[y_test]))
    assert again == pytest.approx(plain, abs=0.3)
