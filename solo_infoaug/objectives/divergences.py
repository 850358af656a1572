"""f-divergences for f-MICL: f, f′, the conjugate f*, and f*∘f′, as pure functions.

The variational bound of the f-mutual information is maximised by s = f′(density ratio), so an
objective needs four functions of a divergence. Some are given twice: as a function of u, as in the
papers, and of ℓ = log u, which a similarity of features gives. Training uses the forms in ℓ, which
never divide exp(ℓ), subtract it from 1 or take its logarithm.

The functions take and return tensors of any shape and floating dtype, element by element. f* is
the conjugate of f on [0, ∞), extended: a constant below the range of f′, +∞ above its domain.

References:
    Lu, Zhang, Sun, Guo, Yu: f-MICL: Understanding and Generalizing InfoNCE-based Contrastive
    Learning. TMLR 10/2023, arXiv:2402.10150 (table of divergences, theorem on the simplex).
    The paper's cell for f*∘f′ of Vincze–Le Cam prints 3 − 4/(u+1); the composition of its own
    f* and f′ is 3 − 8/(u+1) + 4/(u+1)², which is used here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor

DEFAULT_ORDER = 3.0
"""Default order a of the Tsallis divergence."""

Pointwise = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Divergence:
    """One f-divergence.

    Attributes:
        name: its name in a config.
        title: its name in tables.
        f: the generator, of u ≥ 0 (convex; Tsallis up to a constant).
        f_prime: its derivative, of u > 0.
        conjugate: f*(t) = sup_{u ≥ 0} (u·t − f(u)), of t.
        f_prime_of_log: f′(exp(ℓ)), of ℓ = log u.
        composed_of_log: f*∘f′(exp(ℓ)), of ℓ = log u.
        refused: why it cannot be an objective, or None.
    """

    name: str
    title: str
    f: Pointwise
    f_prime: Pointwise
    conjugate: Pointwise
    f_prime_of_log: Pointwise
    composed_of_log: Pointwise
    refused: str | None = None

    def composed(self, u: Tensor) -> Tensor:
        """f*∘f′, of u > 0."""
        return self.conjugate(self.f_prime(u))

    @property
    def f_prime_at_one(self) -> float:
        """f′(1), the similarity of two features that coincide."""
        return float(self.f_prime_of_log(torch.zeros((), dtype=torch.float64)))


def _infinite_above(t: Tensor, bound: float, inside: Pointwise) -> Tensor:
    """`inside(t)` up to `bound`, +∞ beyond it; no NaN reaches the gradient from out there."""
    beyond = t > bound
    return inside(t.masked_fill(beyond, bound)).masked_fill(beyond, math.inf)


KL = Divergence(
    name="kl",
    title="KL",
    f=lambda u: torch.xlogy(u, u),
    f_prime=lambda u: torch.log(u) + 1,
    conjugate=lambda t: torch.exp(t - 1),
    f_prime_of_log=lambda log_u: log_u + 1,
    composed_of_log=torch.exp,
)

_LOG2 = math.log(2.0)

JS = Divergence(
    name="js",
    title="Jensen–Shannon",
    f=lambda u: torch.xlogy(u, u) - (u + 1) * torch.log((1 + u) / 2),
    f_prime=lambda u: torch.log(2 * u / (1 + u)),
    # 2 − e^t = 1 − expm1(t)
    conjugate=lambda t: _infinite_above(t, _LOG2, lambda s: -torch.log1p(-torch.expm1(s))),
    f_prime_of_log=lambda log_u: F.logsigmoid(log_u) + _LOG2,
    composed_of_log=lambda log_u: F.softplus(log_u) - _LOG2,
)

PEARSON = Divergence(
    name="pearson",
    title="Pearson χ²",
    f=lambda u: (u - 1) ** 2,
    f_prime=lambda u: 2 * (u - 1),
    conjugate=lambda t: (t.clamp(min=-2) / 2 + 1) ** 2 - 1,  # t²/4 + t
    f_prime_of_log=lambda log_u: 2 * torch.expm1(log_u),
    composed_of_log=lambda log_u: torch.expm1(2 * log_u),
)

HELLINGER = Divergence(
    name="hellinger",
    title="squared Hellinger",
    f=lambda u: (torch.sqrt(u) - 1) ** 2,
    f_prime=lambda u: 1 - torch.rsqrt(u),
    conjugate=lambda t: _infinite_above(t, 1.0, lambda s: s / (1 - s)),
    f_prime_of_log=lambda log_u: -torch.expm1(-log_u / 2),
    composed_of_log=lambda log_u: torch.expm1(log_u / 2),
)

VINCZE_LE_CAM = Divergence(
    name="vlc",
    title="Vincze–Le Cam",
    f=lambda u: (u - 1) ** 2 / (u + 1),
    f_prime=lambda u: 1 - 4 / (u + 1) ** 2,
    conjugate=lambda t: _infinite_above(
        t.clamp(min=-3), 1.0, lambda s: 4 - s - 4 * torch.sqrt(1 - s)
    ),
    # 1/(1+u) = sigmoid(−ℓ), and 3 − 8v + 4v² = 4(1−v)² − 1
    f_prime_of_log=lambda log_u: 1 - 4 * torch.sigmoid(-log_u) ** 2,
    composed_of_log=lambda log_u: 4 * torch.sigmoid(log_u) ** 2 - 1,
)


def tsallis(order: float = DEFAULT_ORDER) -> Divergence:
    """The Tsallis divergence of order a: f(u) = u^a/(a−1), up to a constant.

    Raises:
        ValueError: unless a > 0, and not 1 (where it is KL).
    """
    number = isinstance(order, Real) and not isinstance(order, bool)
    if not number or not math.isfinite(order) or order <= 0 or order == 1:
        raise ValueError(
            f"order: expected a finite number above 0 and not 1 (order 1 is divergence 'kl'), "
            f"got {order!r}"
        )
    return _tsallis(float(order))


@lru_cache(maxsize=32)
def _tsallis(a: float) -> Divergence:
    slope = a / (a - 1)

    def conjugate(t: Tensor) -> Tensor:
        if a > 1:
            return (t.clamp(min=0) / slope) ** slope
        return _infinite_above(t, 0.0, lambda s: (s / slope) ** slope)

    return Divergence(
        name="tsallis",
        title=f"Tsallis-{a:g}",
        f=lambda u: u**a / (a - 1),
        f_prime=lambda u: slope * u ** (a - 1),
        conjugate=conjugate,
        f_prime_of_log=lambda log_u: slope * torch.exp((a - 1) * log_u),
        composed_of_log=lambda log_u: torch.exp(a * log_u),
    )


REVERSE_KL = Divergence(
    name="reverse_kl",
    title="reverse KL",
    f=lambda u: -torch.log(u),
    f_prime=lambda u: -1 / u,
    conjugate=lambda t: _infinite_above(t, 0.0, lambda s: -1 - torch.log(-s)),
    f_prime_of_log=lambda log_u: -torch.exp(-log_u),
    composed_of_log=lambda log_u: log_u - 1,
    refused=(
        "f*∘f′∘G is linear in the squared distance, not strictly convex: its negative term only "
        "asks for features of zero mean, which a collapse onto two opposite points satisfies"
    ),
)

NEYMAN = Divergence(
    name="neyman",
    title="Neyman χ²",
    f=lambda u: (u - 1) ** 2 / u,
    f_prime=lambda u: 1 - 1 / u**2,
    conjugate=lambda t: _infinite_above(t, 1.0, lambda s: 2 - 2 * torch.sqrt(1 - s)),
    f_prime_of_log=lambda log_u: -torch.expm1(-2 * log_u),
    composed_of_log=lambda log_u: 2 - 2 * torch.exp(-log_u),
    refused=(
        "f*∘f′∘G is concave in the squared distance, not strictly convex: its negative term "
        "rewards pushing a few pairs far apart, and the features collapse onto opposite points"
    ),
)

DIVERGENCES = ("kl", "js", "pearson", "hellinger", "tsallis", "vlc")
"""Names of the divergences that an objective can be built from."""

_FIXED = {d.name: d for d in (KL, JS, PEARSON, HELLINGER, VINCZE_LE_CAM)}
_REFUSED = {d.name: d for d in (REVERSE_KL, NEYMAN)}


def get_divergence(name: str, order: float | None = None) -> Divergence:
    """The divergence that a config calls `name`; `order` is the a of `tsallis`.

    Raises:
        ValueError: if there is none of that name, if it is known and refused (the message says
            why), if `order` is out of range, or if it is given to another than `tsallis`.
    """
    if name == "tsallis":
        return tsallis(DEFAULT_ORDER if order is None else order)
    if order is not None:
        raise ValueError(f"order: expected None with divergence {name!r}, got {order!r}")
    if name in _FIXED:
        return _FIXED[name]
    known = ", ".join(DIVERGENCES)
    if name in _REFUSED:
        raise ValueError(
            f"divergence: {name!r} ({_REFUSED[name].title}) is refused: {_REFUSED[name].refused}; "
            f"expected one of {known}"
        )
    raise ValueError(f"divergence: expected one of {known}, got {name!r}")
