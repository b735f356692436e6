"""One product into one frame: open, fit, place, cover, badges, texts, encode."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compositor.compose import paint
from compositor.compose.encode import encode
from compositor.compose.frame import FrameCache
from compositor.compose.job import Composed
from compositor.compose.layers import LayerCache
from compositor.compose.picture import open_picture
from compositor.compose.product import product_tiles

if TYPE_CHECKING:
    from PIL import Image

    from compositor.compose.frame import PreparedFrame
    from compositor.compose.job import ComposeJob
    from compositor.compose.product import Tile


class Renderer:
    """Renders jobs one after another and keeps what they have in common."""

    def __init__(self) -> None:
        self._frames = FrameCache()
        self._layers = LayerCache()

    def render(self, job: ComposeJob) -> Composed:
        """Compose and encode one product.

        Raises:
            ComposeError: what is wrong with the picture, the frame or an asset.

        """
        frame = self._frames.get(job)
        image = self._draw(job, frame)
        return Composed(encode(image, job.design.output), image.width, image.height)

    def _draw(self, job: ComposeJob, frame: PreparedFrame) -> Image.Image:
        placement, view = job.design.placement, frame.view
        box = view.whole(frame.box) if frame.cover is None else view.seen(frame.box)
        picture = open_picture(job.source)
        tiles = product_tiles(picture, placement, box, view, exact=job.design.output.exact)
        canvas = frame.canvas.copy()
        _place(canvas, frame, tiles)
        for tile in self._layers.tiles(job, view):
            paint.onto(canvas, tile.image, tile.x, tile.y)
        return canvas


def render(job: ComposeJob) -> Composed:
    """Compose one product; a `Renderer` does many faster.

    Raises:
        ComposeError: what is wrong with the picture, the frame or an asset.

    """
    return Renderer().render(job)


def _place(canvas: Image.Image, frame: PreparedFrame, tiles: list[Tile]) -> None:
    """Draw the product's tiles, under the frame where it lies over them."""
    if frame.below is None or frame.cover is None:
        for tile in tiles:
            paint.onto(canvas, tile.image, tile.x, tile.y)
        return
    # only where the product lies has anything changed under the frame
    left, top = max(0, min(tile.x for tile in tiles)), max(0, min(tile.y for tile in tiles))
    right = min(canvas.width, max(tile.x + tile.image.width for tile in tiles))
    bottom = min(canvas.height, max(tile.y + tile.image.height for tile in tiles))
    if right <= left or bottom <= top:
        return
    region = frame.below.crop((left, top, right, bottom))
    for tile in tiles:
        paint.onto(region, tile.image, tile.x - left, tile.y - top)
    paint.onto(region, frame.cover.crop((left, top, right, bottom)), 0, 0)
    canvas.paste(region, (left, top))
