"""Samplers: where each picture stands in its noise schedule, and a step for a whole batch of them.

diffusers' schedulers keep the step index in themselves, so a shared one breaks under concurrency. Each slot owns a
`Sampler`, a place in a `Schedule` that is shared. Where the solver is one of `solvers.py`, pictures at different
steps of different schedules move together in a few tensor operations; every other scheduler runs diffusers' own
`step` on the slot's own copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import PNDMScheduler

from inference.engine.counting import steps_kept
from inference.engine.schedulers import ALIASES, KINDS, SchedulerKind, allowed, resolve_for, resolve_name
from inference.engine.schedules import Schedule, own_scheduler, plms_from, read_schedule, template

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

__all__ = ["ALIASES", "KINDS", "Sampler", "Samplers", "SchedulerKind", "resolve_name", "scale_inputs", "step_all"]

KEPT_SCHEDULES = 128  # a schedule is a few kilobytes
SECOND_ORDER = 2


class Samplers:
    """Makes samplers for one checkpoint, honouring its prediction type, betas and timestep spacing."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """`config` is the checkpoint's `scheduler_config.json`, with what `igen.json` overrides in it."""
        self._config = config
        self._templates = {name: template(KINDS[name], config) for name in allowed(config)}
        self._schedules: dict[tuple[str, int], Schedule] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Every scheduler that this checkpoint can be drawn with."""
        return tuple(self._templates)

    def resolve(self, name: str, spacing: str = "") -> str:
        """Our name for a scheduler given by any of its names; `spacing` as in `resolve_name`.

        Raises:
            UnknownSchedulerError: the name is not known, or this checkpoint cannot be drawn with it; names those that
                can.

        """
        return resolve_for(self._config, name, spacing)

    def make(self, name: str, steps: int, device: torch.device) -> Sampler:  # noqa: ARG002 - numbers live on the host
        """A fresh sampler set to `steps` steps, at the beginning of its schedule.

        Raises:
            UnknownSchedulerError: as `resolve`.

        """
        known = self.resolve(name)
        kind = KINDS[known]
        scheduler = None if kind.solver else own_scheduler(self._templates[known], steps)
        return Sampler(self._schedule(known, kind, steps), scheduler)

    def _schedule(self, name: str, kind: SchedulerKind, steps: int) -> Schedule:
        found = self._schedules.get((name, steps))
        if found is None:
            while len(self._schedules) >= KEPT_SCHEDULES:
                del self._schedules[next(iter(self._schedules))]
            found = read_schedule(own_scheduler(self._templates[name], steps), kind, steps)
            self._schedules[name, steps] = found
        return found


class Sampler:
    """The noise schedule of one picture and where it stands in it.

    `timesteps` are those of the calls to make, from where the picture begins to where it ends; `index` counts the
    calls made. There may be more calls than steps asked for where a scheduler's order needs more. The methods that
    choose the beginning and the end are for before the first step, the beginning first.
    """

    def __init__(self, schedule: Schedule, scheduler: Any = None) -> None:
        """`scheduler` is diffusers' own, set to the same steps and taken over, where the schedule has no solver."""
        self.schedule = schedule
        self.scheduler = scheduler
        self.timesteps: list[float] = list(schedule.timesteps)
        self.levels: list[tuple[float, float]] = list(schedule.levels)
        self.history: list[Tensor] = []
        self.index = 0
        self._begin_with(0)

    @property
    def steps(self) -> int:
        """Calls of the UNet that the picture needs, from its beginning to its end."""
        return len(self.timesteps)

    @property
    def finished(self) -> bool:
        """Whether every call was made."""
        return self.index >= self.steps

    @property
    def prediction_type(self) -> str:
        """`epsilon`, `v_prediction` or `sample`."""
        return self.schedule.prediction

    @property
    def init_noise_sigma(self) -> float:
        """What noise of variance one is multiplied by to begin a whole schedule without a picture."""
        return self.schedule.init_noise_sigma

    # ---- the part of the schedule that is drawn

    def begin_at(self, strength: float) -> None:
        """Leave out the first steps so that `strength` of them are drawn, at least one (diffusers' img2img)."""
        left_out = self.schedule.steps - steps_kept(self.schedule.steps, strength)
        if isinstance(self.scheduler, PNDMScheduler):
            self._begin_plms(left_out)
        else:
            self._begin_with(left_out * self.schedule.order)

    def begin_after(self, noise_frac: float) -> None:
        """Leave out the steps of the first `noise_frac` of the noise (diffusers' `denoising_start`); one is kept."""
        cutoff = self._cutoff(noise_frac)
        if isinstance(self.scheduler, PNDMScheduler):
            left_out = len({timestep for timestep in self.timesteps if timestep >= cutoff})  # one stands twice
            self._begin_plms(min(left_out, self.schedule.steps - 1))
            return
        drawn = sum(timestep < cutoff for timestep in self.timesteps)
        if self.schedule.order == SECOND_ORDER and drawn % 2 == 0:
            drawn += 1  # or the schedule would be cut between the two halves of a step
        self._begin_with(self.steps - max(1, drawn))

    def end_before(self, noise_frac: float) -> None:
        """Leave out the steps after the first `noise_frac` of the noise (diffusers' `denoising_end`); one is kept."""
        cutoff = self._cutoff(noise_frac)
        self.timesteps = self.timesteps[: max(1, sum(timestep >= cutoff for timestep in self.timesteps))]

    def _cutoff(self, noise_frac: float) -> int:
        trained = self.schedule.train_timesteps
        return round(trained - noise_frac * trained)

    def _begin_with(self, call: int) -> None:
        self._begin = call  # counted from the whole schedule's first
        self.timesteps, self.levels = self.timesteps[call:], self.levels[call:]
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(call)

    def _begin_plms(self, step: int) -> None:
        if not step:
            return
        plms_from(self.scheduler, step)
        self.timesteps = [float(value) for value in self.scheduler.timesteps]
        known = dict(zip(self.schedule.timesteps, self.schedule.levels, strict=True))
        self.levels = [known[timestep] for timestep in self.timesteps]

    # ---- noise on a picture that is there already

    def add_noise(self, latents: Tensor, noise: Tensor) -> Tensor:
        """A picture's latents as they would be where this sampler begins. Any shape, both the same."""
        return self._at(0, latents, noise)

    def noised(self, latents: Tensor, noise: Tensor) -> Tensor:
        """A picture's latents as they would be after the calls made so far; without noise after the schedule's last.

        Inpainting keeps what lies outside the mask by putting this in its place after every step.
        """
        return self._at(self.index, latents, noise)

    def _at(self, call: int, latents: Tensor, noise: Tensor) -> Tensor:
        if call >= len(self.levels):
            return latents
        kept, share = self.levels[call]
        return kept * latents + share * noise

    # ---- one step

    def input_scale(self) -> float:
        """What the latents are multiplied by for the UNet's next call."""
        if not self.schedule.scales_input:
            return 1.0
        sigma = self.levels[self.index][1]
        return float((sigma**2 + 1) ** -0.5)

    def row(self) -> tuple[float, ...]:
        """The numbers of the next call; see `solvers.Row`."""
        return self.schedule.row(self._begin + self.index, len(self.history))

    def remember(self, output: Tensor) -> None:
        """Keep what the next calls look back at."""
        if self.schedule.remembers:
            self.history = [output, *self.history][: self.schedule.remembers]

    def step_alone(self, output: Tensor, latents: Tensor) -> Tensor:
        """One step by diffusers, for a schedule without a solver; none of those add noise. float32 [1, 4, h, w]."""
        timestep = self.scheduler.timesteps[self._begin + self.index]
        stepped: Tensor = self.scheduler.step(output, timestep, latents, return_dict=False)[0]
        return stepped


