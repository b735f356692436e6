from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from inference.pictures import PictureEncoder, encode_png

if TYPE_CHECKING:
    from collections.abc import Callable

PIXELS = np.random.default_rng(1).integers(0, 256, (24, 40, 3), np.uint8)


def test_the_png_holds_exactly_the_pixels_and_nothing_else() -> None:
    picture = Image.open(io.BytesIO(encode_png(PIXELS)))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (40, 24))
    assert np.array_equal(np.asarray(picture), PIXELS)
    assert picture.info == {}


def test_the_same_pixels_give_the_same_bytes() -> None:
    assert encode_png(PIXELS) == encode_png(PIXELS.copy())


async def test_encoding_runs_off_the_event_loop_and_gives_a_data_url(decode: Callable[[str], Any]) -> None:
    encoder = PictureEncoder()
    link = await encoder.data_url(await encoder.png(PIXELS))
    assert np.array_equal(np.asarray(decode(link)), PIXELS)
    encoder.close()
