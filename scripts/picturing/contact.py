"""A contact sheet: pictures in rows, each over its caption."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

CELL = 128  # least pixels of a cell's side
GAP = 10
LINE = 13
FONT_SIZE = 11
PAPER, INK, EDGE = (255, 255, 255), (30, 30, 34), (190, 190, 196)


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """One picture of a sheet: uint8 [h, w, 3], or [h, w] in grey."""

    pixels: NDArray[np.uint8]
    caption: str

    @property
    def picture(self) -> Image.Image:
        """At least as large as a cell; smaller ones are enlarged by whole pixels."""
        picture = Image.fromarray(self.pixels).convert("RGB")
        times = max(1, CELL // max(picture.size))
        return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)

    @property
    def lines(self) -> list[str]:
        """The caption in lines no wider than the picture, where its words are not."""
        font, lines = ImageFont.load_default(FONT_SIZE), [""]
        for word in self.caption.split():
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and font.getlength(longer) > self.picture.width:
                lines.append(word)
            else:
                lines[-1] = longer
        return lines


def contact_sheet(rows: Sequence[Sequence[Cell]]) -> Image.Image:
    """Lay out cells in rows; each row is as high as its highest picture and longest caption."""
    heights = [max(cell.picture.height + LINE * len(cell.lines) for cell in row) + 2 * GAP for row in rows]
    width = max(sum(cell.picture.width + GAP for cell in row) for row in rows) + GAP
    sheet = Image.new("RGB", (width, sum(heights) + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        left = GAP
        for cell in row:
            sheet.paste(cell.picture, (left, top))
            # a white picture would have no edge on white paper
            draw.rectangle((left - 1, top - 1, left + cell.picture.width, top + cell.picture.height), outline=EDGE)
            for number, line in enumerate(cell.lines):
                draw.text((left, top + cell.picture.height + 4 + number * LINE), line, fill=INK, font=font)
            left += cell.picture.width + GAP
        top += height
    return sheet
