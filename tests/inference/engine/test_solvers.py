from __future__ import annotations

import math

import numpy as np
import pytest

from inference.engine.solvers import EXPLODING, LMS_ORDER, REMEMBERED, SOLVERS, Steps, dpmpp_2m, lms

SIGMAS = (14.6, 7.1, 3.2, 1.4, 0.6, 0.2, 0.03, 0.0)
ALPHAS = (0.005, 0.05, 0.2, 0.6, 0.9, 0.98, 0.999)


def steps_for(name: str, prediction: str = "epsilon") -> Steps:
    if name == "heun":
        doubled = [SIGMAS[0], *np.repeat(SIGMAS[1:-1], 2).tolist(), SIGMAS[-1]]
        return Steps(prediction, doubled)
    if name in ("ddim", "lcm"):
        boundary = [(0.1, 0.9)] * len(ALPHAS)
        return Steps(prediction, (), ALPHAS, (*ALPHAS[1:], 0.9999), boundary)
    return Steps(prediction, SIGMAS)


def quadrature(sigmas: tuple[float, ...], i: int, order: int, which: int) -> float:
    """The integral in diffusers' `get_lms_coefficient`, by many small trapezia."""
    tau = np.linspace(sigmas[i], sigmas[i + 1], 200_001)
    product = np.ones_like(tau)
    for k in range(order):
        if k != which:
            product *= (tau - sigmas[i - k]) / (sigmas[i - which] - sigmas[i - k])
    return float(np.trapezoid(product, tau))


@pytest.mark.parametrize("depth", [0, 1, 2, 3, 9])
def test_lms_weights_are_diffusers_integrals(depth: int) -> None:
    order = min(depth + 1, LMS_ORDER)
    for i in range(order - 1, len(SIGMAS) - 1):
        row = lms(Steps("epsilon", SIGMAS), i, depth)
        weights = [row.b, row.c1, row.c2, row.c3]
        for which in range(order):
            assert weights[which] == pytest.approx(quadrature(SIGMAS, i, order, which), rel=1e-6)
        assert not any(weights[order:])
        assert sum(weights) == pytest.approx(SIGMAS[i + 1] - SIGMAS[i])  # a constant derivative is followed exactly


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", list(SOLVERS))
def test_every_number_is_finite_and_the_past_is_used_only_where_there_is_one(name: str, prediction: str) -> None:
    steps = steps_for(name, prediction)
    for i in range(max(len(steps.sigmas) - 1, len(steps.alphas))):
        first = SOLVERS[name](steps, i, 0)
        assert all(math.isfinite(number) for number in first)
        if name != "heun" or i % 2 == 0:  # the second half of a step always has the first before it
            assert (first.c1, first.c2, first.c3) == (0, 0, 0)
        later = SOLVERS[name](steps, i, REMEMBERED.get(name, 0)) if i >= REMEMBERED.get(name, 0) else first
        assert [later.c1, later.c2, later.c3][REMEMBERED.get(name, 0) :] == [0.0] * (3 - REMEMBERED.get(name, 0))


@pytest.mark.parametrize("name", [name for name in SOLVERS if name not in ("ddim", "lcm")])
def test_the_last_step_adds_no_noise_and_reaches_the_clean_picture(name: str) -> None:
    steps = steps_for(name)
    row = SOLVERS[name](steps, len(steps.sigmas) - 2, 0)
    assert row.s == 0
    clean, noise, sigma = 0.8, -1.3, SIGMAS[-2]
    scale = 1 / math.sqrt(sigma**2 + 1) if name not in EXPLODING else 1.0
    x = scale * (clean + sigma * noise)
    assert row.a * x + row.b * (row.p * x + row.q * noise) == pytest.approx(clean)


@pytest.mark.parametrize(("name", "preserving"), [("euler_a", False), ("dpmpp_2m_sde", True)])
def test_stochastic_steps_keep_the_variance_of_the_schedule(name: str, *, preserving: bool) -> None:
    """With the true noise predicted, what is left of it and what is added make the next sigma."""
    for i in range(len(SIGMAS) - 2):
        row = SOLVERS[name](Steps("epsilon", SIGMAS), i, 0)
        scale = 1 / math.sqrt(SIGMAS[i] ** 2 + 1) if preserving else 1.0
        wanted = SIGMAS[i + 1] / math.sqrt(SIGMAS[i + 1] ** 2 + 1) if preserving else SIGMAS[i + 1]
        left = row.a * scale * SIGMAS[i] + row.b * (row.p * scale * SIGMAS[i] + row.q)
        assert math.hypot(left, row.s) == pytest.approx(wanted)


def test_the_multistep_solver_is_of_first_order_at_both_ends() -> None:
    steps = Steps("v_prediction", SIGMAS)
    assert dpmpp_2m(steps, 0, 0).c1 == 0
    assert dpmpp_2m(steps, 3, 1).c1 < 0
    assert dpmpp_2m(steps, len(SIGMAS) - 2, 1).c1 == 0
