"""Is this a whole PNG, and how large is its picture? Looks at the frame of the file alone; no pixel is decoded."""

from __future__ import annotations

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LARGEST_SIDE = 16_384
_HEAD = struct.Struct(">I4s")
_SIZE = struct.Struct(">II")
_IHDR_BYTES = 13


class NotPngError(ValueError):
    """The bytes are not one whole PNG; the message says what is wrong with them."""


def png_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels, after every chunk's length and checksum was found right (PNG 3rd edition, 5).

    Raises:
        NotPngError: another format, cut off, damaged, with something before or after the picture, or too large.

    """
    if not data.startswith(SIGNATURE):
        raise NotPngError("no PNG signature")
    view = memoryview(data)
    names: list[bytes] = []
    position = len(SIGNATURE)
    while not names or names[-1] != b"IEND":
        name, position = _chunk(view, position)
        names.append(name)
    if position != len(data):
        raise NotPngError("bytes after the end of the picture")
    if names[0] != b"IHDR" or b"IDAT" not in names:
        raise NotPngError("no header or no pixels")
    return _header(view[len(SIGNATURE) :])


def _chunk(view: memoryview, position: int) -> tuple[bytes, int]:
    """The chunk's name and where the next one begins."""
    if position + 12 > len(view):
        raise NotPngError("cut off")
    length, name = _HEAD.unpack_from(view, position)
    end = position + 8 + length
    if end + 4 > len(view):
        raise NotPngError("cut off")
    if zlib.crc32(view[position + 4 : end]) != int.from_bytes(view[end : end + 4]):
        raise NotPngError("damaged")
    return bytes(name), end + 4


def _header(view: memoryview) -> tuple[int, int]:
    length, _ = _HEAD.unpack_from(view)
    width, height = _SIZE.unpack_from(view, _HEAD.size)
    if length != _IHDR_BYTES or not (0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE):
        raise NotPngError("a size that no picture has")
    return width, height
