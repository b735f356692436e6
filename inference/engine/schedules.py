"""A scheduler set to a number of steps, as plain numbers that any number of pictures may read at once."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from diffusers import LCMScheduler, PNDMScheduler

from inference.engine.solvers import EXPLODING, REMEMBERED, SOLVERS, Row, Steps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from inference.engine.schedulers import SchedulerKind

# a checkpoint's file may hold another scheduler's choice of these; a sampler named by the request decides them itself
_DECIDED_BY_THE_NAME = {"use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"}
_LCM_TRAINED_STEPS = 50  # of the published distillations; LCMScheduler's own default


@dataclass(frozen=True, slots=True)
class Schedule:
    """The calls of the UNet of one picture and the noise at each.

    `levels[i]` are (share of the picture, share of the noise) in the latents at call i. `order` calls make one step.
    `solver` is None where diffusers' own scheduler makes the steps.
    """

    prediction: str
    timesteps: tuple[float, ...]
    levels: tuple[tuple[float, float], ...]
    init_noise_sigma: float
    steps: int
    order: int
    train_timesteps: int
    solver: str | None
    numbers: Steps
    _rows: dict[tuple[int, int], Row] = field(default_factory=dict)

    @property
    def remembers(self) -> int:
        """How many past outputs a step looks at."""
        return REMEMBERED.get(self.solver or "", 0)

    @property
    def scales_input(self) -> bool:
        """Whether the UNet sees the latents divided by sqrt(sigma^2 + 1)."""
        return self.solver in EXPLODING

    def row(self, call: int, depth: int) -> Row:
        """The numbers of a call, `depth` past outputs being known. Only for a schedule with a solver."""
        key = (call, min(depth, self.remembers))
        found = self._rows.get(key)
        if found is None:
            found = self._rows[key] = SOLVERS[str(self.solver)](self.numbers, *key)
        return found


def template(kind: SchedulerKind, config: Mapping[str, Any]) -> Any:
    """The scheduler of diffusers for a checkpoint's settings; never stepped itself."""
    known = inspect.signature(kind.cls.__init__).parameters.keys() - _DECIDED_BY_THE_NAME
    kept = {key: value for key, value in config.items() if key in known}
    with warnings.catch_warnings():
        # Euler ancestral's constructor hands numpy a tensor in a way that numpy is about to drop
        warnings.simplefilter("ignore", DeprecationWarning)
        return kind.cls.from_config(kept, **kind.overrides)


def own_scheduler(shared: Any, steps: int) -> Any:
    """A scheduler of one's own, set to `steps`. Tables that stay the same (1000 betas) are shared with `shared`."""
    scheduler = copy.copy(shared)  # what a step changes is made anew by set_timesteps
    if isinstance(scheduler, LCMScheduler):
        scheduler.set_timesteps(steps, original_inference_steps=_lcm_original_steps(steps, scheduler))
    else:
        scheduler.set_timesteps(steps)
    return _without_surplus(scheduler, steps)


def _lcm_original_steps(steps: int, scheduler: LCMScheduler) -> int:
    """LCM takes its steps from a coarser schedule; the least divisor of all timesteps that is long enough."""
    trained = int(scheduler.config.num_train_timesteps)
    usual = min(_LCM_TRAINED_STEPS, trained)
    return next(count for count in range(max(steps, usual), trained + 1) if trained % count == 0)


def _without_surplus(scheduler: Any, steps: int) -> Any:
    """Take out the timestep -1 that rounding adds to "trailing" for some numbers of steps, such as 61."""
    surplus = int((scheduler.timesteps < 0).sum())
    if surplus:
        scheduler.timesteps = scheduler.timesteps[:-surplus]
        scheduler.num_inference_steps = steps
        if hasattr(scheduler, "sigmas"):
            kept = len(scheduler.timesteps)
            scheduler.sigmas = scheduler.sigmas[[*range(kept), -1]]
    return scheduler


def read_schedule(scheduler: Any, kind: SchedulerKind, steps: int) -> Schedule:
    """The numbers of a scheduler that is set to `steps`."""
    timesteps = [float(value) for value in scheduler.timesteps]
    sigmas = [float(value) for value in scheduler.sigmas] if hasattr(scheduler, "sigmas") else []
    alphas = [] if sigmas else [float(scheduler.alphas_cumprod[int(value)]) for value in timesteps]
    return Schedule(
        prediction=str(scheduler.config.prediction_type),
        timesteps=tuple(timesteps),
        levels=tuple(_levels(kind, sigmas, alphas)[: len(timesteps)]),
        init_noise_sigma=float(scheduler.init_noise_sigma),
        steps=steps,
        order=int(scheduler.order),
        train_timesteps=int(scheduler.config.num_train_timesteps),
        solver=kind.solver,
        numbers=_numbers(scheduler, kind, timesteps, sigmas, alphas),
    )


def _levels(kind: SchedulerKind, sigmas: Sequence[float], alphas: Sequence[float]) -> list[tuple[float, float]]:
    if alphas:
        return [(math.sqrt(alpha), math.sqrt(1 - alpha)) for alpha in alphas]
    if kind.solver in EXPLODING:
        return [(1.0, sigma) for sigma in sigmas]
    return [(1 / math.sqrt(sigma**2 + 1), sigma / math.sqrt(sigma**2 + 1)) for sigma in sigmas]


def _numbers(
    scheduler: Any, kind: SchedulerKind, timesteps: list[float], sigmas: list[float], alphas: list[float]
) -> Steps:
    prediction = str(scheduler.config.prediction_type)
    if kind.solver == "ddim":
        stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
        ahead = [_alpha(scheduler, int(timestep) - stride) for timestep in timesteps]
        return Steps(prediction, (), alphas, ahead)
    if kind.solver == "lcm":
        ahead = [*alphas[1:], alphas[-1]]
        scalings = [scheduler.get_scalings_for_boundary_condition_discrete(timestep) for timestep in timesteps]
        return Steps(prediction, (), alphas, ahead, [(float(skip), float(out)) for skip, out in scalings])
    return Steps(prediction, sigmas)


def _alpha(scheduler: Any, timestep: int) -> float:
    return float(scheduler.alphas_cumprod[timestep] if timestep >= 0 else scheduler.final_alpha_cumprod)


def plms_from(scheduler: PNDMScheduler, step: int) -> None:
    """Make a PNDM scheduler begin at a later step, its second timestep standing twice as at the usual beginning.

    diffusers' img2img only drops the first timesteps, so that the repeated one is lost and the last noise stays in.
    """
    whole = list(dict.fromkeys(int(value) for value in scheduler.timesteps))[step:]
    scheduler.timesteps = scheduler.timesteps.new_tensor([*whole[:1], *whole[1:2], *whole[1:]])
