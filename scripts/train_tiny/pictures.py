"""What a training picture shows: the specifications, how they are drawn by lot, and which are held out."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (218, 38, 42),
    "green": (38, 158, 72),
    "blue": (42, 88, 214),
    "yellow": (247, 214, 48),
    "orange": (245, 130, 32),
    "purple": (132, 58, 172),
    "white": (250, 250, 250),
    "black": (18, 18, 20),
}
"""Colour names and their sRGB values, 0-255."""

SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "ring")
SIZES: dict[str, float] = {"small": 16.0, "medium": 24.0, "large": 36.0}
"""Size names and the half-width of a shape in pixels."""
POSITIONS: dict[str, tuple[int, int]] = {
    "centre": (0, 0),
    "left": (-1, 0),
    "right": (1, 0),
    "top": (0, -1),
    "bottom": (0, 1),
    "top left": (-1, -1),
    "top right": (1, -1),
    "bottom left": (-1, 1),
    "bottom right": (1, 1),
}
"""Position names and their direction from the centre, x to the right and y down."""

TIMES = ("day", "sunset", "sunrise", "night")
OUTDOOR = ("sea", "mountains", "city", "forest", "desert", "snow", "hills")
STUDIO = ("podium", "gradient")
SCENES = (*OUTDOOR, "stars", *STUDIO, "wood", "bokeh")
TINTS: dict[str, tuple[int, int, int]] = {
    "red": (205, 62, 62),
    "green": (92, 170, 112),
    "blue": (84, 130, 214),
    "yellow": (240, 208, 92),
    "orange": (240, 150, 72),
    "purple": (146, 98, 190),
    "white": (232, 232, 232),
    "black": (44, 44, 50),
    "pink": (240, 160, 184),
    "grey": (150, 152, 158),
}
"""Colours of backdrops, podiums and lights, 0-255 sRGB."""
FAULTS = ("blurry", "noisy", "pixelated", "washed out")

HELD_OUT_IN = 10
"""One combination of five in HELD_OUT_IN is never trained."""


@dataclass(frozen=True, slots=True)
class ShapePicture:
    """One flat shape on one flat background."""

    shape: str
    colour: str
    background: str
    size: str = "medium"
    position: str = "centre"


@dataclass(frozen=True, slots=True)
class ScenePicture:
    """One simple scene; `tint` matters to studio scenes and bokeh, `time` to those out of doors."""

    scene: str
    time: str = "day"
    tint: str = "grey"
    futuristic: bool = False
    moon: bool = False
    dark: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn lot: what is shown, how it was spoilt if it was, and the seed of all its small chances."""

    subject: ShapePicture | ScenePicture
    fault: str | None
    seed: tuple[int, int]


def held_out(subject: ShapePicture) -> bool:
    """Tell whether this combination is kept from training, by a checksum of its five words."""
    key = f"{subject.shape}|{subject.colour}|{subject.background}|{subject.size}|{subject.position}"
    return zlib.crc32(key.encode()) % HELD_OUT_IN == 0


def all_shape_pictures() -> Iterator[ShapePicture]:
    """Yield every combination of shape, colour, background, size and position, in a fixed order."""
    for shape, colour, background, size, position in itertools.product(SHAPES, COLOURS, COLOURS, SIZES, POSITIONS):
        if colour != background:
            yield ShapePicture(shape, colour, background, size, position)


def held_out_pictures(count: int, seed: int = 0) -> list[ShapePicture]:
    """Return `count` different held-out combinations in an order that `seed` fixes."""
    pool = [subject for subject in all_shape_pictures() if held_out(subject)]
    order = np.random.default_rng(seed).permutation(len(pool))
    return [pool[index] for index in order[:count]]


def sample_picture(seed: int, index: int, *, shape_share: float = 0.6, fault_share: float = 0.08) -> Picture:
    """Draw picture number `index` of the training stream `seed`; the same numbers give the same picture."""
    rng = np.random.default_rng([seed, index])
    is_shape = rng.random() < shape_share
    subject = _sample_shape(rng) if is_shape else _sample_scene(rng)
    fault = _pick(rng, FAULTS) if rng.random() < fault_share else None
    return Picture(subject, fault, (seed, index))


def _sample_shape(rng: np.random.Generator) -> ShapePicture:
    while True:
        subject = ShapePicture(
            shape=_pick(rng, SHAPES),
            colour=_pick(rng, tuple(COLOURS)),
            background=_pick(rng, tuple(COLOURS)),
            size=_pick(rng, tuple(SIZES)),
            position=_pick(rng, tuple(POSITIONS)),
        )
        if subject.colour != subject.background and not held_out(subject):
            return subject


def _sample_scene(rng: np.random.Generator) -> ScenePicture:
    scene = _pick(rng, SCENES)
    time = "night" if scene == "stars" else _pick(rng, TIMES)
    return ScenePicture(
        scene=scene,
        time=time if scene in OUTDOOR or scene == "stars" else "day",
        tint=_pick(rng, tuple(TINTS)),
        futuristic=scene == "city" and rng.random() < 0.4,  # noqa: PLR2004
        moon=time == "night" and rng.random() < 0.5,  # noqa: PLR2004
        dark=rng.random() < 0.4,  # noqa: PLR2004
    )


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]
