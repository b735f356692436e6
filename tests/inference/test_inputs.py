"""Pictures of every kind that a caller may send, and files made to do harm."""

from __future__ import annotations

import hashlib
import io
import random
import struct
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from PIL import Image

from inference.bounds import Bounds
from inference.inputs import BadPictureError, decode, fit, read_inputs, size_for

BOUNDS = Bounds(64, 512, 128 * 512, 50, 4, max_input_pixels=1_000_000)


def saved(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, depth: int, colour: int, *chunks: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def reason(data: bytes, max_pixels: int = 1_000_000) -> str:
    with pytest.raises(BadPictureError) as caught:
        decode(data, "image", max_pixels)
    assert caught.value.field == "image"
    return caught.value.reason


# ---- kinds


def test_a_plain_picture_keeps_its_pixels() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (64, 72, 3), np.uint8)
    data = saved(Image.fromarray(pixels))
    read = read_inputs(data, None, None, None, BOUNDS)
    assert np.array_equal(read.pixels, pixels)
    assert read.sha256 == hashlib.sha256(data).hexdigest()
    assert (read.width, read.height, read.mask, read.mask_sha256) == (72, 64, None, None)


@pytest.mark.parametrize(
    ("picture", "kind"),
    [
        (Image.new("L", (64, 64), 200), "PNG"),
        (Image.new("1", (64, 64), 1), "PNG"),
        (Image.new("P", (64, 64), 0), "PNG"),
        (Image.new("LA", (64, 64), (200, 255)), "PNG"),
        (Image.new("RGBA", (64, 64), (1, 2, 3, 255)), "WEBP"),
        (Image.new("CMYK", (64, 64), (0, 0, 0, 0)), "JPEG"),
        (Image.new("L", (64, 64), 9), "JPEG"),
    ],
)
def test_every_mode_becomes_rgb(picture: Image.Image, kind: str) -> None:
    read = read_inputs(saved(picture, kind), None, None, None, BOUNDS)
    assert read.pixels.shape == (64, 64, 3)
    assert read.pixels.dtype == np.uint8


def test_cmyk_white_is_white() -> None:
    read = read_inputs(saved(Image.new("CMYK", (64, 64), (0, 0, 0, 0)), "JPEG"), None, None, None, BOUNDS)
    assert read.pixels.min() >= 253


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    levels = np.full((64, 64), 0x8080, np.uint16)
    read = read_inputs(saved(Image.fromarray(levels)), None, None, None, BOUNDS)
    assert set(np.unique(read.pixels)) == {128}


def test_what_is_transparent_shows_white() -> None:
    half = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    half.paste((0, 0, 255, 255), (32, 0, 64, 64))
    read = read_inputs(saved(half), None, None, None, BOUNDS)
    assert read.pixels[0, 0].tolist() == [255, 255, 255]
    assert read.pixels[0, 63].tolist() == [0, 0, 255]


def test_a_palettes_transparent_colour_shows_white() -> None:
    picture = Image.new("P", (64, 64), 0)
    picture.putpalette([255, 0, 0, 0, 255, 0])
    read = read_inputs(saved(picture, transparency=0), None, None, None, BOUNDS)
    assert read.pixels[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_honoured(kind: str) -> None:
    picture = Image.new("RGB", (128, 64), "white")
    picture.paste("black", (0, 0, 64, 64))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    read = read_inputs(saved(picture, kind, exif=exif), None, None, None, BOUNDS)
    assert (read.width, read.height) == (64, 128)
    assert read.pixels[10, 30].mean() < 50
    assert read.pixels[120, 30].mean() > 200


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animations_first_frame_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "lime", "blue")]
    data = saved(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    assert read_inputs(data, None, None, None, BOUNDS).pixels[0, 0].tolist() == [255, 0, 0]


# ---- harm


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "ICO", "PPM"])
def test_other_formats_are_refused(kind: str) -> None:
    assert reason(saved(Image.new("RGB", (64, 64)), kind)) == "is no PNG, JPEG or WebP"


