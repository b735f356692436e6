from __future__ import annotations

import io
import struct

import pytest
from PIL import Image

from gateway.webp import NotWebpError, webp_size


def exif() -> bytes:
    tags = Image.Exif()
    tags[0x0131] = "a program"
    return tags.tobytes()


def webp(width: int = 40, height: int = 24, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture = Image.effect_noise((width, height), 90).convert("RGB")
    picture.save(buffer, "WEBP", **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def riff(*chunks: bytes) -> bytes:
    content = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(content)) + content


EXIF = exif()
WHOLE, LOSSLESS, EXTENDED = webp(), webp(lossless=True), webp(exif=EXIF)
LOSSY_CHUNK = WHOLE[12:]


@pytest.mark.parametrize(
    "options", [{}, {"lossless": True}, {"exif": EXIF}, {"exif": EXIF, "lossless": True}, {"quality": 100}]
)
def test_a_pictures_size_is_read_as_pillow_reads_it(options: dict[str, object]) -> None:
    data = webp(31, 517, **options)
    assert webp_size(data) == Image.open(io.BytesIO(data)).size == (31, 517)


@pytest.mark.parametrize("data", [WHOLE, LOSSLESS, EXTENDED], ids=["lossy", "lossless", "extended"])
@pytest.mark.parametrize("length", [0, 4, 8, 12, 15, 20, 24, 30, -2, -1])
def test_a_cut_picture_is_refused_whatever_its_head_says(data: bytes, length: int) -> None:
    cut = data[:length]
    with pytest.raises(NotWebpError):
        webp_size(cut)
    relabelled = cut[:4] + struct.pack("<I", max(len(cut) - 8, 0)) + cut[8:]
    with pytest.raises(NotWebpError):
        webp_size(relabelled)


def animation() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (40, 24), colour) for colour in ("red", "blue")]
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"GIF89a" + WHOLE,
        WHOLE + b"<script>",
        riff(LOSSY_CHUNK, LOSSY_CHUNK),
        riff(),
        riff(chunk(b"EXIF", b"x")),
        riff(chunk(b"VP8 ", b"\0" * 9)),
        riff(chunk(b"VP8 ", b"\x01" + LOSSY_CHUNK[9:])),
        riff(chunk(b"VP8L", b"\x2e\0\0\0\0")),
        riff(chunk(b"VP8X", b"\0" * 9), LOSSY_CHUNK),
        riff(chunk(b"VP8X", b"\0" * 4 + b"\x09\0\0\x09\0\0"), LOSSY_CHUNK),
        riff(chunk(b"VP8 ", LOSSY_CHUNK[8:14] + struct.pack("<HH", 0, 5) + b"\0" * 9)),
        animation(),
    ],
    ids=[
        "another first",
        "a tail",
        "two of them",
        "nothing",
        "no pixels",
        "a short head",
        "no key frame",
        "a wrong lossless head",
        "a short canvas",
        "another canvas",
        "no width",
        "an animation",
    ],
)
def test_what_is_no_whole_picture_is_refused(data: bytes) -> None:
    with pytest.raises(NotWebpError):
        webp_size(data)
