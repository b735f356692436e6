"""Text layers: shaped by Raqm in any script and direction, wrapped and shrunk to their box."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, features

from compositor.compose import paint, wrap
from compositor.compose.colour import parse
from compositor.compose.fonts import FontChain, font_faults
from compositor.compose.outlines import inside
from compositor.compose.product import Tile
from compositor.design import Align, VerticalAlign

if TYPE_CHECKING:
    from pathlib import Path

    from compositor.compose.placement import Size, View
    from compositor.design import Box, TextLayer

MAX_FONT_PIXELS = 2000
_ACROSS = {Align.LEFT: 0.0, Align.CENTER: 0.5, Align.RIGHT: 1.0}
_DOWN = {VerticalAlign.TOP: 0.0, VerticalAlign.MIDDLE: 0.5, VerticalAlign.BOTTOM: 1.0}


@dataclass(frozen=True, slots=True)
class Setting:
    """A text broken into lines at one size of type; heights and widths in pixels, `ascent` is above the baseline."""

    lines: tuple[str, ...]
    font: FontChain
    ascent: int
    line_height: int
    stroke: int
    direction: str | None
    whole: bool
    """Whether every word stands on one line."""

    def width(self, line: str) -> float:
        """How wide a line comes out, with its outline."""
        return self.font.length(line, self.direction) + 2 * self.stroke


def text_tile(layer: TextLayer, text: str, font_path: Path, view: View) -> Tile:
    """One text layer as a tile of its box.

    Args:
        layer: how the text looks.
        text: what it says, its fields filled in.
        font_path: the font's file.
        view: how the output shows the frame.

    Raises:
        ComposeError: `bad_font`.

    """
    box = view.whole(layer.box)
    radius, padding = view.length(layer.radius), view.length(layer.padding)
    if layer.background is None:
        tile = Image.new("RGBA", (box.width, box.height), (*parse(layer.colour)[:3], 0))
    else:
        tile = paint.panel((box.width, box.height), layer.background, radius)
    room = max(1, box.width - 2 * padding), max(1, box.height - 2 * padding)
    with font_faults():
        setting = Typesetter(layer, text, font_path, view, room).fitted()
        tile.alpha_composite(_drawn(layer, setting, box, padding))
    return Tile(tile, box.x, box.y)


@dataclass(frozen=True, slots=True)
class Typesetter:
    """Sets one text into `room` (width, height in pixels), as large as fits."""

    layer: TextLayer
    text: str
    font_path: Path
    view: View
    room: tuple[int, int]

    def fitted(self) -> Setting:
        """The largest size of type, from `size` down to `min_size`, at which the text fits; else with an ellipsis.

        Raises:
            ComposeError: `bad_font`.

        """
        most = max(1, min(MAX_FONT_PIXELS, self.view.length(self.layer.size)))
        least = max(1, min(most, self.view.length(self.layer.min_size)))
        largest = self._set(most)
        if self._fits(largest):
            return largest
        best = self._set(least)
        if not self._fits(best):
            return self._cut(best)
        while most - least > 1:
            middle = (most + least) // 2
            tried = self._set(middle)
            if self._fits(tried):
                best, least = tried, middle
            else:
                most = middle
        return best

    def _set(self, size: int) -> Setting:
        font = FontChain(self.font_path, size)
        outline = self.layer.outline
        stroke = max(1, self.view.length(outline.width)) if outline else 0
        ascent, descent = font.metrics(self.text)
        way = wrap.direction(self.text) if features.check("raqm") else None
        lines = wrap.wrap(self.text, self.room[0] - 2 * stroke, lambda part: font.length(part, way))
        broken_at = [piece for line in lines for piece, _ in wrap.pieces(line)]
        whole = [piece for piece, _ in wrap.pieces(self.text)] == broken_at
        return Setting(tuple(lines), font, ascent, ascent + descent + 2 * stroke, stroke, way, whole)

    def _fits(self, setting: Setting) -> bool:
        """A word that had to be broken is no fit while smaller type may keep it whole."""
        lines = setting.lines
        if len(lines) > self.layer.max_lines or len(lines) * setting.line_height > self.room[1]:
            return False
        return setting.whole and all(setting.width(line) <= self.room[0] for line in lines)

    def _cut(self, setting: Setting) -> Setting:
        count = max(1, min(self.layer.max_lines, self.room[1] // setting.line_height))
        if len(setting.lines) <= count:
            return setting
        kept = list(setting.lines[:count])
        kept[-1] = wrap.shortened(kept[-1], self.room[0], setting.width)
        return replace(setting, lines=tuple(kept))


def _drawn(layer: TextLayer, setting: Setting, box: Box, padding: int) -> Image.Image:
    """The lines on a clear tile of the box's size."""
    colour = parse(layer.colour)
    size = box.width, box.height
    if layer.outline is None:
        tile = Image.new("RGBA", size, (*colour[:3], 0))
        _write(ImageDraw.Draw(tile), layer, setting, size, padding, fill=colour)
        return tile
    outline = parse(layer.outline.colour)
    tile = Image.new("RGBA", size, (*outline[:3], 0))
    letters = Image.new("L", size, 0)
    _write(ImageDraw.Draw(letters), layer, setting, size, padding, fill=255)
    if (solid := inside(letters, setting.stroke)) is not None:
        tile.paste(outline, mask=solid)
    how = {"fill": colour, "stroke_width": setting.stroke, "stroke_fill": outline}
    _write(ImageDraw.Draw(tile), layer, setting, size, padding, **how)
    return tile


def _write(
    draw: ImageDraw.ImageDraw, layer: TextLayer, setting: Setting, size: Size, padding: int, **how: Any
) -> None:
    free = size[1] - 2 * padding - setting.line_height * len(setting.lines)
    baseline = padding + free * _DOWN[layer.vertical_align] + setting.stroke + setting.ascent
    for number, line in enumerate(setting.lines):
        spare = size[0] - 2 * padding - setting.width(line)
        left = padding + spare * _ACROSS[layer.align] + setting.stroke
        at = left, round(baseline + number * setting.line_height)
        setting.font.draw(draw, at, line, setting.direction, **how)
