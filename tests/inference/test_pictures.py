from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from inference.pictures import PictureEncoder, data_url, encode, encode_preview

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.wire import OutputFormat

PIXELS = np.random.default_rng(1).integers(0, 256, (24, 40, 3), np.uint8)
FORMATS: list[OutputFormat] = ["png", "jpeg", "webp"]
TEXTS = ["a cat, (sun:1.2)\nSteps: 4, Seed: 1", "猫 🐈, café"]


def opened(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


def comment_of(picture: Image.Image) -> str:
    """The EXIF comment as viewers made for AUTOMATIC1111 read it: eight bytes of code, then UTF-16, big endian."""
    comment = picture.getexif().get_ifd(0x8769)[0x9286]
    assert comment[:8] == b"UNICODE\0"
    return bytes(comment[8:]).decode("utf-16-be")


def test_the_png_holds_exactly_the_pixels_and_nothing_else() -> None:
    picture = opened(encode(PIXELS).data)
    assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (40, 24))
    assert np.array_equal(np.asarray(picture), PIXELS)
    assert picture.info == {}


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_pixels_give_the_same_bytes(kind: OutputFormat) -> None:
    assert encode(PIXELS, kind, 80, "text") == encode(PIXELS.copy(), kind, 80, "text")


@pytest.mark.parametrize("kind", FORMATS)
def test_each_kind_is_what_it_says(kind: OutputFormat) -> None:
    made = encode(PIXELS, kind)
    assert opened(made.data).format == kind.upper()
    assert (made.media_type, made.suffix) == (f"image/{kind}", {"jpeg": ".jpg"}.get(kind, f".{kind}"))
    assert data_url(made).startswith(f"data:image/{kind};base64,")


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_quality_decides_the_size(kind: OutputFormat) -> None:
    sizes = [len(encode(PIXELS, kind, quality).data) for quality in (10, 50, 90)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_without_a_text_a_file_holds_no_exif(kind: OutputFormat) -> None:
    assert "exif" not in opened(encode(PIXELS, kind).data).info


@pytest.mark.parametrize("text", TEXTS)
def test_the_text_is_where_automatic1111_puts_it(text: str) -> None:
    png = opened(encode(PIXELS, "png", text=text).data)
    assert png.info == {"parameters": text}
    for kind in ("jpeg", "webp"):
        assert comment_of(opened(encode(PIXELS, kind, 90, text).data)) == text


def test_a_text_too_long_for_exif_is_cut_and_the_file_stays_whole() -> None:
    made = opened(encode(PIXELS, "jpeg", 90, "x" * 50_000).data)
    assert comment_of(made) == "x" * 32_500


async def test_encoding_runs_off_the_event_loop_and_gives_a_data_url(decode: Callable[[str], Any]) -> None:
    encoder = PictureEncoder()
    link = await encoder.data_url(await encoder.run(encode, PIXELS))
    assert np.array_equal(np.asarray(decode(link)), PIXELS)
    encoder.close()


def test_a_preview_is_a_small_jpeg(decode: Callable[[str], Any]) -> None:
    assert decode(encode_preview(PIXELS)).size == (40, 24)
