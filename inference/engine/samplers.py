"""Schedulers, one private copy per picture.

diffusers' schedulers keep the step index in themselves, so a shared one breaks under concurrency. Each slot owns a
`Sampler`: Euler's arithmetic is simple enough to be done for a whole batch in a few tensor operations; every other
scheduler runs diffusers' own `step` on the slot's own copy.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
)

from inference.engine.types import UnknownSchedulerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor


@dataclass(frozen=True, slots=True)
class SchedulerKind:
    """A name on the wire: the diffusers class behind it, what it changes in the checkpoint's own settings."""

    cls: type[Any]
    overrides: Mapping[str, Any]


KINDS: dict[str, SchedulerKind] = {
    "euler": SchedulerKind(EulerDiscreteScheduler, {}),
    "euler_a": SchedulerKind(EulerAncestralDiscreteScheduler, {}),
    "ddim": SchedulerKind(DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    "dpmpp_2m": SchedulerKind(DPMSolverMultistepScheduler, {"use_karras_sigmas": False, "euler_at_final": True}),
    "dpmpp_2m_karras": SchedulerKind(
        DPMSolverMultistepScheduler, {"use_karras_sigmas": True, "euler_at_final": True}
    ),
}

# worker-sdxl's and A1111's names for the same things, compared in lower case
ALIASES = {
    "k_euler": "euler",
    "k_euler_ancestral": "euler_a",
    "euler a": "euler_a",
    "euler_ancestral": "euler_a",
    "dpmsolvermultistep": "dpmpp_2m",
    "dpm++ 2m": "dpmpp_2m",
    "dpm++ 2m karras": "dpmpp_2m_karras",
}


def resolve_name(name: str) -> str:
    """Our name for a scheduler given by any of its names.

    Raises:
        UnknownSchedulerError: naming the schedulers that there are.

    """
    lowered = name.strip().lower()
    known = ALIASES.get(lowered, lowered)
    if known not in KINDS:
        raise UnknownSchedulerError(f"scheduler '{name}' is not one of {', '.join(KINDS)}")
    return known


class Samplers:
    """Makes samplers for one checkpoint, honouring its prediction type, betas and timestep spacing."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """`config` is the checkpoint's `scheduler_config.json`."""
        self._templates = {name: self._template(kind, dict(config)) for name, kind in KINDS.items()}

    @staticmethod
    def _template(kind: SchedulerKind, config: dict[str, Any]) -> Any:
        # a sampler named by the request decides these itself; the checkpoint's file may carry another one's choice
        for key in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "_class_name"):
            config.pop(key, None)
        return kind.cls.from_config(config, **kind.overrides)

    @property
    def names(self) -> tuple[str, ...]:
        """Every scheduler that this checkpoint can be drawn with."""
        return tuple(self._templates)

    def make(self, name: str, steps: int, device: torch.device) -> Sampler:
        """A fresh sampler set to `steps` steps.

        Raises:
            UnknownSchedulerError: the name is not known.

        """
        scheduler = copy.deepcopy(self._templates[resolve_name(name)])
        scheduler.set_timesteps(steps, device=device)
        return Sampler(scheduler)


class Sampler:
    """The noise schedule of one picture and where it stands in it.

    `timesteps` may be longer than the steps asked for where a scheduler's order needs more calls.
    """

    def __init__(self, scheduler: Any) -> None:
        """Take over `scheduler`, whose timesteps are set already."""
        self.scheduler = scheduler
        self.timesteps: list[float] = [float(value) for value in scheduler.timesteps]
        self.init_noise_sigma = float(scheduler.init_noise_sigma)
        self.index = 0
        self.is_euler = type(scheduler) is EulerDiscreteScheduler
        self.sigmas: list[float] = [float(value) for value in scheduler.sigmas] if self.is_euler else []

    @property
    def steps(self) -> int:
        """Calls of the UNet that the picture needs."""
        return len(self.timesteps)

    @property
    def prediction_type(self) -> str:
        """`epsilon`, `v_prediction` or `sample`."""
        return str(self.scheduler.config.prediction_type)


def scale_inputs(samplers: Sequence[Sampler], latents: Tensor) -> Tensor:
    """Each picture's latents as the UNet wants them at its step. float32 [n, 4, h, w] in and out."""
    if all(sampler.is_euler for sampler in samplers):
        sigma = _column([sampler.sigmas[sampler.index] for sampler in samplers], latents)
        return latents / (sigma.square() + 1).sqrt()
    return torch.cat([_scale_one(sampler, latents[i : i + 1]) for i, sampler in enumerate(samplers)])


def step_all(
    samplers: Sequence[Sampler], output: Tensor, latents: Tensor, generators: Sequence[torch.Generator]
) -> Tensor:
    """Every picture's next latents, and every sampler one step on.

    Args:
        samplers: one a picture.
        output: the guided prediction, float32 [n, 4, h, w].
        latents: the latents that it was made from, before scaling, float32 [n, 4, h, w].
        generators: the source of each picture's own noise, for schedulers that add some.

    """
    if all(sampler.is_euler for sampler in samplers):
        stepped = _euler(samplers, output, latents)
    else:
        stepped = torch.cat(
            [
                _step_one(sampler, output[i : i + 1], latents[i : i + 1], generators[i])
                for i, sampler in enumerate(samplers)
            ]
        )
    for sampler in samplers:
        sampler.index += 1
    return stepped


def _column(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).to(like.device, non_blocking=True).view(-1, 1, 1, 1)


def _euler(samplers: Sequence[Sampler], output: Tensor, latents: Tensor) -> Tensor:
    """Euler's step for every row at once (Karras et al. 2022, algorithm 2 without churn)."""
    sigma = _column([sampler.sigmas[sampler.index] for sampler in samplers], latents)
    ahead = _column([sampler.sigmas[sampler.index + 1] for sampler in samplers], latents)
    kind = samplers[0].prediction_type
    if kind == "epsilon":
        derivative = output
    else:
        if kind == "v_prediction":
            variance = sigma.square() + 1
            denoised = output * (-sigma / variance.sqrt()) + latents / variance
        else:
            denoised = output
        derivative = (latents - denoised) / sigma
    return latents + derivative * (ahead - sigma)


def _scale_one(sampler: Sampler, latents: Tensor) -> Tensor:
    if sampler.is_euler:
        return latents / (sampler.sigmas[sampler.index] ** 2 + 1) ** 0.5
    return sampler.scheduler.scale_model_input(latents, sampler.scheduler.timesteps[sampler.index])


def _step_one(sampler: Sampler, output: Tensor, latents: Tensor, generator: torch.Generator) -> Tensor:
    if sampler.is_euler:
        return _euler([sampler], output, latents)
    timestep = sampler.scheduler.timesteps[sampler.index]
    keywords = {} if isinstance(sampler.scheduler, DDIMScheduler) else {"generator": generator}
    return sampler.scheduler.step(output, timestep, latents, return_dict=False, **keywords)[0]
