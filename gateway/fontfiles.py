"""Whether a file is a TrueType or OpenType font, by its table directory (OpenType specification, `otff`)."""

from __future__ import annotations

import struct

VERSIONS = (b"\x00\x01\x00\x00", b"OTTO", b"true")
NEEDED = (b"cmap", b"head", b"hhea", b"hmtx", b"maxp")
OUTLINES = (b"glyf", b"CFF ", b"CFF2", b"CBDT", b"sbix")
MOST_TABLES = 256


def font_problem(data: bytes) -> str | None:
    """Why `data` cannot be used as a font; None when its directory is sound. FreeType reads the rest, in a child."""
    if data[:4] == b"ttcf":
        return "is a collection of fonts; send one .ttf or .otf"
    if data[:4] in (b"wOFF", b"wOF2"):
        return "is a web font; send the .ttf or .otf"
    if data[:4] not in VERSIONS:
        return "is not a .ttf or .otf font"
    tables = _tables(data)
    if tables is None:
        return "is a damaged or cut-off font"
    missing = [name.decode() for name in NEEDED if name not in tables]
    if missing or not tables & set(OUTLINES):
        return f"is a font without the table {missing[0] if missing else 'glyf or CFF'}"
    return None


def _tables(data: bytes) -> set[bytes] | None:
    try:
        (count,) = struct.unpack_from(">H", data, 4)
        entries = [struct.unpack_from(">4sIII", data, 12 + 16 * place) for place in range(min(count, MOST_TABLES))]
    except struct.error:
        return None
    if any(offset + length > len(data) for _, _, offset, length in entries):
        return None
    return {name for name, *_ in entries}
