"""Probes of frozen features: k-NN and a linear probe, on full batches, CPU or CUDA.

The results are those of scikit-learn's `KNeighborsClassifier` (brute force, cosine) and of its
`LogisticRegression` after `StandardScaler`; benchmarks/probes.py has the times of both.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.07
"""Temperature of the weights of Wu et al. 2018 (arXiv 1805.01978), as in solo-learn and DINO."""
PENALTY = 0.1
"""scikit-learn's C: weight of the data against ½·‖weights‖²."""

_SIMILARITIES = 2**24
"""Maximum number in memory at a time: 64 MiB."""

Labelled = tuple[Tensor, Tensor]
"""Features float32 [N, D] and labels int64 [N]."""


def _device(device: str | torch.device | None) -> torch.device:
    """The device to compute on; default a GPU if there is one."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def knn_labels(
    train: Labelled,
    features: Tensor,
    k: int = 20,
    temperature: float = TEMPERATURE,
    device: str | torch.device | None = None,
) -> Tensor:
    """The label that the k nearest neighbours vote for, weighted by exp(cosine / temperature).

    `features` are [M, D]; the labels are int64 [M] on the CPU. If N is less than k, all vote.
    """
    where = _device(device)
    classes, known = (found.to(where) for found in train[1].unique(return_inverse=True))
    keys = F.normalize(train[0].to(where), dim=1)
    voted = []
    for rows in features.split(max(1, _SIMILARITIES // len(keys))):
        cosine, nearest = (F.normalize(rows.to(where), dim=1) @ keys.T).topk(min(k, len(keys)))
        # relative to the nearest, so that nothing overflows; the order of votes is the same
        weights = ((cosine - cosine[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(rows), len(classes))
        voted.append(classes[votes.scatter_add_(1, known[nearest], weights).argmax(1)].cpu())
    return torch.cat(voted)


def knn_accuracy(
    train: Labelled,
    test: Labelled,
    k: int = 20,
    temperature: float = TEMPERATURE,
    device: str | torch.device | None = None,
) -> float:
    """Top-1 accuracy (per cent) of `knn_labels`."""
    return _accuracy(knn_labels(train, test[0], k, temperature, device), test[1])


def fit_linear(train: Labelled, device: str | torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression on standardised features, with an L2 penalty.

    Minimises Σ cross-entropy + ½‖W‖² / C with C = 0.1 (`PENALTY`), the bias not penalised, by
    L-BFGS on the full batch. Two classes are scikit-learn's binary case: one vector of weights,
    W₁ − W₀, is penalised.

    L-BFGS works in the features' principal axes, each scaled by the curvature of the loss at its
    start: there the penalty stays diagonal, and a tenth of the steps is enough.

    Labels 0 to K − 1 all occur. Returns weights [K, D] and biases [K] for the features as they
    come, float32 on the CPU.
    """
    x, y = (tensor.to(_device(device)) for tensor in train)
    count, classes = len(x), int(y.max()) + 1
    mean, std = x.mean(0), x.std(0, correction=0)
    # a constant feature is not exactly constant after rounding
    std = torch.where(std > 1e-6 * mean.abs() + 1e-12, std, 1.0)
    x = (x - mean) / std
    penalty = (2 if classes == 2 else 1) / (PENALTY * count)
    variances, axes = torch.linalg.eigh((x.T @ x).double() / count)
    scale = (variances.clamp(min=0) / classes + penalty).rsqrt()
    turn = (axes * scale).to(x.dtype)
    x = x @ turn
    penalties = penalty * scale.square().to(x.dtype)
    weights = x.new_zeros(classes, x.shape[1], requires_grad=True)
    bias = x.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights, bias],
        max_iter=500,
        tolerance_grad=1e-5,
        tolerance_change=1e-9,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weights.T + bias, y) + (penalties * weights**2).sum() / 2
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    plain = (weights.detach() @ turn.T) / std
    return plain.cpu(), (bias.detach() - plain @ mean).cpu()


def linear_accuracy(
    train: Labelled, test: Labelled, device: str | torch.device | None = None
) -> float:
    """Top-1 accuracy (per cent) of `fit_linear`."""
    classes, known = train[1].unique(return_inverse=True)
    weights, bias = fit_linear((train[0], known), device)
    return _accuracy(classes[(test[0] @ weights.T + bias).argmax(1)], test[1])


def _accuracy(predicted: Tensor, labels: Tensor) -> float:
    return 100 * float((predicted == labels).double().mean())