def scale_inputs(samplers: Sequence[Sampler], latents: Tensor) -> Tensor:
    """Each picture's latents as the UNet wants them at its step. float32 [n, 4, h, w] in and out."""
    scales = [sampler.input_scale() for sampler in samplers]
    if all(scale == 1.0 for scale in scales):
        return latents
    return latents * _columns([scales], latents)[0]


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
    alone = [i for i, sampler in enumerate(samplers) if sampler.schedule.solver is None]
    if not alone:
        stepped = _solve(samplers, output, latents, generators)
    else:
        stepped = torch.empty_like(latents)
        for i in alone:
            stepped[i] = samplers[i].step_alone(output[i : i + 1], latents[i : i + 1])[0]
        together = [i for i in range(len(samplers)) if i not in alone]
        if together:
            chosen = torch.tensor(together, device=latents.device)
            mine, theirs = [samplers[i] for i in together], [generators[i] for i in together]
            stepped[chosen] = _solve(mine, output[chosen], latents[chosen], theirs)
    for sampler in samplers:
        sampler.index += 1
    return stepped


def _solve(
    samplers: Sequence[Sampler], output: Tensor, latents: Tensor, generators: Sequence[torch.Generator]
) -> Tensor:
    """The formula of `solvers.py` for every picture at once."""
    rows = [sampler.row() for sampler in samplers]
    p, q, a, b, *weights, s = _columns(zip(*rows, strict=True), latents)
    depth = max(sampler.schedule.remembers for sampler in samplers)
    made = p * latents + q * output if depth else output
    stepped = a * latents + b * made
    for k in range(max(len(sampler.history) for sampler in samplers)):
        # where a picture has no such past its weight is zero, and anything finite will do
        past = [sampler.history[k] if k < len(sampler.history) else latents[i] for i, sampler in enumerate(samplers)]
        stepped += weights[k] * torch.stack(past)
    if any(row[-1] for row in rows):
        stepped += s * _noise([row[-1] for row in rows], latents, generators)
    if depth:
        for sampler, one in zip(samplers, made.unbind(), strict=True):
            sampler.remember(one)
    return stepped


def _noise(shares: Sequence[float], latents: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Noise of each picture's own generator, drawn only where its step uses some. float32 [n, 4, h, w]."""
    drawn = torch.zeros(latents.shape)
    for i, (share, generator) in enumerate(zip(shares, generators, strict=True)):
        if share:
            drawn[i].normal_(generator=generator)  # the same numbers as torch.randn's
    return drawn.to(latents.device, non_blocking=True)


def _columns(values: Iterable[Sequence[float]], like: Tensor) -> tuple[Tensor, ...]:
    """Lists of one number a picture as tensors [n, 1, 1, 1] on the device of `like`, in one transfer."""
    table = torch.tensor(list(values), dtype=torch.float32)
    return table.to(like.device, non_blocking=True)[:, :, None, None, None].unbind()
