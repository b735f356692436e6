"""Badges and texts of one product, in the order in which they are drawn; those that recur are kept."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from compositor.compose.badges import badge_tile, chosen
from compositor.compose.conditions import all_hold
from compositor.compose.errors import ComposeCode, ComposeError
from compositor.compose.fields import Fields
from compositor.compose.fonts import BUNDLED, drawable
from compositor.compose.frame import file_key
from compositor.compose.text import text_tile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from compositor.compose.job import ComposeJob
    from compositor.compose.placement import View
    from compositor.compose.product import Tile
    from compositor.design import BadgeLayer, TextLayer

KEPT = 64
KEPT_PIXELS = 16_000_000


class LayerCache:
    """Draws a product's badges and texts. Many products share a badge, and some share a price."""

    def __init__(self) -> None:
        self._kept: OrderedDict[object, Tile] = OrderedDict()
        self._pixels = 0

    def tiles(self, job: ComposeJob, view: View) -> Iterator[Tile]:
        """Badges first, texts over them.

        Raises:
            ComposeError: `bad_asset` or `bad_font`.

        """
        if not job.design.badges and not job.design.texts:
            return
        fields = Fields(job.fields)
        for layer in job.design.badges:
            if badge := chosen(layer, fields):
                yield self._badge(layer, _asset(job, badge.asset), view)
        for text_layer in job.design.texts:
            text = fields.fill(text_layer.text) if all_hold(text_layer.when, fields) else None
            if text is not None:
                path = _font(job, text_layer.font)
                if (shown := drawable(path, text)).strip():
                    yield self._text(text_layer, shown, path, view)

    def _badge(self, layer: BadgeLayer, path: Path, view: View) -> Tile:
        return self._get((layer, file_key(path), view), lambda: badge_tile(layer, path, view))

    def _text(self, layer: TextLayer, text: str, path: Path, view: View) -> Tile:
        return self._get((layer, text, file_key(path), view), lambda: text_tile(layer, text, path, view))

    def _get(self, key: object, make: Callable[[], Tile]) -> Tile:
        tile = self._kept.get(key)
        if tile is None:
            tile = self._kept[key] = make()
            self._pixels += tile.image.width * tile.image.height
            while len(self._kept) > 1 and (len(self._kept) > KEPT or self._pixels > KEPT_PIXELS):
                _, old = self._kept.popitem(last=False)
                self._pixels -= old.image.width * old.image.height
        self._kept.move_to_end(key)
        return tile


def _font(job: ComposeJob, font: str) -> Path:
    return BUNDLED[font] if font in BUNDLED else _asset(job, font)


def _asset(job: ComposeJob, name: str) -> Path:
    path = job.assets.get(name)
    if path is None or not path.is_file():
        raise ComposeError(ComposeCode.BAD_ASSET, "A font or badge of the design is missing.")
    return path
