"""How far frozen features tell classes apart: k-NN, and a linear probe."""

from __future__ import annotations

import numpy as np
from torch import Tensor

_TEMPERATURE = 0.07


def knn_accuracy(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], k: int = 20) -> float:
    """Top-1 accuracy (per cent) of a k-NN classifier weighted by exp(cosine similarity / 0.07).

    The weights are those of Wu et al. 2018 (arXiv 1805.01978), which solo-learn uses as well.

    Args:
        train: features [N, D] and labels [N].
        test: likewise.
        k: neighbours.
    """
    from sklearn.neighbors import KNeighborsClassifier

    classifier = KNeighborsClassifier(
        n_neighbors=min(k, len(train[1])),
        metric="cosine",
        weights=lambda distance: np.exp((1 - distance) / _TEMPERATURE),
    )
    classifier.fit(train[0].numpy(), train[1].numpy())
    return 100 * float(classifier.score(test[0].numpy(), test[1].numpy()))


def linear_accuracy(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Top-1 accuracy (per cent) of a logistic regression on standardised features.

    Args:
        train: features [N, D] and labels [N].
        test: likewise.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    probe.fit(train[0].numpy(), train[1].numpy())
    return 100 * float(probe.score(test[0].numpy(), test[1].numpy()))
