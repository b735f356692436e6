"""How many steps a picture takes, pass by pass, before anything of it is made. Plain arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from inference.engine.types import PictureSpec

PIXELS_PER_LATENT = 8
"""A side of the square of pixels that one latent stands for, in SDXL's architecture."""


class PassSteps(NamedTuple):
    """Steps of each pass, 0 for one that a picture has not. Schedulers of higher order make more calls."""

    base: int
    refiner: int = 0
    hires: int = 0


def steps_kept(steps: int, strength: float) -> int:
    """Steps that are drawn of a schedule of `steps` at a strength, at least one (diffusers' img2img)."""
    return max(1, min(int(steps * strength), steps))


def count_steps(spec: PictureSpec) -> PassSteps:
    """The steps of a picture's passes."""
    base = spec.steps if spec.init is None else steps_kept(spec.steps, spec.init.strength)
    refiner = hires = 0
    if spec.refiner is not None:
        base = max(1, round(base * spec.refiner.switch_at))
        refiner = max(1, round(spec.refiner.steps * (1 - spec.refiner.switch_at)))
    if spec.hires is not None:
        hires = steps_kept(spec.hires.steps, spec.hires.strength)
    return PassSteps(base, refiner, hires)
