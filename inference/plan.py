"""From a job's input to what the engine draws: defaults, styles, bounds, seeds, every choice made."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from inference.engine.types import EngineJob, InitPicture, LoraUse, PictureSpec, UnknownCheckpointError
from inference.passes import hires_of, refiner_of
from inference.styles import UnknownStyleError
from models.errors import FieldProblem, InvalidInputError
from models.wire import RECEIPT_PROMPT_CHARS, SEED_COUNT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from inference.bounds import Bounds
    from inference.engine.types import Engine, EngineInfo
    from inference.inputs import InputPictures
    from inference.styles import Styles
    from inference.verify import Verification
    from models.wire import JobInput, OutputFormat

STRENGTH = 0.75  # of img2img where a request names none; AUTOMATIC1111's
QUALITY = 90


@dataclass(frozen=True, slots=True)
class FileChoice:
    """What the pictures' files are."""

    format: OutputFormat = "png"
    quality: int = QUALITY
    metadata: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """One job with nothing left open; drawing it twice gives the same pictures.

    Where pictures have to be fetched first, `prepare` does it and gives the plan that can be drawn; until then
    `inputs` is None and sizes that depend on the picture are not final. `check` is what the pictures are compared
    with, where the job verifies a receipt.
    """

    job: EngineJob
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    file: FileChoice = FileChoice()
    inputs: InputPictures | None = None
    check: Verification | None = None
    prepare: Callable[[], Awaitable[Plan]] | None = None

    @property
    def first(self) -> PictureSpec:
        """The first picture; the others differ in their seed alone."""
        return self.job.pictures[0]

    @property
    def seeds(self) -> list[int]:
        """The seed of each picture."""
        return [picture.seed for picture in self.job.pictures]

    @property
    def steps(self) -> int:
        """Denoising steps of all pictures, of every pass; less where a picture is started from."""
        first = self.first
        passes = (first.hires.steps if first.hires else 0) + (first.refiner.steps if first.refiner else 0)
        return len(self.job.pictures) * (first.steps + passes)

    @property
    def nbytes(self) -> int:
        """Memory of the pictures that it holds."""
        held = 0 if self.inputs is None else self.inputs.nbytes
        return held + (0 if self.check is None else self.check.nbytes)


def random_seed() -> int:
    """A seed for a caller that sent none."""
    return secrets.randbelow(SEED_COUNT)


def plan_job(
    job_id: str,
    wanted: JobInput,
    engine: Engine,
    bounds: Bounds,
    *,
    styles: Styles | None = None,
    inputs: InputPictures | None = None,
    further: Sequence[FieldProblem] = (),
    prefix: Sequence[str] = (),
    draw_seed: Callable[[], int] = random_seed,
) -> Plan:
    """Fill in the checkpoint's defaults and make the engine's job.

    Args:
        job_id: the job's id.
        wanted: what the caller sent, valid in itself.
        engine: knows checkpoints, refiners and LoRAs.
        bounds: what this server accepts.
        styles: the named templates.
        inputs: the pictures that `wanted` brings, read; None while they are not.
        further: problems found elsewhere, named in the same answer.
        prefix: where the input stands in the body, for the names of wrong fields.
        draw_seed: source of seeds.

    Raises:
        InvalidInputError: naming every field that is out of bounds here.

    """
    problems = list(further)
    info = _checkpoint(wanted, engine, problems)
    prompts = _prompts(wanted, info, styles, problems)
    first = replace(
        _first_picture(wanted, info, prompts, inputs),
        seed=wanted.seed if wanted.seed is not None else draw_seed(),
        checkpoint="" if wanted.checkpoint in (None, engine.info.checkpoint) else wanted.checkpoint or "",
    )
    known_size = (
        wanted.image is None or inputs is not None or (wanted.width is not None and wanted.height is not None)
    )
    problems += _size_problems(wanted, first, bounds, known=known_size)
    problems += _count_problems(wanted, first, bounds)
    first = replace(
        first,
        hires=hires_of(wanted, first, bounds, problems) if known_size else None,
        refiner=refiner_of(wanted, first, engine, bounds, problems),
        loras=_loras(wanted, engine, problems),
    )
    # Alone, a scheduler's name is the engine's to judge; together with other faults, or where the engine is asked
    # later, it is named here, so that one answer names them all.
    if (problems or not known_size) and first.scheduler.strip().lower() not in {
        *info.schedulers,
        *info.scheduler_aliases,
    }:
        problems.append(_scheduler_problem(first.scheduler, info))
    if problems:
        raise invalid(problems, prefix)
    pictures = tuple(replace(first, seed=(first.seed + index) % SEED_COUNT) for index in range(wanted.num_images))
    job = EngineJob(job_id, pictures, wanted.strict, wanted.preview_every, wanted.deadline_s)
    file = FileChoice(wanted.output_format, wanted.quality or QUALITY, wanted.metadata)
    return Plan(job, _ignored(wanted, first), (), file, inputs)


