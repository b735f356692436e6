"""The schedulers there are, every name that they answer to, and what a checkpoint must be for each to work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from inference.engine.types import UnknownSchedulerError

if TYPE_CHECKING:
    from collections.abc import Mapping

ALL_PREDICTIONS = ("epsilon", "v_prediction", "sample")
NOISE_OR_V = ("epsilon", "v_prediction")


@dataclass(frozen=True, slots=True)
class SchedulerKind:
    """A name on the wire: the diffusers class behind it, what it changes in the checkpoint's own settings.

    `solver` names the formula of `solvers.py` that makes its steps; None where diffusers' own `step` does.
    `zero_snr`: whether the class can rescale its betas to a terminal SNR of zero. `zero_snr_epsilon`: whether it can
    do so where the UNet predicts noise, for which the class must keep the last alpha above zero.
    """

    cls: type[Any]
    solver: str | None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    predictions: tuple[str, ...] = ALL_PREDICTIONS
    zero_snr: bool = True
    zero_snr_epsilon: bool = True

    def refusal(self, config: Mapping[str, Any]) -> str | None:
        """Why a checkpoint with these scheduler settings cannot be drawn with this kind; None where it can."""
        prediction = str(config.get("prediction_type", "epsilon"))
        if prediction not in self.predictions:
            return f"it does not know the checkpoint's prediction type, {prediction}"
        if not config.get("rescale_betas_zero_snr"):
            return None
        if not self.zero_snr:
            return "it cannot begin at the zero signal-to-noise ratio that the checkpoint was trained with"
        if prediction == "epsilon" and not self.zero_snr_epsilon:
            return "it divides by zero on a checkpoint that predicts noise at a zero signal-to-noise ratio"
        return None


_MULTISTEP = {
    "solver_order": 2,
    "solver_type": "midpoint",
    "euler_at_final": True,  # under 50 steps the last step shows artefacts otherwise
    "lower_order_final": True,
    "final_sigmas_type": "zero",
    "thresholding": False,
    "use_lu_lambdas": False,
    "use_flow_sigmas": False,
    "variance_type": None,
    "lambda_min_clipped": -float("inf"),
}
_KARRAS = {"use_karras_sigmas": True}
_ODE, _SDE = {"algorithm_type": "dpmsolver++"}, {"algorithm_type": "sde-dpmsolver++"}
_UNCLIPPED = {"clip_sample": False, "thresholding": False, "set_alpha_to_one": False}

KINDS: dict[str, SchedulerKind] = {
    "euler": SchedulerKind(EulerDiscreteScheduler, "euler"),
    "euler_a": SchedulerKind(EulerAncestralDiscreteScheduler, "euler_a", predictions=NOISE_OR_V),
    "ddim": SchedulerKind(DDIMScheduler, "ddim", _UNCLIPPED, zero_snr_epsilon=False),
    "dpmpp_2m": SchedulerKind(DPMSolverMultistepScheduler, "dpmpp_2m", _MULTISTEP | _ODE),
    "dpmpp_2m_karras": SchedulerKind(DPMSolverMultistepScheduler, "dpmpp_2m", _MULTISTEP | _ODE | _KARRAS),
    "dpmpp_2m_sde": SchedulerKind(DPMSolverMultistepScheduler, "dpmpp_2m_sde", _MULTISTEP | _SDE),
    "dpmpp_2m_sde_karras": SchedulerKind(DPMSolverMultistepScheduler, "dpmpp_2m_sde", _MULTISTEP | _SDE | _KARRAS),
    "euler_karras": SchedulerKind(EulerDiscreteScheduler, "euler", _KARRAS),
    "unipc": SchedulerKind(
        UniPCMultistepScheduler,
        "unipc",
        {"solver_order": 2, "solver_type": "bh2", "final_sigmas_type": "zero", "use_flow_sigmas": False}
        | {"thresholding": False, "predict_x0": True, "lower_order_final": True},
    ),
    "lcm": SchedulerKind(LCMScheduler, "lcm", _UNCLIPPED, zero_snr_epsilon=False),
    "heun": SchedulerKind(HeunDiscreteScheduler, "heun", {"clip_sample": False}, zero_snr=False),
    "pndm": SchedulerKind(
        PNDMScheduler,
        None,
        {"skip_prk_steps": True, "set_alpha_to_one": False},
        predictions=NOISE_OR_V,
        zero_snr=False,
    ),
    "dpmpp_singlestep": SchedulerKind(
        DPMSolverSinglestepScheduler,
        None,
        {"solver_order": 2, "solver_type": "midpoint", "lower_order_final": True, "final_sigmas_type": "zero"}
        | {
            "thresholding": False,
            "use_flow_sigmas": False,
            "variance_type": None,
            "lambda_min_clipped": -float("inf"),
        }
        | _ODE,
        zero_snr=False,
    ),
    # diffusers' own needs scipy for four integrals; its schedule of timesteps and sigmas is Euler's
    "lms": SchedulerKind(EulerDiscreteScheduler, "lms", zero_snr=False),
}

# other programs' names for the same things, compared in lower case
ALIASES = {
    # worker-sdxl
    "k_euler": "euler",
    "k_euler_ancestral": "euler_a",
    "klms": "lms",
    "dpmsolvermultistep": "dpmpp_2m",
    "dpmsolversinglestep": "dpmpp_singlestep",
    # AUTOMATIC1111
    "euler a": "euler_a",
    "k_euler_a": "euler_a",
    "k_lms": "lms",
    "k_heun": "heun",
    "plms": "pndm",
    "dpm++ 2m": "dpmpp_2m",
    "k_dpmpp_2m": "dpmpp_2m",
    "dpm++ 2m karras": "dpmpp_2m_karras",
    "k_dpmpp_2m_ka": "dpmpp_2m_karras",
    "dpm++ 2m sde": "dpmpp_2m_sde",
    "dpm++ 2m sde karras": "dpmpp_2m_sde_karras",
    "k_dpmpp_2m_sde_ka": "dpmpp_2m_sde_karras",
    "euler karras": "euler_karras",
    # ComfyUI
    "euler_ancestral": "euler_a",
    "uni_pc": "unipc",
    "uni_pc_bh2": "unipc",
    # diffusers
    "eulerdiscretescheduler": "euler",
    "eulerancestraldiscretescheduler": "euler_a",
    "ddimscheduler": "ddim",
    "dpmsolvermultistepscheduler": "dpmpp_2m",
    "dpmsolversinglestepscheduler": "dpmpp_singlestep",
    "unipcmultistepscheduler": "unipc",
    "lcmscheduler": "lcm",
    "heundiscretescheduler": "heun",
    "pndmscheduler": "pndm",
    "lmsdiscretescheduler": "lms",
}

# A1111 names the spacing of the sigmas apart from the sampler since 1.9, and chooses Karras's by itself for these two
_AUTOMATIC_IS_KARRAS = ("dpm++ 2m", "dpm++ 2m sde")
_PLAIN_SPACINGS = ("", "automatic", "uniform", "normal")


def resolve_name(name: str, spacing: str = "") -> str:
    """Our name for a scheduler given by any of its names, whether or not a checkpoint allows it.

    `spacing` is A1111's second field (`scheduler` beside `sampler_name`): "Karras", "Automatic" or nothing.

    Raises:
        UnknownSchedulerError: naming the schedulers that there are.

    """
    lowered, apart = name.strip().lower(), spacing.strip().lower()
    known = ALIASES.get(lowered, lowered)
    if known not in KINDS:
        raise UnknownSchedulerError(f"scheduler '{name}' is not one of {', '.join(KINDS)}")
    if apart == "karras" or (apart == "automatic" and lowered in _AUTOMATIC_IS_KARRAS):
        return _with_karras(name, known)
    if apart not in _PLAIN_SPACINGS:
        raise UnknownSchedulerError(f"scheduler '{name}' can be spaced by Automatic or Karras, not by '{spacing}'")
    return known


def _with_karras(name: str, known: str) -> str:
    if known.endswith("_karras"):
        return known
    if f"{known}_karras" not in KINDS:
        able = ", ".join(kind.removesuffix("_karras") for kind in KINDS if kind.endswith("_karras"))
        raise UnknownSchedulerError(f"scheduler '{name}' has no Karras spacing; those that have are {able}")
    return f"{known}_karras"


def allowed(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Every scheduler that a checkpoint with these scheduler settings can be drawn with."""
    return tuple(name for name, kind in KINDS.items() if kind.refusal(config) is None)


def resolve_for(config: Mapping[str, Any], name: str, spacing: str = "") -> str:
    """As `resolve_name`, for a checkpoint with these scheduler settings.

    Raises:
        UnknownSchedulerError: the name is not known, or this checkpoint cannot be drawn with it.

    """
    known = resolve_name(name, spacing)
    if (refusal := KINDS[known].refusal(config)) is not None:
        raise UnknownSchedulerError(
            f"scheduler '{name}' cannot be used with this checkpoint: {refusal}; "
            f"those that can are {', '.join(allowed(config))}"
        )
    return known
