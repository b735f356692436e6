"""The arithmetic of one step, as numbers: every solver here is linear in the latents, the UNet's output and the past.

    m    = p * x + q * output                                   what the solver remembers
    next = a * x + b * m + c1 * m1 + c2 * m2 + c3 * m3 + s * noise

where `x` are the latents and `m1` is the `m` of the step before. So a batch of pictures that are at different steps
of different schedules with different solvers is moved by the same few tensor operations, with a column of numbers
each.

Sigmas follow Karras et al. 2022: `x = x0 + sigma * noise` ("exploding"), or divided by sqrt(1 + sigma^2) so that the
variance is kept ("preserving").
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LMS_ORDER = 4
LCM_SIGMA_DATA = 0.5


class Row(NamedTuple):
    """The numbers of one step of one picture; see the module."""

    p: float
    q: float
    a: float
    b: float
    c1: float = 0.0
    c2: float = 0.0
    c3: float = 0.0
    s: float = 0.0


class Steps(NamedTuple):
    """What a formula may look at.

    `sigmas` has one more entry than there are calls. `alphas` are the products of alpha at each call's timestep and
    `alphas_next` at the timestep that it goes to. `boundary` is LCM's (c_skip, c_out) for each call.
    """

    prediction: str
    sigmas: Sequence[float]
    alphas: Sequence[float] = ()
    alphas_next: Sequence[float] = ()
    boundary: Sequence[tuple[float, float]] = ()


def _clean_exploding(prediction: str, sigma: float) -> tuple[float, float]:
    """The finished picture as (p, q): p * x + q * output, for x = x0 + sigma * noise."""
    if prediction == "epsilon":
        return 1.0, -sigma
    if prediction == "v_prediction":
        return 1 / (sigma**2 + 1), -sigma / math.sqrt(sigma**2 + 1)
    return 0.0, 1.0


def _clean_preserving(prediction: str, alpha: float, sigma: float) -> tuple[float, float]:
    """The same for x = alpha * x0 + sigma * noise with alpha^2 + sigma^2 = 1."""
    if prediction == "epsilon":
        return 1 / alpha, -sigma / alpha
    if prediction == "v_prediction":
        return alpha, -sigma
    return 0.0, 1.0


def _noise_preserving(prediction: str, alpha: float, sigma: float) -> tuple[float, float]:
    """The noise as (p, q), for the same."""
    if prediction == "epsilon":
        return 0.0, 1.0
    if prediction == "v_prediction":
        return sigma, alpha
    return 1 / sigma, -alpha / sigma


def _derivative(prediction: str, sigma: float) -> tuple[float, float]:
    """dx/dsigma = (x - x0) / sigma as (p, q)."""
    p, q = _clean_exploding(prediction, sigma)
    return (1 - p) / sigma, -q / sigma


def euler(steps: Steps, i: int, _depth: int) -> Row:
    """Karras et al. 2022, algorithm 2 without churn."""
    return _towards(steps, i, steps.sigmas[i + 1])


def euler_a(steps: Steps, i: int, _depth: int) -> Row:
    """Euler to a lower sigma, then noise up to the wanted one (ancestral sampling, k-diffusion)."""
    now, ahead = steps.sigmas[i], steps.sigmas[i + 1]
    up = math.sqrt(ahead**2 * (now**2 - ahead**2) / now**2)
    return _towards(steps, i, math.sqrt(max(0.0, ahead**2 - up**2)))._replace(s=up)


def _towards(steps: Steps, i: int, ahead: float) -> Row:
    p, q = _clean_exploding(steps.prediction, steps.sigmas[i])
    kept = ahead / steps.sigmas[i]
    return Row(0.0, 1.0, kept + (1 - kept) * p, (1 - kept) * q)


def heun(steps: Steps, i: int, _depth: int) -> Row:
    """Karras et al. 2022, algorithm 1: an Euler step, then half of it again by the derivative found there.

    Each sigma but the first and last stands twice; even calls are the first half of a step.
    """
    p, q = _derivative(steps.prediction, steps.sigmas[i])
    if i % 2 == 0:
        return Row(p, q, 1.0, steps.sigmas[i + 1] - steps.sigmas[i])
    half = (steps.sigmas[i] - steps.sigmas[i - 1]) / 2
    return Row(p, q, 1.0, half, -half)


def lms(steps: Steps, i: int, depth: int) -> Row:
    """Linear multistep (Adams-Bashforth of the derivatives over sigma), of as high an order as there are derivatives.

    A derivative's weight is the integral of its Lagrange polynomial from this sigma to the next; Gauss-Legendre with
    two points is exact for it, since its degree is at most three.
    """
    order = min(depth + 1, LMS_ORDER)
    known = [steps.sigmas[i - k] for k in range(order)]
    middle, half = (steps.sigmas[i + 1] + steps.sigmas[i]) / 2, (steps.sigmas[i + 1] - steps.sigmas[i]) / 2
    points = [middle - half / math.sqrt(3), middle + half / math.sqrt(3)]
    weights = [half * sum(_lagrange(known, k, point) for point in points) for k in range(order)]
    p, q = _derivative(steps.prediction, steps.sigmas[i])
    return Row(p, q, 1.0, *weights)


def _lagrange(known: Sequence[float], which: int, at: float) -> float:
    others = [value for k, value in enumerate(known) if k != which]
    return math.prod((at - other) / (known[which] - other) for other in others)


def ddim(steps: Steps, i: int, _depth: int) -> Row:
    """Song et al. 2020, formula 12 with eta 0."""
    alpha, sigma = math.sqrt(steps.alphas[i]), math.sqrt(1 - steps.alphas[i])
    clean = _clean_preserving(steps.prediction, alpha, sigma)
    noise = _noise_preserving(steps.prediction, alpha, sigma)
    ahead = np.sqrt([steps.alphas_next[i], 1 - steps.alphas_next[i]])
    a, b = (float(ahead[0] * clean[k] + ahead[1] * noise[k]) for k in (0, 1))
    return Row(0.0, 1.0, a, b)


def lcm(steps: Steps, i: int, _depth: int) -> Row:
    """Luo et al. 2023 (latent consistency models), algorithm 3: to the clean picture, then noise again."""
    p, q = _clean_preserving(steps.prediction, math.sqrt(steps.alphas[i]), math.sqrt(1 - steps.alphas[i]))
    skip, out = steps.boundary[i]
    last = i == len(steps.alphas) - 1
    kept, up = (1.0, 0.0) if last else (math.sqrt(steps.alphas_next[i]), math.sqrt(1 - steps.alphas_next[i]))
    return Row(0.0, 1.0, kept * (out * p + skip), kept * out * q, s=up)


def dpmpp_2m(steps: Steps, i: int, depth: int) -> Row:
    """Lu et al. 2022 (DPM-Solver++), algorithm 2, midpoint; first order at the first step and the last."""
    return _multistep(steps, i, depth, stochastic=False)


def dpmpp_2m_sde(steps: Steps, i: int, depth: int) -> Row:
    """The same for the stochastic differential equation."""
    return _multistep(steps, i, depth, stochastic=True)


def _multistep(steps: Steps, i: int, depth: int, *, stochastic: bool) -> Row:
    now, ahead = steps.sigmas[i], steps.sigmas[i + 1]
    alpha, sigma = _split(now)
    alpha_ahead, sigma_ahead = _split(ahead)
    shrink = ahead / now  # exp(-h), h being the step in log(alpha / sigma)
    if stochastic:
        gain = alpha_ahead * (1 - shrink**2)
        a, s = sigma_ahead / sigma * shrink, sigma_ahead * math.sqrt(1 - shrink**2)
    else:
        gain = alpha_ahead * (1 - shrink)
        a, s = sigma_ahead / sigma, 0.0
    p, q = _clean_preserving(steps.prediction, alpha, sigma)
    last = i == len(steps.sigmas) - 2
    if depth == 0 or last:
        return Row(p, q, a, gain, s=s)
    slope = 0.5 * gain * math.log(ahead / now) / math.log(now / steps.sigmas[i - 1])
    return Row(p, q, a, gain + slope, -slope, s=s)


def unipc(steps: Steps, i: int, depth: int) -> Row:
    """Zhao et al. 2023 (UniPC) with B(h) = exp(h) - 1, of second order, predicting the clean picture.

    A call first corrects the latents that the last step predicted, now that the output there is known, then predicts
    the next ones. What the correction adds is linear in the outputs, so that the corrected latents need not be kept.
    """
    gain, back, further = _corrected(steps.sigmas, i, depth)
    now, ahead = steps.sigmas[i], steps.sigmas[i + 1]
    (alpha, sigma), (alpha_ahead, sigma_ahead) = _split(now), _split(ahead)
    p, q = _clean_preserving(steps.prediction, alpha, sigma)
    a, b = sigma_ahead / sigma, alpha_ahead * (1 - ahead / now)
    last = i == len(steps.sigmas) - 2
    slope = 0.0 if depth == 0 or last else 0.5 * b * math.log(ahead / now) / math.log(now / steps.sigmas[i - 1])
    return Row(p, q, a, a * gain + b + slope, a * back - slope, a * further)


def _corrected(sigmas: Sequence[float], i: int, depth: int) -> tuple[float, float, float]:
    """What the corrector adds to the predicted latents: shares of this output, the last and the one before."""
    if depth == 0:
        return 0.0, 0.0, 0.0
    h = math.log(sigmas[i - 1] / sigmas[i])
    scale = _split(sigmas[i])[0] * -math.expm1(-h)  # alpha * B
    if depth == 1:
        return scale / 2, -scale / 2, 0.0
    ratio = math.log(sigmas[i - 1] / sigmas[i - 2]) / h  # below zero: where the output before lies, in steps
    phi = math.expm1(-h) / -h - 1
    first, second = phi / math.expm1(-h), 2 * (phi / -h - 0.5) / math.expm1(-h)
    # first = old + new and second = ratio * old + new, the two weights that make the step exact to second order
    old = (first - second) / (1 - ratio)
    new = first - old
    bend = scale * (old - 0.5) / ratio  # the prediction had one half there
    return scale * new, -scale * new - bend, bend


def _split(sigma: float) -> tuple[float, float]:
    """Alpha and sigma of the variance-preserving form."""
    alpha = 1 / math.sqrt(sigma**2 + 1)
    return alpha, sigma * alpha


SOLVERS: dict[str, Callable[[Steps, int, int], Row]] = {
    "euler": euler,
    "euler_a": euler_a,
    "heun": heun,
    "lms": lms,
    "ddim": ddim,
    "lcm": lcm,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "unipc": unipc,
}
# how many past outputs each looks at
REMEMBERED = {"heun": 1, "lms": LMS_ORDER - 1, "dpmpp_2m": 1, "dpmpp_2m_sde": 1, "unipc": 2}
# those that step over sigmas with noise added to the clean picture, so that the UNet's input is scaled down
EXPLODING = frozenset({"euler", "euler_a", "heun", "lms"})
