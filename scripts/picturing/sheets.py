"""The gallery's sheets, each a function from a studio to rows of captioned pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from inference.inputs import read_picture
from inference.pictures import encode
from scripts.picturing.contact import Cell

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from models.wire import OutputFormat
    from scripts.picturing.studio import Pixels, Studio

    Rows = Sequence[Sequence[Cell]]

CIRCLE = "a red circle on a blue background"
SQUARE = "a large yellow square on a green background"
SKYLINE = "city skyline at night"
SEEDS = range(1, 7)
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
WEIGHTS = (0.5, 0.75, 1.0, 1.25, 1.5)
STYLES = ("night", "cinematic", "watercolour", "line-art", "pixel-art", "packshot")
GUIDANCES = (1.0, 2.5, 5.0, 8.0, 12.0)
STEPS = (1, 2, 4, 7, 10, 20)
FILES: tuple[tuple[OutputFormat, int], ...] = (("png", 90), ("jpeg", 90), ("jpeg", 10), ("webp", 90), ("webp", 10))


def seeds(studio: Studio) -> Rows:
    """One request of six pictures for each of three prompts."""
    return [
        [Cell(pixels, f"{prompt}, seed {seed}") for seed, pixels in zip(SEEDS, _several(studio, prompt), strict=True)]
        for prompt in (CIRCLE, SQUARE, SKYLINE)
    ]


def _several(studio: Studio, prompt: str) -> list[Pixels]:
    return studio.draw(prompt=prompt, seed=SEEDS[0], n=len(SEEDS)).pictures


def steps(studio: Studio) -> Rows:
    """More and more steps, and more and more guidance."""
    return [
        [
            Cell(studio.picture(prompt=CIRCLE, seed=3, steps=count), f"{count} step{'s'[: count - 1]}")
            for count in STEPS
        ],
        [
            Cell(studio.picture(prompt=CIRCLE, seed=3, guidance_scale=scale), f"guidance {scale:g}")
            for scale in GUIDANCES
        ],
    ]


def img2img(studio: Studio) -> Rows:
    """A picture and another prompt, at rising strength."""
    rows = []
    for prompt in (CIRCLE, "mountains at sunrise"):
        source = studio.picture(prompt=SQUARE, seed=2)
        drawn = [studio.picture(prompt=prompt, image=source, strength=by, seed=4, steps=20) for by in STRENGTHS]
        cells = [Cell(pixels, f"strength {by:g}") for by, pixels in zip(STRENGTHS, drawn, strict=True)]
        rows.append([Cell(source, f"the image; prompt: {prompt}"), *cells])
    return rows


def inpaint(studio: Studio) -> Rows:
    """A picture, masks, and what is drawn where they are white."""
    source = studio.picture(prompt="a small red circle on the left on a white background", seed=5)
    right, left = np.zeros((128, 128), np.uint8), np.zeros((128, 128), np.uint8)
    right[:, 64:] = 255
    left[16:112, :80] = 255
    rows = []
    for mask, shape in ((right, "a blue star on the right"), (left, "a green heart on the left")):
        prompt = f"{shape} on a white background"
        drawn = [
            studio.picture(prompt=prompt, image=source, mask=mask, strength=1.0, seed=seed) for seed in (1, 2, 3)
        ]
        cells = [Cell(pixels, f"seed {seed}") for seed, pixels in enumerate(drawn, 1)]
        rows.append([Cell(source, "the image"), Cell(mask, f"the mask; prompt: {prompt}"), *cells])
    return rows


def hires(studio: Studio) -> Rows:
    """The second pass by both upscalers: to the size that the checkpoint was trained for, and beyond it."""
    first = {"prompt": CIRCLE, "seed": 1}
    small = {**first, "width": 64, "height": 64}
    passes = [
        Cell(
            studio.picture(**small, hires={"scale": 2, "upscaler": upscaler, "strength": strength}),
            f"hires, {upscaler}, strength {strength:g}",
        )
        for upscaler, strength in (("lanczos", 0.2), ("lanczos", 0.5), ("latent", 0.7))
    ]
    beyond = studio.picture(**first, hires={"scale": 2})
    return [
        [Cell(enlarged(studio.picture(**small), 128), "64x64, enlarged without a second pass"), *passes],
        [
            Cell(enlarged(studio.picture(**first), 256), "128x128, enlarged without a second pass"),
            Cell(beyond, "hires to 256x256, lanczos, strength 0.5"),
        ],
    ]


def enlarged(pixels: Pixels, side: int) -> Pixels:
    """The picture by Lanczos' window, nothing drawn."""
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS))


def styles(studio: Studio) -> Rows:
    """A few of the bundled styles around two prompts."""
    rows = []
    for prompt in (CIRCLE, "mountains"):
        plain = Cell(studio.picture(prompt=prompt, seed=1), f"{prompt}; no style")
        styled = [Cell(studio.picture(prompt=prompt, seed=1, style=name), name) for name in STYLES]
        rows.append([plain, *styled])
    return rows


def schedulers(studio: Studio) -> Rows:
    """Every scheduler that this checkpoint can be drawn with, from the same seed."""
    names = studio.engine.info.schedulers
    rows = []
    for count in (10, 20):
        drawn = [studio.picture(prompt=CIRCLE, seed=3, scheduler=name, steps=count) for name in names]
        cells = [Cell(pixels, f"{name}, {count} steps") for name, pixels in zip(names, drawn, strict=True)]
        rows += [cells[:5], cells[5:]]
    return rows


def weights(studio: Studio) -> Rows:
    """One word of a prompt heavier and heavier."""
    return [
        [Cell(studio.picture(prompt=text, seed=2), text) for text in (prompt.format(f"{by:g}") for by in WEIGHTS)]
        for prompt in (
            "a (red:{}) circle on a blue background",
            "a red (star:{}) circle on a blue background",
            "city skyline at sunset, (night:{})",
        )
    ]


def previews(studio: Studio) -> Rows:
    """What a caller of /stream sees after each step, and the picture in the end."""
    rows = []
    for prompt in (CIRCLE, "sunset over the sea"):
        drawn = studio.draw(prompt=prompt, seed=1, preview_every=2)
        cells = [Cell(pixels, f"preview after step {step}") for step, pixels in drawn.previews]
        rows.append([*cells, Cell(drawn.pictures[0], f"{prompt}, finished")])
    return rows


def formats(studio: Studio) -> Rows:
    """The same picture in each form of file, enlarged so that its losses can be seen."""
    pixels = studio.picture(prompt=SKYLINE, seed=1)
    cells = []
    for kind, quality in FILES:
        file = encode(pixels, kind, quality).data
        again = read_picture(file, "image", pixels.size)[32:96, 32:96]
        quality_of = "" if kind == "png" else f", quality {quality}"
        cells.append(Cell(again.repeat(2, 0).repeat(2, 1), f"{kind}{quality_of}: {len(file) / 1000:.1f} kB"))
    return [[Cell(pixels, "the whole picture"), *cells]]


SHEETS: dict[str, Callable[[Studio], Rows]] = {
    function.__name__: function
    for function in (seeds, steps, img2img, inpaint, hires, styles, schedulers, weights, previews, formats)
}
"""By the names of their files, in the page's order."""
