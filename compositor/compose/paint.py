"""Drawing one picture onto another, RGB or RGBA, clipped at the edges."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image, ImageChops, ImageDraw

from compositor.compose.colour import parse

if TYPE_CHECKING:
    from compositor.compose.placement import Size

SMOOTH = 4
"""Masks are drawn this many times as large and reduced, for smooth edges."""


def onto(base: Image.Image, tile: Image.Image, x: int, y: int) -> None:
    """Draw `tile` (RGB or RGBA) on `base` (RGB or RGBA) with its corner at `x`, `y`, which may lie outside."""
    left, top = max(0, -x), max(0, -y)
    right, bottom = min(tile.width, base.width - x), min(tile.height, base.height - y)
    if right <= left or bottom <= top:
        return
    if (left, top, right, bottom) != (0, 0, *tile.size):
        tile = tile.crop((left, top, right, bottom))
    at = (x + left, y + top)
    if tile.mode != "RGBA":
        base.paste(tile, at)
    elif base.mode == "RGBA":
        base.alpha_composite(tile, at)
    else:
        base.paste(tile, at, tile)


def rounded_mask(size: Size, radius: int) -> Image.Image:
    """A mask of a rectangle with round corners; `radius` in pixels, at most half the shorter side."""
    radius = min(radius, min(size) // 2)
    mask = Image.new("L", size, 255)
    if radius <= 0:
        return mask
    large = radius * SMOOTH
    corner = Image.new("L", (large, large), 0)
    ImageDraw.Draw(corner).ellipse((0, 0, 2 * large - 1, 2 * large - 1), fill=255)
    corner = corner.resize((radius, radius), Image.Resampling.BOX)
    mirrored, flipped = Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM
    right, bottom = size[0] - radius, size[1] - radius
    mask.paste(corner, (0, 0))
    mask.paste(corner.transpose(mirrored), (right, 0))
    mask.paste(corner.transpose(flipped), (0, bottom))
    mask.paste(corner.transpose(Image.Transpose.ROTATE_180), (right, bottom))
    return mask


def with_mask(tile: Image.Image, mask: Image.Image) -> Image.Image:
    """`tile` as RGBA, seen only through `mask` (L, of the same size)."""
    result = tile.convert("RGBA")
    result.putalpha(ImageChops.multiply(result.getchannel("A"), mask) if tile.mode == "RGBA" else mask)
    return result


def panel(size: Size, colour: str, radius: int) -> Image.Image:
    """A filled rectangle with round corners, RGBA."""
    red, green, blue, alpha = parse(colour)
    tile = Image.new("RGBA", size, (red, green, blue, alpha))
    if radius > 0:
        tile.putalpha(rounded_mask(size, radius).point(lambda value: value * alpha / 255))
    return tile
