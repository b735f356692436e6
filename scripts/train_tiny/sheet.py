"""The contact sheet: pictures in rows with their prompts written underneath."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from scripts.train_tiny.architecture import NATIVE_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

PROMPTS = (
    "a red circle on a blue background",
    "a large yellow star on a purple background",
    "a small white heart in the top left corner on a red background",
    "a green triangle on the right on a black background",
    "a big orange ring at the bottom on a white background",
    "a black cross in the upper right on yellow",
    "on a green background, a tiny purple diamond at the top",
    "blue square, large, on the left, orange background",
    "A futuristic cityscape at sunset",
    "city skyline at night",
    "a cityscape by day",
    "sunset over the sea",
    "ocean at night with a moon",
    "mountains at sunrise",
    "a photo of a mountain range",
    "night sky with stars and moon",
    "pine forest at dusk",
    "desert dunes at sunset",
    "a snowy field at night",
    "rolling hills in the morning",
    "minimal pink product backdrop with a podium",
    "a blue podium",
    "a soft green gradient background",
    "plain studio backdrop",
    "dark wood texture",
    "light wooden planks",
    "golden bokeh lights",
    "blue bokeh background",
)
"""Prompts of the sheet: shapes, then scenes."""

_COLUMNS = 7
_GAP = 10
_CAPTION_HEIGHT = 48
_LINE = 13
_LETTERS = 24
_FONT_SIZE = 11
_PAPER, _INK = (255, 255, 255), (30, 30, 34)


def draw_sheet(pictures: Sequence[Image.Image], captions: Sequence[str], columns: int = _COLUMNS) -> Image.Image:
    """Lay 128x128 pictures out in rows of `columns`, each over its caption."""
    rows = -(-len(pictures) // columns)
    across, down = NATIVE_SIZE + _GAP, NATIVE_SIZE + _CAPTION_HEIGHT + _GAP
    sheet = Image.new("RGB", (columns * across + _GAP, rows * down + _GAP), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = _GAP + number % columns * across, _GAP + number // columns * down
        sheet.paste(picture, (left, top))
        for line, text in enumerate(textwrap.wrap(caption, _LETTERS)[:3]):
            draw.text((left, top + NATIVE_SIZE + 4 + line * _LINE), text, fill=_INK, font=font)
    return sheet
