"""What a file is by its first bytes, whatever its name or Content-Type says."""

from __future__ import annotations

import re

SIGNATURE_BYTES = 2048

_PICTURES = (
    re.compile(rb"\xff\xd8\xff"),  # JPEG
    re.compile(rb"\x89PNG\r\n\x1a\n"),
    re.compile(rb"GIF8[79]a"),
    re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
    re.compile(rb"BM.{12}", re.DOTALL),
)
_OTHERS = (
    (re.compile(rb"II\*\x00|MM\x00\*|II\+\x00|MM\x00\+"), "a TIFF picture"),
    (re.compile(rb".{4}ftyp(?:avif|avis)", re.DOTALL), "an AVIF picture"),
    (re.compile(rb".{4}ftyp(?:hei[cfmsx]|hev[cmsx]|mif1|msf1)", re.DOTALL), "a HEIC picture"),
    (re.compile(rb".{4}ftyp", re.DOTALL), "a video"),
    (
        re.compile(rb"\x00\x00\x00\x0cjP|\xff\x4f\xff\x51|\x00\x00\x00\x0cJXL|\xff\x0a"),
        "a JPEG 2000 or JPEG XL picture",
    ),
    (re.compile(rb"8BPS"), "a Photoshop file"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "a PostScript file"),
    (re.compile(rb"%PDF"), "a PDF file"),
    (re.compile(rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!"), "an archive"),
    (re.compile(rb"\x00\x00[\x01\x02]\x00"), "an icon"),
)
_TEXTS = (
    (re.compile(rb"<svg[\s>]|<svg:svg|<!doctype svg", re.IGNORECASE), "an SVG drawing"),
    (re.compile(rb"<!doctype html|<(?:html|head|body|script|title|meta)[\s>]", re.IGNORECASE), "an HTML page"),
    (re.compile(rb"<\?xml|<[a-zA-Z!]"), "an XML or HTML document"),
    (re.compile(rb"[\[{]\s*[\"\[{\]}0-9]"), "JSON"),
)


def looks_like(head: bytes) -> str | None:
    """None when `head`, a file's first bytes, begins a picture of a kind that can be framed; else what it is.

    The sentence is public. JPEG, PNG, GIF, WebP and BMP can be framed.
    """
    if not head:
        return "The file is empty."
    if any(kind.match(head) for kind in _PICTURES):
        return None
    what = next((name for kind, name in _OTHERS if kind.match(head)), None) or _text_kind(head)
    return f"The file is {what or 'of an unknown kind'}; use JPEG, PNG, WebP, GIF or BMP."


def _text_kind(head: bytes) -> str | None:
    encoding = "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    text = head.decode(encoding, errors="ignore").lstrip().encode()
    if text.startswith(b"<"):
        return next((name for kind, name in _TEXTS[:2] if kind.search(text)), _TEXTS[2][1])
    return _TEXTS[3][1] if _TEXTS[3][0].match(text) else None
