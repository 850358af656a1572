"""fmicl_loss against the paper's formula written out, its relatives, and its hard cases."""

from __future__ import annotations

import copy
import io
import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from solo_infoaug.objectives import (
    DIVERGENCES,
    SIMILARITIES,
    TEXT,
    VISION,
    FMICLLoss,
    FMICLTerms,
    Setting,
    alignment,
    fmicl_loss,
    fmicl_terms,
    fmicl_view_terms,
    get_divergence,
    uniformity,
)
from solo_infoaug.objectives.divergences import NEYMAN, REVERSE_KL
from solo_infoaug.objectives.metrics import alignment_and_uniformity

PAIRS = pytest.mark.parametrize(
    ("divergence", "similarity"), [(d, s) for d in DIVERGENCES for s in SIMILARITIES]
)


def features(n: int, d: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def similarity_by_definition(a: Tensor, b: Tensor, divergence: str, similarity: str) -> Tensor:
    """s(a, b) of two unit vectors, from ‖a − b‖² and f′ as printed."""
    div = get_divergence(divergence)
    if similarity == "gaussian":
        return div.f_prime(torch.exp(-((a - b) ** 2).sum() / (2 * VISION.sigma**2)))
    one = torch.ones((), dtype=a.dtype)
    return div.f_prime(one) + (a @ b - 1) / VISION.sigma**2


def loss_by_definition(x: Tensor, y: Tensor, divergence: str, similarity: str) -> Tensor:
    """The paper's batch form, one pair at a time, with the printed f*."""
    div = get_divergence(divergence)
    x, y = (v / v.norm(dim=1, keepdim=True) for v in (x, y))
    n = len(x)
    positive = sum(similarity_by_definition(x[i], y[i], divergence, similarity) for i in range(n))
    negative = sum(
        div.conjugate(similarity_by_definition(x[i], x[j], divergence, similarity))
        for i in range(n)
        for j in range(n)
        if i != j
    )
    return torch.as_tensor(-positive / n + VISION.alpha * negative / (n * (n - 1)))


@PAIRS
def test_batch_form_is_the_papers_formula(divergence: str, similarity: str) -> None:
    x, y = features(7, 5, 0), features(7, 5, 1)
    expected = loss_by_definition(x, y, divergence, similarity)
    torch.testing.assert_close(fmicl_loss(x, y, divergence, similarity), expected)


@PAIRS
def test_gradcheck(divergence: str, similarity: str) -> None:
    x, y, queue = (features(4, 3, seed).requires_grad_() for seed in (2, 3, 4))
    for form in (
        lambda x, y, queue: fmicl_loss(x, y, divergence, similarity),
        lambda x, y, queue: fmicl_loss(x, y, divergence, similarity, negatives="keys"),
        lambda x, y, queue: fmicl_loss(x, y, divergence, similarity, queue=queue),
    ):
        assert torch.autograd.gradcheck(form, (x, y, queue))


def test_defaults_are_the_papers_for_images() -> None:
    assert (VISION.alpha, 1 / (2 * VISION.sigma**2)) == pytest.approx((40, 1))
    assert (TEXT.alpha, 1 / (2 * TEXT.sigma**2)) == pytest.approx((409600, 20))
    x, y = features(6, 4, 5), features(6, 4, 6)
    explicit = fmicl_loss(x, y, "kl", "gaussian", alpha=40, sigma=math.sqrt(0.5))
    assert fmicl_loss(x, y) == explicit
    torch.testing.assert_close(FMICLLoss()(x, y), explicit)


@PAIRS
def test_scale_of_the_features_does_not_matter(divergence: str, similarity: str) -> None:
    x, y = features(6, 4, 5), features(6, 4, 6)
    torch.testing.assert_close(
        fmicl_loss(3 * x, 0.1 * y, divergence, similarity), fmicl_loss(x, y, divergence, similarity)
    )


# ---- the hard cases in half precision ----


def near_collapsed(n: int, d: int) -> tuple[Tensor, Tensor]:
    centre = features(1, d, 7, torch.float32)
    return tuple(centre + 1e-3 * features(n, d, s, torch.float32) for s in (8, 9))


def random(n: int, d: int) -> tuple[Tensor, Tensor]:
    return features(n, d, 10, torch.float32), features(n, d, 11, torch.float32)


def near_orthogonal(n: int, d: int) -> tuple[Tensor, Tensor]:
    """Samples almost orthogonal, and each positive almost orthogonal to its sample."""
    basis = torch.eye(d)
    noise = [1e-3 * features(n, d, s, torch.float32) for s in (12, 13)]
    return basis[:n] + noise[0], basis[n : 2 * n] + noise[1]


def collapsed(n: int, d: int) -> tuple[Tensor, Tensor]:
    point = features(1, d, 14, torch.float32).expand(n, d)
    return point, point.clone()


def opposite(n: int, d: int) -> tuple[Tensor, Tensor]:
    x = features(n, d, 15, torch.float32)
    return x, -x


CASES = [near_collapsed, random, near_orthogonal, collapsed, opposite]


def autocast_gradients(
    case: Any, divergence: str, similarity: str, dtype: torch.dtype, setting: Setting
) -> tuple[Tensor, Tensor]:
    """Loss and the gradients at half-precision features out of an autocast matmul."""
    x, y = case(16, 64)
    weight = torch.eye(64, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        a, b = x @ weight, y @ weight
        assert a.dtype == dtype
        a.retain_grad()
        loss = fmicl_loss(a, b, divergence, similarity, alpha=setting.alpha, sigma=setting.sigma)
    assert loss.dtype == torch.float32
    loss.backward()
    assert a.grad is not None
    assert weight.grad is not None
    assert a.grad.dtype == dtype
    return loss, torch.cat([a.grad.float().flatten(), weight.grad.flatten()])


@PAIRS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_finite_under_autocast(
    case: Any, dtype: torch.dtype, divergence: str, similarity: str
) -> None:
    loss, gradients = autocast_gradients(case, divergence, similarity, dtype, VISION)
    assert loss.isfinite()
    assert gradients.isfinite().all()


@PAIRS
@pytest.mark.parametrize("case", CASES)
def test_finite_under_autocast_in_the_text_setting(
    case: Any, divergence: str, similarity: str
) -> None:
    loss, gradients = autocast_gradients(case, divergence, similarity, torch.bfloat16, TEXT)
    assert loss.isfinite()
    assert gradients.isfinite().all()


@PAIRS
@pytest.mark.parametrize("case", CASES)
def test_float16_holds_the_text_setting_but_for_hellinger(
    case: Any, divergence: str, similarity: str
) -> None:
    """Its slope is exp(10 ‖x−y‖²)/2: beyond float16 for positives that are orthogonal."""
    loss, gradients = autocast_gradients(case, divergence, similarity, torch.float16, TEXT)
    assert loss.isfinite()
    if (divergence, similarity) != ("hellinger", "gaussian") or case in (near_collapsed, collapsed):
        assert gradients.isfinite().all()
    else:
        assert not gradients.isfinite().all()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_half_precision_features_give_the_loss_of_the_same_numbers(divergence: str) -> None:
    x, y = (v.half() for v in near_collapsed(8, 32))
    torch.testing.assert_close(
        fmicl_loss(x, y, divergence).double(),
        fmicl_loss(x.double(), y.double(), divergence),
        rtol=1e-5,
        atol=1e-5,
    )


# ---- the theorem ----


def minimise_negative_term(penalty: Any, n: int, d: int) -> Tensor:
    """Inner products [n, n] of n free points on the sphere of R^d where Σ_{i≠j} is least."""
    points = features(n, d, 20).requires_grad_()
    optimiser = torch.optim.LBFGS(
        [points],
        max_iter=500,
        tolerance_grad=1e-12,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )
    off = ~torch.eye(n, dtype=torch.bool)

    def closure() -> Tensor:
        optimiser.zero_grad()
        x = F.normalize(points, dim=1)
        loss: Tensor = penalty((x @ x.T)[off])
        loss.backward()
        return loss

    optimiser.step(closure)
    x = F.normalize(points.detach(), dim=1)
    return x @ x.T


@pytest.mark.parametrize(("n", "d"), [(2, 2), (4, 3), (5, 8)], ids=str)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_negatives_end_in_a_regular_simplex(divergence: str, n: int, d: int) -> None:
    div = get_divergence(divergence)
    inner = minimise_negative_term(lambda c: div.composed_of_log(2 * (c - 1)).mean(), n, d)
    expected = torch.full((n, n), -1 / (n - 1), dtype=torch.float64).fill_diagonal_(1)
    torch.testing.assert_close(inner, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_loss_has_that_negative_term(divergence: str) -> None:
    """So that the theorem speaks of the loss: its negative term is the one minimised above."""
    x = features(5, 4, 21)
    u = F.normalize(x, dim=1)
    div = get_divergence(divergence)
    expected = div.composed_of_log(2 * ((u @ u.T)[~torch.eye(5, dtype=torch.bool)] - 1)).mean()
    torch.testing.assert_close(fmicl_terms(x, x, divergence).negative, expected)


def test_reverse_kl_does_not_end_in_a_simplex() -> None:
    """Any points of zero mean are minimal, two opposite heaps too; Neyman prefers the heaps."""
    n, off = 4, ~torch.eye(4, dtype=torch.bool)
    simplex = torch.full((n, n), -1 / (n - 1), dtype=torch.float64).fill_diagonal_(1)
    side = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    heaps = torch.outer(side, side)

    def term(divergence: Any, inner: Tensor) -> float:
        return float(divergence.composed_of_log(2 * (inner[off] - 1)).mean())

    assert term(REVERSE_KL, heaps) == pytest.approx(term(REVERSE_KL, simplex), abs=1e-12)
    assert term(NEYMAN, heaps) < term(NEYMAN, simplex) - 1
    for name in DIVERGENCES:
        assert term(get_divergence(name), heaps) > term(get_divergence(name), simplex) + 1e-3

    found = minimise_negative_term(lambda c: REVERSE_KL.composed_of_log(2 * (c - 1)).mean(), n, 3)
    assert (found[off] + 1 / (n - 1)).abs().max() > 0.05
    assert term(REVERSE_KL, found) == pytest.approx(term(REVERSE_KL, simplex), abs=1e-9)


# ---- relatives ----


def test_kl_is_made_of_the_terms_of_infonce() -> None:
    """With τ = σ²: positive = ⟨x, y⟩/τ + 1 − 1/τ, negative = exp(−1/τ) · mean exp(⟨x_i, x_j⟩/τ)."""
    x, y, tau = features(9, 6, 30), features(9, 6, 31), 0.37
    terms = fmicl_terms(x, y, "kl", sigma=math.sqrt(tau))
    a, b = F.normalize(x, dim=1), F.normalize(y, dim=1)
    logits = (a @ a.T)[~torch.eye(9, dtype=torch.bool)] / tau
    torch.testing.assert_close(terms.positive, (a * b).sum(1).mean() / tau + 1 - 1 / tau)
    torch.testing.assert_close(terms.negative, math.exp(-1 / tau) * logits.exp().mean())


def test_infonce_is_the_lower_envelope_of_kl_over_alpha() -> None:
    """min_α (L_α − log α) = InfoNCE of the aggregated negatives, attained at α = 1/negative."""
    x, y, tau = features(9, 6, 30), features(9, 6, 31), 0.37
    a, b = F.normalize(x, dim=1), F.normalize(y, dim=1)
    logits = (a @ a.T)[~torch.eye(9, dtype=torch.bool)] / tau
    infonce = -(a * b).sum(1).mean() / tau + logits.exp().mean().log()

    def bound(alpha: float) -> Tensor:
        return fmicl_loss(x, y, "kl", alpha=alpha, sigma=math.sqrt(tau)) - math.log(alpha)

    best = 1 / float(fmicl_terms(x, y, "kl", sigma=math.sqrt(tau)).negative)
    torch.testing.assert_close(bound(best), infonce)
    for factor in (0.3, 0.9, 1.1, 3.0):
        assert bound(factor * best) > infonce + 1e-3


def test_kl_is_one_objective_under_both_similarities() -> None:
    x, y = features(6, 4, 32), features(6, 4, 33)
    torch.testing.assert_close(fmicl_loss(x, y, "kl", "gaussian"), fmicl_loss(x, y, "kl", "cosine"))
    # the bare cosine x·y/σ² is the same up to the scale of α
    a, b = F.normalize(x, dim=1), F.normalize(y, dim=1)
    s, off = 1 / VISION.sigma**2, ~torch.eye(6, dtype=torch.bool)
    bare = -(s * (a * b).sum(1)).mean() + 40 * torch.exp(s * (a @ a.T)[off] - 1).mean()
    shift = 1 - s
    scaled = fmicl_loss(x, y, "kl", alpha=40 * math.exp(-shift))
    torch.testing.assert_close(bare, scaled + shift)


@PAIRS
def test_queue_of_the_other_samples_is_the_batch_form(divergence: str, similarity: str) -> None:
    x, y = features(6, 4, 34), features(6, 4, 35)
    rows = [
        fmicl_loss(
            x[i : i + 1], y[i : i + 1], divergence, similarity, queue=x[torch.arange(6) != i]
        )
        for i in range(6)
    ]
    torch.testing.assert_close(torch.stack(rows).mean(), fmicl_loss(x, y, divergence, similarity))


@PAIRS
def test_keys_of_the_other_samples_are_the_negatives(divergence: str, similarity: str) -> None:
    x, y = features(6, 4, 34), features(6, 4, 35)
    rows = [
        fmicl_loss(
            x[i : i + 1], y[i : i + 1], divergence, similarity, queue=y[torch.arange(6) != i]
        )
        for i in range(6)
    ]
    torch.testing.assert_close(
        torch.stack(rows).mean(), fmicl_loss(x, y, divergence, similarity, negatives="keys")
    )


def test_views_are_symmetric() -> None:
    x, y, z = (features(6, 4, seed) for seed in (34, 35, 36))
    two = FMICLLoss("js").view_terms([x, y])
    both = [fmicl_terms(*pair, "js") for pair in ((x, y), (y, x))]
    torch.testing.assert_close(two.positive, both[0].positive)
    torch.testing.assert_close(two.negative, (both[0].negative + both[1].negative) / 2)

    three = fmicl_view_terms([x, y, z], "js")
    for term, got in zip(FMICLTerms._fields, three, strict=True):
        pairs = [fmicl_terms(a, b, "js") for a, b in itertools.permutations((x, y, z), 2)]
        torch.testing.assert_close(got, torch.stack([getattr(p, term) for p in pairs]).mean())
    with pytest.raises(ValueError, match="views: expected at least 2 views"):
        fmicl_view_terms([x])


@pytest.mark.parametrize("negatives", ["views", "keys", "queue"])
def test_terms_of_two_views_in_one_go(negatives: str) -> None:
    """As MoCo pairs them: queries with the other view's keys, each with a queue of its own."""
    queries, keys = ([features(6, 4, seed) for seed in pair] for pair in ((34, 35), (36, 37)))
    queues = torch.stack([features(9, 4, 38), features(9, 4, 39)])
    has_queue = negatives == "queue"
    objective = FMICLLoss("js", negatives="views" if has_queue else negatives)
    got = objective.mean_terms(queries, keys, queues if has_queue else None)
    apart = [
        objective.terms(queries[i], keys[i], queues[i] if has_queue else None) for i in range(2)
    ]
    for term in FMICLTerms._fields:
        expected = torch.stack([getattr(one, term) for one in apart]).mean()
        torch.testing.assert_close(getattr(got, term), expected)
    with pytest.raises(ValueError, match=r"y: expected floating-point features \[6, 4\]"):
        objective.mean_terms(queries, [keys[0], keys[1][:3]], queues if has_queue else None)


def test_gather_without_a_process_group_changes_nothing() -> None:
    x, y = features(6, 4, 34), features(6, 4, 35)
    assert fmicl_loss(x, y, gather=True) == fmicl_loss(x, y)


# ---- the module ----


def test_module_is_the_function_with_its_options() -> None:
    x, y, queue = features(6, 4, 36), features(6, 4, 37), features(9, 4, 38)
    options: dict[str, Any] = {"alpha": 3.0, "sigma": 0.6, "order": 2.5}
    module = FMICLLoss("tsallis", "cosine", **options)
    torch.testing.assert_close(module(x, y), fmicl_loss(x, y, "tsallis", "cosine", **options))
    torch.testing.assert_close(
        module(x, y, queue), fmicl_loss(x, y, "tsallis", "cosine", queue=queue, **options)
    )
    assert "divergence='tsallis'" in repr(module)
    assert not list(module.parameters())
    assert not module.state_dict()


def test_module_can_be_copied_and_saved() -> None:
    x, y = features(6, 4, 36), features(6, 4, 37)
    module = FMICLLoss("js")
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(module), torch.load(buffer, weights_only=False)):
        assert twin(x, y) == module(x, y)


# ---- errors ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(4)}, r"x: expected floating-point features \[N, D\], got .*\[4\]"),
        ({"x": torch.zeros(4, 3, dtype=torch.long)}, r"x: expected .* got torch.int64 \[4, 3\]"),
        ({"y": torch.zeros(5, 3)}, r"y: expected floating-point features \[4, 3\] .* \[5, 3\]"),
        ({"divergence": "kll"}, r"divergence: expected one of .*'kll'"),
        ({"divergence": "neyman"}, r"divergence: 'neyman' .* is refused"),
        ({"similarity": "dot"}, r"similarity: expected one of gaussian, cosine, got 'dot'"),
        ({"alpha": 0.0}, r"alpha: expected a finite number above 0, got 0.0"),
        ({"alpha": "40"}, r"alpha: expected a finite number above 0, got '40'"),
        ({"sigma": math.nan}, r"sigma: expected a finite number above 0, got nan"),
        ({"order": 2.0}, r"order: expected None with divergence 'kl'"),
        ({"negatives": "all"}, r"negatives: expected one of views, keys, got 'all'"),
        ({"queue": torch.zeros(7, 2)}, r"queue: expected \[M, 3\] with M ≥ 1 .* got \[7, 2\]"),
        ({"queue": torch.zeros(0, 3)}, r"queue: expected \[M, 3\] with M ≥ 1 .* got \[0, 3\]"),
        ({"queue": torch.ones(7, 3), "negatives": "keys"}, r"queue: expected no queue with"),
        ({"queue": torch.ones(7, 3), "gather": True}, r"queue: expected no queue with"),
        ({"x": torch.ones(1, 3), "y": torch.ones(1, 3)}, r"x: expected at least 2 samples"),
    ],
)
def test_errors_name_the_argument(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"x": torch.ones(4, 3), "y": torch.ones(4, 3)} | change
    with pytest.raises(ValueError, match=message):
        fmicl_loss(**arguments)


