"""The passes after the first: the enlarged one, and the refiner's part."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference.engine.types import HiresPass, RefinerPass
from models.errors import FieldProblem

if TYPE_CHECKING:
    from inference.bounds import Bounds
    from inference.engine.types import Engine, PictureSpec
    from models.wire import HiresInput, JobInput

HIRES_SCALE = 2.0
HIRES_STRENGTH = {"lanczos": 0.5, "latent": 0.7}  # enlarged latents are blurred and need more drawing over
HIRES_SIDE_MAX = 4096
SWITCH_AT = 0.8


def hires_of(wanted: JobInput, first: PictureSpec, bounds: Bounds, problems: list[FieldProblem]) -> HiresPass | None:
    """The second pass; what is wrong with it goes to `problems`."""
    asked = wanted.hires
    if asked is None:
        return None
    width, height = hires_size(asked, first.width, first.height)
    if width < first.width or height < first.height or (width, height) == (first.width, first.height):
        reason = f"{width}x{height} is not larger than the picture's {first.width}x{first.height}"
        problems.append(FieldProblem("hires", reason))
    if width * height > bounds.max_hires_pixels or max(width, height) > HIRES_SIDE_MAX:
        reason = f"{width}x{height}: at most {bounds.max_hires_pixels} pixels on this server, {HIRES_SIDE_MAX} a side"
        problems.append(FieldProblem("hires", reason))
    steps = asked.steps or first.steps
    if steps > bounds.max_steps:
        problems.append(FieldProblem("hires.steps", f"must be at most {bounds.max_steps} on this server"))
    return HiresPass(width, height, steps, asked.strength or HIRES_STRENGTH[asked.upscaler], asked.upscaler)


def hires_size(asked: HiresInput, width: int, height: int) -> tuple[int, int]:
    """Width and height of the second pass in pixels, multiples of 8; one that is not named keeps the ratio."""
    if asked.width is not None or asked.height is not None:
        wide, high = asked.width, asked.height
        return wide or _eights((high or 0) * width / height), high or _eights((wide or 0) * height / width)
    scale = asked.scale or HIRES_SCALE
    return _eights(width * scale), _eights(height * scale)


def refiner_of(
    wanted: JobInput, first: PictureSpec, engine: Engine, bounds: Bounds, problems: list[FieldProblem]
) -> RefinerPass | None:
    """The refiner's part; what is wrong with it goes to `problems`."""
    if wanted.refiner is None:
        return None
    known = engine.refiners()
    if wanted.refiner not in known:
        there = f"there are {', '.join(known)}" if known else "there is none on this server"
        problems.append(FieldProblem("refiner", f"'{wanted.refiner}' is no refiner of the catalogue; {there}"))
    steps = first.steps if wanted.refiner_inference_steps is None else wanted.refiner_inference_steps
    if not 1 <= steps <= bounds.max_steps:
        reason = f"must be from 1 to {bounds.max_steps} with a refiner on this server"
        problems.append(FieldProblem("refiner_inference_steps", reason))
    switch_at = SWITCH_AT if wanted.high_noise_frac is None else wanted.high_noise_frac
    if not 0 < switch_at < 1:
        problems.append(FieldProblem("high_noise_frac", "must be above 0 and below 1 with a refiner"))
    negative = first.negative_prompt if wanted.refiner_negative_prompt is None else wanted.refiner_negative_prompt
    return RefinerPass(wanted.refiner, steps, float(switch_at), negative)


def _eights(side: float) -> int:
    return max(8, round(side / 8) * 8)
