from __future__ import annotations

import io

import pytest
from PIL import Image

from gateway.jpeg import NotJpegError, jpeg_size


def exif() -> bytes:
    tags = Image.Exif()
    tags[0x0131] = "a program"
    return tags.tobytes()


def jpeg(width: int = 40, height: int = 24, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture = Image.effect_noise((width, height), 90).convert("RGB")
    picture.save(buffer, "JPEG", **options)  # type: ignore[arg-type]
    return buffer.getvalue()


WHOLE = jpeg()
EXIF = exif()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"quality": 100, "subsampling": 0},
        {"restart_marker_blocks": 1},
        {"comment": b"\xff\xd9"},
        {"exif": EXIF},
    ],
    ids=["baseline", "progressive", "best", "restarts", "an end in a comment", "exif"],
)
def test_a_pictures_size_is_read_as_pillow_reads_it(options: dict[str, object]) -> None:
    data = jpeg(31, 517, **options)
    assert jpeg_size(data) == Image.open(io.BytesIO(data)).size == (31, 517)


def test_fill_bytes_before_a_marker_are_let_pass() -> None:
    assert jpeg_size(WHOLE[:2] + b"\xff\xff" + WHOLE[2:]) == (40, 24)


@pytest.mark.parametrize("length", [*range(0, len(WHOLE), 13), len(WHOLE) - 2, len(WHOLE) - 1])
def test_a_cut_picture_is_refused(length: int) -> None:
    with pytest.raises(NotJpegError):
        jpeg_size(WHOLE[:length])


def with_frame(height: int, width: int) -> bytes:
    at = WHOLE.index(b"\xff\xc0")
    return WHOLE[: at + 5] + height.to_bytes(2) + width.to_bytes(2) + WHOLE[at + 9 :]


@pytest.mark.parametrize(
    "data",
    [
        b"GIF89a" + WHOLE,
        WHOLE + b"<script>",
        WHOLE + WHOLE,
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8\xff\xc0\x00\x00\xff\xd9",
        b"\xff\xd8\xff\xc0\x00\x03\x08\xff\xd9",
        with_frame(0, 5),
        with_frame(5, 20_000),
        WHOLE[: WHOLE.index(b"\xff\xc0")] + WHOLE[WHOLE.index(b"\xff\xc4") :],
        WHOLE[: WHOLE.index(b"\xff\xda")] + b"\xff\xd9",
        WHOLE[: WHOLE.index(b"\xff\xc4")] + WHOLE[WHOLE.index(b"\xff\xc0") :],
    ],
    ids=[
        "another first",
        "a tail",
        "two of them",
        "nothing",
        "a segment of no length",
        "a short frame",
        "no height",
        "too wide",
        "no frame",
        "no scan",
        "two frames",
    ],
)
def test_what_is_no_whole_picture_is_refused(data: bytes) -> None:
    with pytest.raises(NotJpegError):
        jpeg_size(data)