def test_module_refuses_at_construction() -> None:
    with pytest.raises(ValueError, match=r"divergence: 'reverse_kl' .* is refused"):
        FMICLLoss("reverse_kl")
    with pytest.raises(ValueError, match="alpha"):
        FMICLLoss(alpha=-1)


# ---- metrics ----


def test_alignment_and_uniformity_by_definition() -> None:
    x, y = features(5, 4, 40), features(5, 4, 41)
    a, b = F.normalize(x, dim=1), F.normalize(y, dim=1)
    distances = [((a[i] - a[j]) ** 2).sum() for i in range(5) for j in range(5) if i != j]
    expected = torch.stack(distances).mul(-2).exp().mean().log()
    torch.testing.assert_close(alignment(x, y).double(), ((a - b) ** 2).sum(1).mean())
    torch.testing.assert_close(uniformity(x).double(), expected, rtol=1e-5, atol=1e-6)
    both = alignment_and_uniformity(x, y)
    torch.testing.assert_close(both, (alignment(x, y), uniformity(x)))


def test_metrics_of_collapse_and_of_half_precision() -> None:
    x = torch.ones(4, 8, dtype=torch.float16, requires_grad=True)
    assert float(alignment(x, x)) == pytest.approx(0, abs=1e-6)
    assert float(uniformity(x)) == pytest.approx(0, abs=1e-6)
    assert not uniformity(x).requires_grad
    with pytest.raises(ValueError, match="at least 2"):
        uniformity(x[:1])
