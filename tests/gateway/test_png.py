from __future__ import annotations

import io
import struct

import pytest
from PIL import Image

from gateway.png import SIGNATURE, NotPngError, png_size
from tests.support.fake_backend import png, png_chunk

WHOLE = png(40, 24, 1)


def test_a_pictures_size_is_read_as_pillow_reads_it() -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (31, 17)).save(buffer, "PNG")
    for data in (WHOLE, buffer.getvalue()):
        assert png_size(data) == Image.open(io.BytesIO(data)).size


@pytest.mark.parametrize("length", [0, 4, 8, 12, 20, 33, 40, len(WHOLE) - 1])
def test_a_cut_picture_is_refused(length: int) -> None:
    with pytest.raises(NotPngError):
        png_size(WHOLE[:length])


@pytest.mark.parametrize("position", range(0, len(WHOLE), 7))
def test_a_damaged_picture_is_refused(position: int) -> None:
    damaged = bytearray(WHOLE)
    damaged[position] ^= 0x40
    with pytest.raises(NotPngError):
        png_size(bytes(damaged))


@pytest.mark.parametrize(
    "data",
    [
        b"GIF89a" + WHOLE,
        WHOLE + b"\0",
        SIGNATURE + png_chunk(b"IEND", b""),
        SIGNATURE + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b""),
        SIGNATURE + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 5, 8, 2, 0, 0, 0)) + WHOLE[33:],
        SIGNATURE + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 99_999, 5, 8, 2, 0, 0, 0)) + WHOLE[33:],
        SIGNATURE + png_chunk(b"IHDR", b"") + WHOLE[33:],
    ],
    ids=["another first", "a tail", "no header", "pixels first", "no width", "too wide", "empty header"],
)
def test_what_is_no_whole_picture_is_refused(data: bytes) -> None:
    with pytest.raises(NotPngError):
        png_size(data)