@pytest.mark.parametrize("data", [b"", b"x", b"<svg/>", b"%!PS-Adobe-3.0\n", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    assert reason(data) in ("is no PNG, JPEG or WebP", "is damaged or not whole")


def test_a_bomb_is_refused_by_its_header_alone() -> None:
    head = png_of(65_000, 65_000, 8, 2, chunk(b"IDAT", zlib.compress(bytes(1_000_000))))
    assert "at most 1000000 pixels" in reason(head)
    mild = png_of(1001, 1000, 8, 2)
    assert reason(mild).startswith("is 1001x1000; at most")


def test_a_text_chunk_that_unpacks_to_much_is_refused() -> None:
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(200_000_000), 9))
    data = png_of(64, 64, 8, 2, text, chunk(b"IDAT", zlib.compress(bytes(64 * 193))))
    assert reason(data) == "is damaged or not whole"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_cut_file_is_refused(kind: str) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (64, 64, 3), np.uint8)
    data = saved(Image.fromarray(pixels), kind)
    assert reason(data[: len(data) // 2]) in ("is damaged or not whole", "is no PNG, JPEG or WebP")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's word on damaged EXIF data
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damaged_files_give_a_picture_or_a_reason_and_never_a_fault(kind: str) -> None:
    source = random.Random(kind)
    exif = Image.Exif()
    exif[0x0112] = 3
    whole = saved(Image.new("RGB", (40, 40), "red"), kind, exif=exif)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(source.randint(1, 8)):
            data[source.randrange(len(data))] = source.randrange(256)
        with suppress(BadPictureError):
            assert decode(bytes(data), "image", 1_000_000).mode in ("RGB", "RGBA")


# ---- size


@pytest.mark.parametrize(
    ("given", "width", "height", "expected"),
    [
        ((100, 200), 128, 64, (128, 64)),
        ((101, 99), None, None, (104, 96)),
        ((200, 100), 256, None, (256, 128)),
        ((200, 100), None, 64, (128, 64)),
        ((4000, 100), None, None, (512, 64)),
        ((4000, 4000), None, None, (256, 256)),
        ((10, 20), None, None, (64, 128)),
        ((1, 1), None, None, (64, 64)),
        ((1, 5000), None, None, (64, 512)),
    ],
)
def test_the_size_that_is_drawn(
    given: tuple[int, int], width: int | None, height: int | None, expected: tuple[int, int]
) -> None:
    assert size_for(given, width, height, BOUNDS) == expected


def test_every_size_is_within_bounds_and_a_multiple_of_eight() -> None:
    source = random.Random(5)
    for _ in range(2000):
        width, height = size_for((source.randint(1, 9000), source.randint(1, 9000)), None, None, BOUNDS)
        assert width % 8 == height % 8 == 0
        assert 64 <= width <= 512
        assert 64 <= height <= 512
        assert width * height <= BOUNDS.max_pixels


def test_a_picture_covers_the_size_and_is_cut_about_its_centre() -> None:
    picture = Image.new("RGB", (300, 100), "red")
    picture.paste("blue", (100, 0, 200, 100))
    cut = fit(picture, (100, 100))
    assert cut.size == (100, 100)
    assert cut.getpixel((3, 50))[2] > 200
    assert cut.getpixel((96, 50))[2] > 200


# ---- masks


def mask_of(size: tuple[int, int] = (64, 64)) -> Image.Image:
    mask = Image.new("L", size, 0)
    mask.paste(255, (size[0] // 2, 0, *size))
    return mask


def test_white_is_255_and_the_rest_0() -> None:
    image = saved(Image.new("RGB", (64, 64)))
    grey = mask_of()
    grey.paste(127, (0, 0, 16, 64))
    data = saved(grey)
    read = read_inputs(image, data, None, None, BOUNDS)
    assert read.mask is not None
    assert read.mask.shape == (64, 64)
    assert read.mask[:, :32].max() == 0
    assert read.mask[:, 32:].min() == 255
    assert read.mask_sha256 == hashlib.sha256(data).hexdigest()


def test_a_mask_follows_its_picture_when_that_is_cut() -> None:
    image = saved(Image.new("RGB", (256, 64)))
    read = read_inputs(image, saved(mask_of((512, 128))), 64, 64, BOUNDS)
    assert read.mask is not None
    assert read.mask[:, :31].max() == 0
    assert read.mask[:, 33:].min() == 255


def test_what_is_transparent_in_a_mask_is_kept() -> None:
    mask = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (0, 0, 8, 8))
    read = read_inputs(saved(Image.new("RGB", (64, 64))), saved(mask), None, None, BOUNDS)
    assert read.mask is not None
    assert int((read.mask == 255).sum()) == 64


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (Image.new("L", (64, 64), 0), "holds no white"),
        (Image.new("L", (64, 128), 255), "is 64x128 and the image 64x64"),
    ],
)
def test_masks_that_cannot_be_used(mask: Image.Image, reason: str) -> None:
    with pytest.raises(BadPictureError, match=reason) as caught:
        read_inputs(saved(Image.new("RGB", (64, 64))), saved(mask), None, None, BOUNDS)
    assert caught.value.field == "mask"
