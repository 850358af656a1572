"""Similarities of features on the unit sphere, and f* of them.

Both start from the logarithm of the Gaussian kernel, ℓ = −‖x−y‖²/(2σ²) = (⟨x, y⟩ − 1)/σ² ≤ 0:

    gaussian  s = f′(exp(ℓ))     the f-Gaussian similarity of f-MICL
    cosine    s = f′(1) + ℓ      the cosine at temperature σ², shifted

The cosine is shifted so that equal features get f′(1), as with the f-Gaussian. Without the shift,
it would leave the domain of f* (t < log 2 for Jensen–Shannon, t < 1 for squared Hellinger). For KL,
both similarities are the same function, and the cosine without the shift differs only by the factor
α.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from solo_infoaug.objectives.divergences import Divergence


def log_kernel(cosine: Tensor, sigma: float) -> Tensor:
    """log G_σ of unit vectors from their inner products, any shape: (cosine − 1)/σ²."""
    return (cosine - 1) / sigma**2


@dataclass(frozen=True)
class Similarity:
    """A similarity s of log G and a divergence, and the penalty f*(s); any shape."""

    name: str
    value: Callable[[Tensor, Divergence], Tensor]
    penalty: Callable[[Tensor, Divergence], Tensor]


GAUSSIAN = Similarity(
    name="gaussian",
    value=lambda log_g, divergence: divergence.f_prime_of_log(log_g),
    penalty=lambda log_g, divergence: divergence.composed_of_log(log_g),
)
COSINE = Similarity(
    name="cosine",
    value=lambda log_g, divergence: log_g + divergence.f_prime_at_one,
    penalty=lambda log_g, divergence: divergence.conjugate(log_g + divergence.f_prime_at_one),
)

_BY_NAME = {s.name: s for s in (GAUSSIAN, COSINE)}
SIMILARITIES = tuple(_BY_NAME)
"""Names of the similarities."""


def get_similarity(name: str) -> Similarity:
    """The similarity that a config calls `name`; a ValueError if there is none of that name."""
    if name not in _BY_NAME:
        raise ValueError(f"similarity: expected one of {', '.join(SIMILARITIES)}, got {name!r}")
    return _BY_NAME[name]
