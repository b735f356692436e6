"""Made-up product pictures: edges, flat areas, gradients and grain, as JPEG files of a shop's usual weight."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFilter

if TYPE_CHECKING:
    from pathlib import Path

SIDES = (1200, 2000)
FRAME_SIDE = 1080
BOX = (190, 190, 700, 700)
QUALITY = 92


def product(seed: int, size: tuple[int, int] | None = None) -> Image.Image:
    """One picture; the same for the same seed."""
    draw_from = random.Random(seed)
    width, height = size or (draw_from.randint(*SIDES), draw_from.randint(*SIDES))
    ground = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    image = Image.blend(ground, Image.new("RGB", (width, height), "white"), 0.7)
    draw = ImageDraw.Draw(image)
    for _ in range(60):
        x, y, side = draw_from.randint(0, width), draw_from.randint(0, height), draw_from.randint(20, width // 4)
        colour = (draw_from.randint(0, 255), draw_from.randint(0, 255), draw_from.randint(0, 255))
        shape = draw_from.choice((draw.ellipse, draw.rectangle))
        shape((x, y, x + side, y + 5 + int(side * draw_from.random())), fill=colour)
    # grain of some pixels' size, as a sensor's after noise reduction; from our own seed, which effect_noise has not
    small = (max(1, width // 3), max(1, height // 3))
    grain = Image.frombytes("L", small, draw_from.randbytes(small[0] * small[1]))
    grain = grain.filter(ImageFilter.GaussianBlur(1)).resize((width, height), Image.Resampling.BICUBIC)
    return Image.blend(image, grain.convert("RGB"), 0.15).filter(ImageFilter.SMOOTH)


def write_products(folder: Path, count: int) -> list[Path]:
    """`count` product files; those that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"product-{number:03}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        if not path.exists():
            product(number).save(path, quality=QUALITY)
    return paths


def write_frame(path: Path) -> Path:
    """An opaque frame with a gradient border."""
    ground = Image.radial_gradient("L").resize((FRAME_SIDE, FRAME_SIDE))
    image = Image.merge("RGB", (ground, ground.point(lambda value: 255 - value // 2), ground.point(lambda _: 190)))
    draw = ImageDraw.Draw(image)
    x, y, width, height = BOX
    draw.rectangle((x, y, x + width, y + height), fill="white")
    image.save(path)
    return path
