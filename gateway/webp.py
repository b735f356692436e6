"""Is this a whole WebP, and how large is its picture? Looks at its chunks' heads alone; no pixel is decoded."""

from __future__ import annotations

import struct

LARGEST_SIDE = 16_384
FRAME_BITS = 14
LOSSY_START = b"\x9d\x01\x2a"
LOSSLESS_START = 0x2F
_HEAD = struct.Struct("<4sI")
_LOSSY_BYTES, _LOSSLESS_BYTES, _EXTENDED_BYTES = 10, 5, 10


class NotWebpError(ValueError):
    """The bytes are not one whole WebP; the message says what is wrong with them."""


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels, after every chunk was found to lie within the file (RFC 9649, 2).

    Raises:
        NotWebpError: another format, an animation, cut off, with something after the picture, or too large.

    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        raise NotWebpError("no WebP beginning")
    length = int.from_bytes(data[4:8], "little") + _HEAD.size
    if length != len(data):
        raise NotWebpError("cut off" if length > len(data) else "bytes after the end of the picture")
    canvas: tuple[int, int] | None = None
    size: tuple[int, int] | None = None
    position = 12
    while position < len(data):
        name, content, position = _chunk(data, position)
        if name in (b"ANIM", b"ANMF"):
            raise NotWebpError("an animation")
        if name == b"VP8X":
            canvas = _extended(content)
        elif name in (b"VP8 ", b"VP8L"):
            if size is not None:
                raise NotWebpError("two pictures")
            size = _lossy(content) if name == b"VP8 " else _lossless(content)
    if size is None:
        raise NotWebpError("no pixels")
    if canvas not in (None, size) or not all(0 < side <= LARGEST_SIDE for side in size):
        raise NotWebpError("a size that no picture has")
    return size


def _chunk(data: bytes, position: int) -> tuple[bytes, bytes, int]:
    """The chunk's name, the beginning of its content, and where the next one begins."""
    if position + _HEAD.size > len(data):
        raise NotWebpError("cut off")
    name, length = _HEAD.unpack_from(data, position)
    start = position + _HEAD.size
    end = start + length + length % 2  # chunks begin at even places
    if end > len(data):
        raise NotWebpError("cut off")
    return name, data[start : start + min(length, 16)], end


def _extended(content: bytes) -> tuple[int, int]:
    """The canvas: 24 bits each of width and height, less one."""
    if len(content) < _EXTENDED_BYTES:
        raise NotWebpError("damaged")
    return int.from_bytes(content[4:7], "little") + 1, int.from_bytes(content[7:10], "little") + 1


def _lossy(content: bytes) -> tuple[int, int]:
    """A key frame's head (RFC 6386, 9.1): 14 bits each of width and height, the two above are for display."""
    if len(content) < _LOSSY_BYTES or content[0] & 1 or content[3:6] != LOSSY_START:
        raise NotWebpError("damaged")
    mask = (1 << FRAME_BITS) - 1
    return int.from_bytes(content[6:8], "little") & mask, int.from_bytes(content[8:10], "little") & mask


def _lossless(content: bytes) -> tuple[int, int]:
    """14 bits each of width and height, less one (RFC 9649, 3.4)."""
    if len(content) < _LOSSLESS_BYTES or content[0] != LOSSLESS_START:
        raise NotWebpError("damaged")
    bits = int.from_bytes(content[1:5], "little")
    mask = (1 << FRAME_BITS) - 1
    return (bits & mask) + 1, (bits >> FRAME_BITS & mask) + 1