def invalid(problems: Sequence[FieldProblem], prefix: Sequence[str] = ()) -> InvalidInputError:
    """The error that names each problem, `prefix` before its field."""
    named = [FieldProblem(".".join((*prefix, problem.field)), problem.reason) for problem in problems]
    message = "; ".join(f"{problem.field}: {problem.reason}" for problem in named)
    return InvalidInputError(message, details=named)


def _scheduler_problem(name: str, info: EngineInfo) -> FieldProblem:
    return FieldProblem("scheduler", f"'{name}' is not known; there are {', '.join(info.schedulers)}")


def described(engine: Engine, name: str | None) -> EngineInfo:
    """What is known of a checkpoint; None and the engine's own name mean the one that is loaded from the start.

    Raises:
        UnknownCheckpointError: there is none of this name.

    """
    own = engine.info
    return own if name is None or name == own.checkpoint else engine.describe(name)


def _checkpoint(wanted: JobInput, engine: Engine, problems: list[FieldProblem]) -> EngineInfo:
    try:
        return described(engine, wanted.checkpoint)
    except UnknownCheckpointError as unknown:
        problems.append(FieldProblem("checkpoint", f"{unknown}; there are {', '.join(engine.checkpoints())}"))
        return engine.info


def _prompts(
    wanted: JobInput, info: EngineInfo, styles: Styles | None, problems: list[FieldProblem]
) -> tuple[str, str]:
    negative = info.defaults.negative_prompt if wanted.negative_prompt is None else wanted.negative_prompt
    if styles is None or not wanted.style:
        return wanted.prompt, negative
    try:
        styled = styles.apply(wanted.style, wanted.prompt, negative)
    except UnknownStyleError as unknown:
        problems.append(FieldProblem("style", unknown.reason))
        return wanted.prompt, negative
    if max(map(len, styled)) > RECEIPT_PROMPT_CHARS:
        problems.append(FieldProblem("style", f"with it a prompt has more than {RECEIPT_PROMPT_CHARS} characters"))
    return styled


def _first_picture(
    wanted: JobInput, info: EngineInfo, prompts: tuple[str, str], inputs: InputPictures | None
) -> PictureSpec:
    defaults = info.defaults
    guidance = defaults.guidance_scale if wanted.guidance_scale is None else wanted.guidance_scale
    strength = STRENGTH if wanted.strength is None else wanted.strength
    return PictureSpec(
        prompt=prompts[0],
        negative_prompt=prompts[1],
        width=inputs.width if inputs else wanted.width or defaults.width,
        height=inputs.height if inputs else wanted.height or defaults.height,
        steps=wanted.num_inference_steps or defaults.num_inference_steps,
        guidance_scale=guidance,
        seed=0,
        scheduler=wanted.scheduler or defaults.scheduler,
        syntax=wanted.prompt_syntax,
        init=InitPicture(inputs.pixels, strength, inputs.mask) if inputs else None,
    )


def _size_problems(wanted: JobInput, first: PictureSpec, bounds: Bounds, *, known: bool) -> list[FieldProblem]:
    """`known` is False while a side that was not named waits for the picture to be read."""
    problems = []
    for name in ("width", "height"):
        side = getattr(first if known else wanted, name)
        if side is not None and not bounds.min_side <= side <= bounds.max_side:
            reason = f"must be from {bounds.min_side} to {bounds.max_side} on this server, not {side}"
            problems.append(FieldProblem(name, reason))
    if known and not problems and first.width * first.height > bounds.max_pixels:
        reason = f"width times height must be at most {bounds.max_pixels} pixels on this server"
        problems += [FieldProblem("width", reason), FieldProblem("height", reason)]
    return problems


def _count_problems(wanted: JobInput, first: PictureSpec, bounds: Bounds) -> list[FieldProblem]:
    problems = []
    if first.steps > bounds.max_steps:
        problems.append(FieldProblem("num_inference_steps", f"must be at most {bounds.max_steps} on this server"))
    if wanted.num_images > bounds.max_images:
        problems.append(FieldProblem("num_images", f"must be at most {bounds.max_images} on this server"))
    if wanted.image is not None and wanted.strength == 0:
        problems.append(FieldProblem("strength", "must be above 0 with an image"))
    if wanted.mask is not None and wanted.image is None:
        problems.append(FieldProblem("mask", "needs an image"))
    return problems


def _loras(wanted: JobInput, engine: Engine, problems: list[FieldProblem]) -> tuple[LoraUse, ...]:
    if not wanted.loras:
        return ()
    known = engine.loras()
    for index, lora in enumerate(wanted.loras):
        if lora.name not in known:
            problems.append(FieldProblem(f"loras.{index}.name", f"'{lora.name}' is not in the catalogue"))
    return tuple(LoraUse(lora.name, float(lora.scale)) for lora in wanted.loras)


def _ignored(wanted: JobInput, first: PictureSpec) -> tuple[str, ...]:
    names = wanted.ignored_fields()
    if wanted.negative_prompt and not first.guided:
        names.append("negative_prompt")
    return tuple(names)
