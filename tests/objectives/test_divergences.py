"""f, f′, f* and f*∘f′ against their definitions, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from solo_infoaug.objectives import DIVERGENCES, get_divergence, tsallis
from solo_infoaug.objectives.divergences import NEYMAN, REVERSE_KL, VINCZE_LE_CAM, Divergence

ALLOWED = [get_divergence(name) for name in DIVERGENCES] + [tsallis(a) for a in (0.5, 1.5, 2.0)]
ALL = [*ALLOWED, REVERSE_KL, NEYMAN]
TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}

U = torch.logspace(-3, 2, 101, dtype=torch.float64)


def each(divergences: list[Divergence]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("divergence", divergences, ids=lambda d: d.title)


def numerical_conjugate(divergence: Divergence, t: float) -> float:
    """sup_{u > 0} (u·t − f(u)) by search over log u, knowing nothing of f′ or f*."""

    def value(log_u: float) -> float:
        u = torch.tensor(math.exp(log_u), dtype=torch.float64)
        return -(float(u) * t - float(divergence.f(u)))

    grid = np.linspace(-40, 12, 521)
    best = grid[int(np.argmin([value(g) for g in grid]))]
    found = minimize_scalar(
        value, bounds=(best - 0.2, best + 0.2), method="bounded", options={"xatol": 1e-10}
    )
    return -min(float(found.fun), value(grid[0]))


@each(ALL)
def test_conjugate_is_the_numerical_supremum(divergence: Divergence) -> None:
    slopes = divergence.f_prime(torch.logspace(-1.5, 1.0, 12, dtype=torch.float64))
    expected = [numerical_conjugate(divergence, float(t)) for t in slopes]
    torch.testing.assert_close(
        divergence.conjugate(slopes), torch.tensor(expected).to(slopes), **TOLERANCE
    )


@pytest.mark.parametrize(
    ("name", "t"), [("pearson", -5.0), ("pearson", -2.0), ("vlc", -4.0), ("tsallis", -1.0)]
)
def test_conjugate_below_the_range_of_f_prime_is_minus_f_of_zero(name: str, t: float) -> None:
    divergence = get_divergence(name)
    got = divergence.conjugate(torch.tensor(t, dtype=torch.float64))
    assert float(got) == pytest.approx(numerical_conjugate(divergence, t), abs=1e-6)


@pytest.mark.parametrize(
    ("divergence", "t"),
    [
        (get_divergence("js"), 0.7),
        (get_divergence("hellinger"), 1.01),
        (get_divergence("vlc"), 1.01),
        (tsallis(0.5), 0.01),
    ],
    ids=lambda p: getattr(p, "title", p),
)
def test_conjugate_above_its_domain_is_infinite(divergence: Divergence, t: float) -> None:
    point = torch.tensor([t, divergence.f_prime_at_one], dtype=torch.float64, requires_grad=True)
    value = divergence.conjugate(point)
    assert value[0] == math.inf
    assert value[1].isfinite()
    # and the supremum is indeed unbounded: it grows with u
    u = torch.tensor([1e4, 1e8, 1e12], dtype=torch.float64)
    gain = u * t - divergence.f(u)
    assert gain[0] < gain[1] < gain[2]


@each(ALL)
def test_f_prime_is_the_derivative_of_f(divergence: Divergence) -> None:
    u = U.clone().requires_grad_()
    (slope,) = torch.autograd.grad(divergence.f(u).sum(), u)
    torch.testing.assert_close(divergence.f_prime(U), slope, **TOLERANCE)
    one = torch.ones((), dtype=torch.float64)
    assert divergence.f_prime_at_one == pytest.approx(float(divergence.f_prime(one)))


@each(ALL)
def test_fenchel_young_holds_with_equality(divergence: Divergence) -> None:
    """f*(f′(u)) = u·f′(u) − f(u), which uses no conjugate."""
    torch.testing.assert_close(
        divergence.composed(U), U * divergence.f_prime(U) - divergence.f(U), **TOLERANCE
    )


@each(ALL)
def test_forms_of_log_u_are_the_forms_of_u(divergence: Divergence) -> None:
    torch.testing.assert_close(divergence.f_prime_of_log(U.log()), divergence.f_prime(U))
    torch.testing.assert_close(divergence.composed_of_log(U.log()), divergence.composed(U))


def test_paper_prints_another_function_for_vincze_le_cam() -> None:
    printed = 3 - 4 / (U + 1)
    composition = VINCZE_LE_CAM.conjugate(VINCZE_LE_CAM.f_prime(U))
    assert float((printed - composition).abs().max()) == pytest.approx(1.0)  # at u = 1
    # at u = 1, where a divergence is 0 and so is f*∘f′, the printed cell gives 1
    one = torch.ones((), dtype=torch.float64)
    assert float(3 - 4 / (one + 1)) == 1.0
    assert numerical_conjugate(VINCZE_LE_CAM, 0.0) == pytest.approx(0.0, abs=1e-9)
    assert float(VINCZE_LE_CAM.composed(one)) == pytest.approx(0.0, abs=1e-12)


def second_differences(divergence: Divergence, scale: float) -> torch.Tensor:
    """Of f*∘f′∘G over squared distances in [0, 4], with 1/(2σ²) = scale."""
    s = torch.linspace(0, 4, 401, dtype=torch.float64)
    value = divergence.composed_of_log(-scale * s)
    return value[2:] - 2 * value[1:-1] + value[:-2]


@pytest.mark.parametrize("scale", [0.25, 1.0, 2.0])
@each(ALLOWED)
def test_allowed_are_strictly_convex_in_the_squared_distance(
    divergence: Divergence, scale: float
) -> None:
    bend = second_differences(divergence, scale)
    resolution = 1e-15 * divergence.composed_of_log(torch.zeros(1, dtype=torch.float64)).abs()
    assert (bend > 4 * resolution).all()


@each([REVERSE_KL, NEYMAN])
def test_refused_are_not_strictly_convex(divergence: Divergence) -> None:
    assert (second_differences(divergence, 1.0) < 1e-12).all()


@pytest.mark.parametrize("name", ["reverse_kl", "neyman"])
def test_refused_names_say_why(name: str) -> None:
    with pytest.raises(ValueError, match=r"refused: .*not strictly convex.*expected one of kl, js"):
        get_divergence(name)


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"divergence: expected one of kl, js, .*got 'jss'"):
        get_divergence("jss")


@pytest.mark.parametrize("order", [0, -1, 1, 1.0, math.nan, math.inf, "3", True])
def test_order_out_of_range(order: object) -> None:
    with pytest.raises(ValueError, match=r"order: expected a finite number above 0 and not 1"):
        tsallis(order)


def test_order_belongs_to_tsallis() -> None:
    with pytest.raises(ValueError, match=r"order: expected None with divergence 'js', got 2.0"):
        get_divergence("js", order=2.0)
    assert get_divergence("tsallis", order=2.0) is tsallis(2)


def test_tsallis_2_is_pearson_up_to_an_affine_part() -> None:
    """u² − 1 and u²: the same objective; and f differs by an affine function of u."""
    two, pearson = tsallis(2.0), get_divergence("pearson")
    torch.testing.assert_close(two.composed(U) - 1, pearson.composed(U))
    torch.testing.assert_close(two.f_prime(U) - 2, pearson.f_prime(U))


@each(ALLOWED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_forms_of_log_u_are_finite_over_the_vision_range(
    divergence: Divergence, dtype: torch.dtype
) -> None:
    log_u = torch.linspace(-4, 0, 257).to(dtype).requires_grad_()
    for form in (divergence.f_prime_of_log, divergence.composed_of_log):
        value = form(log_u)
        (gradient,) = torch.autograd.grad(value.sum(), log_u)
        assert value.isfinite().all()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", ["kl", "js"])
def test_forms_of_log_u_survive_where_u_underflows(name: str) -> None:
    """float16 has no exp(−40): the printed forms of KL and JS give −∞ there, these do not."""
    divergence = get_divergence(name)
    log_u = torch.tensor([-40.0, -80.0], dtype=torch.float16)
    assert divergence.f_prime(log_u.exp()).isinf().all()
    exact = divergence.f_prime_of_log(log_u.double())
    torch.testing.assert_close(
        divergence.f_prime_of_log(log_u).double(), exact, rtol=2e-3, atol=0.0
    )
