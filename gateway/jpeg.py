"""Is this a whole JPEG, and how large is its picture? Looks at its markers alone; no pixel is decoded."""

from __future__ import annotations

import re
import struct

BEGINNING = b"\xff\xd8"
END = b"\xff\xd9"
LARGEST_SIDE = 16_384
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""The start-of-frame markers: C4, C8 and CC, between them, mean something else (ITU-T T.81, table B.1)."""
SCAN = 0xDA
ALONE = frozenset(range(0xD0, 0xD9)) | {0x01}
"""Markers that have no length."""
NEXT_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
"""In a scan's data an FF is followed by 00 or a restart marker; anything else ends the scan."""
_LENGTH = struct.Struct(">H")
_FRAME = struct.Struct(">BHHB")


class NotJpegError(ValueError):
    """The bytes are not one whole JPEG; the message says what is wrong with them."""


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels, after every segment was found to lie within the file and its end at its end.

    Raises:
        NotJpegError: another format, cut off, with something before or after the picture, or too large.

    """
    if not data.startswith(BEGINNING):
        raise NotJpegError("no JPEG beginning")
    size: tuple[int, int] | None = None
    scans = 0
    position = len(BEGINNING)
    while True:
        marker, start = _marker(data, position)
        if marker == END[1]:
            break
        if marker in ALONE:
            position = start
            continue
        segment, position = _segment(data, start)
        if marker in FRAMES:
            if size is not None:
                raise NotJpegError("two frames")
            size = _frame(segment)
        elif marker == SCAN:
            scans += 1
            position = _after_scan(data, position)
    if start != len(data):
        raise NotJpegError("bytes after the end of the picture")
    if size is None or not scans:
        raise NotJpegError("no header or no pixels")
    return size


def _marker(data: bytes, position: int) -> tuple[int, int]:
    """The marker at a position, and where what belongs to it begins."""
    if data[position : position + 1] != b"\xff":
        raise NotJpegError("cut off" if position >= len(data) else "damaged")
    while data[position : position + 1] == b"\xff":  # any number of them may stand before a marker
        position += 1
    if position >= len(data):
        raise NotJpegError("cut off")
    return data[position], position + 1


def _segment(data: bytes, start: int) -> tuple[bytes, int]:
    """A segment's content, and where the next marker is."""
    if start + _LENGTH.size > len(data):
        raise NotJpegError("cut off")
    (length,) = _LENGTH.unpack_from(data, start)
    if length < _LENGTH.size:
        raise NotJpegError("damaged")
    if start + length > len(data):
        raise NotJpegError("cut off")
    return data[start + _LENGTH.size : start + length], start + length


def _frame(segment: bytes) -> tuple[int, int]:
    if len(segment) < _FRAME.size:
        raise NotJpegError("damaged")
    _, height, width, _ = _FRAME.unpack_from(segment)
    if not (0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE):
        raise NotJpegError("a size that no picture has")
    return width, height


def _after_scan(data: bytes, position: int) -> int:
    found = NEXT_MARKER.search(data, position)
    if found is None:
        raise NotJpegError("cut off")
    return found.start()
