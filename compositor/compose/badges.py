"""Badge layers: the first badge whose conditions hold, fitted into its box."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compositor.compose.conditions import all_hold
from compositor.compose.errors import ComposeCode, ComposeError
from compositor.compose.picture import open_picture
from compositor.compose.placement import fit
from compositor.compose.product import Tile

if TYPE_CHECKING:
    from pathlib import Path

    from compositor.compose.fields import Fields
    from compositor.compose.placement import View
    from compositor.design import Badge, BadgeLayer


def chosen(layer: BadgeLayer, fields: Fields) -> Badge | None:
    """The badge that is shown for a product, or None."""
    return next((badge for badge in layer.badges if all_hold(badge.when, fields)), None)


def badge_tile(layer: BadgeLayer, path: Path, view: View) -> Tile:
    """A badge's picture in the layer's box.

    Raises:
        ComposeError: `bad_asset`.

    """
    box = view.whole(layer.box)
    try:
        picture = open_picture(path)
        fitted = fit((picture.width, picture.height), (box.width, box.height), layer.fit, layer.anchor)
        image = picture.resampled((fitted.width, fitted.height), fitted.window, exact=True)
    except ComposeError as error:
        raise ComposeError(ComposeCode.BAD_ASSET, f"A badge: {error.message}") from error
    if layer.opacity < 1:
        image = image.convert("RGBA")
        image.putalpha(image.getchannel("A").point(lambda value: value * layer.opacity))
    return Tile(image, box.x + fitted.x, box.y + fitted.y)
