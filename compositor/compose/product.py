"""The product's tile: its picture fitted into the box, with background, round corners, rotation and shadow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageFilter

from compositor.compose import paint
from compositor.compose.colour import parse
from compositor.compose.placement import fit

if TYPE_CHECKING:
    from compositor.compose.picture import Picture
    from compositor.compose.placement import View
    from compositor.design import Box, Placement, Shadow

SOFT = 8
"""Blurs above this many pixels are made on a smaller mask; nobody can tell."""


_QUARTERS = {
    90.0: Image.Transpose.ROTATE_270,
    180.0: Image.Transpose.ROTATE_180,
    270.0: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class Tile:
    """Pixels and where their corner lies in the output."""

    image: Image.Image
    x: int
    y: int


def product_tiles(picture: Picture, placement: Placement, box: Box, view: View, *, exact: bool) -> list[Tile]:
    """What is drawn for the product, lowest first: its shadow if it has one, and itself.

    Raises:
        ComposeError: the picture is broken.

    """
    tile = _card(picture, placement, box, view, exact=exact)
    if placement.rotation % 360:
        tile = _turned(tile, placement.rotation)
    if placement.shadow is None:
        return [tile]
    return [_shadow(tile, placement.shadow, view), tile]


def _card(picture: Picture, placement: Placement, box: Box, view: View, *, exact: bool) -> Tile:
    padding = min(view.length(placement.padding), (min(box.width, box.height) - 1) // 2)
    inner = box.width - 2 * padding, box.height - 2 * padding
    fitted = fit((picture.width, picture.height), inner, placement.fit, placement.anchor)
    image = picture.resampled((fitted.width, fitted.height), fitted.window, exact=exact)
    radius = view.length(placement.radius)
    if placement.background is not None:
        at = (padding + fitted.x, padding + fitted.y)
        return Tile(_on_card(image, placement.background, box, at, radius), box.x, box.y)
    if radius:
        image = paint.with_mask(image, paint.rounded_mask(image.size, radius))
    return Tile(image, box.x + padding + fitted.x, box.y + padding + fitted.y)


def _on_card(image: Image.Image, background: str, box: Box, at: tuple[int, int], radius: int) -> Image.Image:
    """The picture on a filled card of the box's size, both within the card's round corners."""
    size = box.width, box.height
    red, green, blue, alpha = parse(background)
    if alpha == 255:  # noqa: PLR2004 - opaque
        card = Image.new("RGB", size, (red, green, blue))
    else:
        card = Image.new("RGBA", size, (red, green, blue, alpha))
    paint.onto(card, image, *at)
    return paint.with_mask(card, paint.rounded_mask(size, radius)) if radius else card


def _turned(tile: Tile, degrees: float) -> Tile:
    """Clockwise about its middle; the corners reach out of the box."""
    image = tile.image
    quarter = _QUARTERS.get(degrees % 360)
    if quarter is not None:
        turned = image.transpose(quarter)
    else:
        # `rotate` mixes transparent black into half-covered pixels unless the colours are premultiplied
        turned = image.convert("RGBA").convert("RGBa")
        turned = turned.rotate(-degrees, Image.Resampling.BICUBIC, expand=True).convert("RGBA")
    x, y = tile.x + (image.width - turned.width) // 2, tile.y + (image.height - turned.height) // 2
    return Tile(turned, x, y)


def _shadow(tile: Tile, shadow: Shadow, view: View) -> Tile:
    blur = view.length(shadow.blur)
    margin = 2 * blur
    outline = Image.new("L", (tile.image.width + 2 * margin, tile.image.height + 2 * margin), 0)
    seen = tile.image.getchannel("A") if tile.image.mode == "RGBA" else 255
    outline.paste(seen, (margin, margin, margin + tile.image.width, margin + tile.image.height))
    red, green, blue, alpha = parse(shadow.colour)
    mask = _blurred(outline, blur).point(lambda value: value * alpha / 255)
    soft = Image.new("RGB", outline.size, (red, green, blue))
    soft.putalpha(mask)
    return Tile(soft, tile.x - margin + view.length(shadow.x), tile.y - margin + view.length(shadow.y))


def _blurred(mask: Image.Image, blur: int) -> Image.Image:
    """`blur` as in CSS: about twice the standard deviation."""
    if blur <= 0:
        return mask
    if blur <= SOFT:
        return mask.filter(ImageFilter.GaussianBlur(blur / 2))
    factor = max(2, blur // SOFT)
    small = mask.reduce(factor).filter(ImageFilter.GaussianBlur(blur / 2 / factor))
    return small.resize(mask.size, Image.Resampling.BILINEAR)
