"""From a job's input to what the engine draws: defaults, bounds, seeds, every choice made."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference.engine.types import EngineJob, PictureSpec
from models.errors import FieldProblem, InvalidInputError
from models.wire import SEED_COUNT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from inference.engine.types import EngineInfo
    from inference.settings import InferenceSettings
    from models.wire import JobInput


@dataclass(frozen=True, slots=True)
class Bounds:
    """What this server accepts, within the wire's own bounds. Sides in pixels."""

    min_side: int
    max_side: int
    max_pixels: int
    max_steps: int
    max_images: int

    @classmethod
    def of(cls, settings: InferenceSettings) -> Bounds:
        """The bounds that the operator set."""
        return cls(settings.min_side, settings.max_side, settings.max_pixels, settings.max_steps, settings.max_images)


@dataclass(frozen=True, slots=True)
class Plan:
    """One job with nothing left open; drawing it twice gives the same pictures."""

    job: EngineJob
    ignored: tuple[str, ...]

    @property
    def first(self) -> PictureSpec:
        """The first picture; the others differ in their seed alone."""
        return self.job.pictures[0]

    @property
    def seeds(self) -> list[int]:
        """The seed of each picture."""
        return [picture.seed for picture in self.job.pictures]


def random_seed() -> int:
    """A seed for a caller that sent none."""
    return secrets.randbelow(SEED_COUNT)


def plan_job(
    job_id: str,
    wanted: JobInput,
    info: EngineInfo,
    bounds: Bounds,
    *,
    prefix: Sequence[str] = (),
    draw_seed: Callable[[], int] = random_seed,
) -> Plan:
    """Fill in the checkpoint's defaults and make the engine's job.

    Args:
        job_id: the job's id.
        wanted: what the caller sent, valid in itself.
        info: the loaded checkpoint.
        bounds: what this server accepts.
        prefix: where the input stands in the body, for the names of wrong fields.
        draw_seed: source of seeds.

    Raises:
        InvalidInputError: naming every field that is out of bounds here.

    """
    first = _first_picture(wanted, info, wanted.seed if wanted.seed is not None else draw_seed())
    if problems := _problems(wanted, first, info, bounds):
        raise _invalid(problems, prefix)
    pictures = tuple(_with_seed(first, (first.seed + index) % SEED_COUNT) for index in range(wanted.num_images))
    return Plan(EngineJob(job_id, pictures, wanted.strict), tuple(wanted.ignored_fields()))


def unknown_scheduler(name: str, info: EngineInfo, prefix: Sequence[str] = ()) -> InvalidInputError:
    """The error for a scheduler that the engine does not know."""
    return _invalid([_scheduler_problem(name, info)], prefix)


def _first_picture(wanted: JobInput, info: EngineInfo, seed: int) -> PictureSpec:
    defaults = info.defaults
    negative = defaults.negative_prompt if wanted.negative_prompt is None else wanted.negative_prompt
    guidance = defaults.guidance_scale if wanted.guidance_scale is None else wanted.guidance_scale
    return PictureSpec(
        prompt=wanted.prompt,
        negative_prompt=negative,
        width=wanted.width or defaults.width,
        height=wanted.height or defaults.height,
        steps=wanted.num_inference_steps or defaults.num_inference_steps,
        guidance_scale=guidance,
        seed=seed,
        scheduler=wanted.scheduler or defaults.scheduler,
    )


def _with_seed(first: PictureSpec, seed: int) -> PictureSpec:
    return PictureSpec(
        first.prompt,
        first.negative_prompt,
        first.width,
        first.height,
        first.steps,
        first.guidance_scale,
        seed,
        first.scheduler,
    )


def _problems(wanted: JobInput, first: PictureSpec, info: EngineInfo, bounds: Bounds) -> list[FieldProblem]:
    problems = []
    if wanted.image_url is not None:
        problems.append(FieldProblem("image_url", "img2img is not available"))
    for name, side in (("width", first.width), ("height", first.height)):
        if not bounds.min_side <= side <= bounds.max_side:
            reason = f"must be from {bounds.min_side} to {bounds.max_side} on this server, not {side}"
            problems.append(FieldProblem(name, reason))
    if not problems and first.width * first.height > bounds.max_pixels:
        reason = f"width times height must be at most {bounds.max_pixels} pixels on this server"
        problems += [FieldProblem("width", reason), FieldProblem("height", reason)]
    if first.steps > bounds.max_steps:
        problems.append(FieldProblem("num_inference_steps", f"must be at most {bounds.max_steps} on this server"))
    if wanted.num_images > bounds.max_images:
        problems.append(FieldProblem("num_images", f"must be at most {bounds.max_images} on this server"))
    # Alone, a scheduler's name is the engine's to judge; together with other faults it is named here, so that one
    # answer names them all.
    known = {*info.schedulers, *info.scheduler_aliases}
    if problems and first.scheduler.strip().lower() not in known:
        problems.append(_scheduler_problem(first.scheduler, info))
    return problems


def _scheduler_problem(name: str, info: EngineInfo) -> FieldProblem:
    return FieldProblem("scheduler", f"'{name}' is not known; there are {', '.join(info.schedulers)}")


def _invalid(problems: Sequence[FieldProblem], prefix: Sequence[str]) -> InvalidInputError:
    named = [FieldProblem(".".join((*prefix, problem.field)), problem.reason) for problem in problems]
    message = "; ".join(f"{problem.field}: {problem.reason}" for problem in named)
    return InvalidInputError(message, details=named)
