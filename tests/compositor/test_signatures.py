from __future__ import annotations

import io

import pytest
from PIL import Image

from compositor.signatures import SIGNATURE_BYTES, looks_like


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 7), "red").save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_pictures(kind: str) -> None:
    assert looks_like(picture(kind)[:SIGNATURE_BYTES]) is None


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b"\xef\xbb\xbf  \r\n<HTML lang=en>", "an HTML page"),
        ("<html><body>".encode("utf-16"), "an HTML page"),
        (b"<!-- hello -->\n<html>", "an HTML page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'>", "an SVG drawing"),
        (b"<?xml version='1.0'?><!-- x --><svg onload='alert(1)'>", "an SVG drawing"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "an XML or HTML document"),
        (b'{"error": "no"}', "JSON"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "a PostScript file"),
        (b"\xc5\xd0\xd3\xc6\x1e\x00\x00\x00", "a PostScript file"),
        (b"8BPS\x00\x01", "a Photoshop file"),
        (b"%PDF-1.7", "a PDF file"),
        (b"\x00\x00\x00\x1cftypavif", "an AVIF picture"),
        (b"\x00\x00\x00\x1cftypheic", "a HEIC picture"),
        (b"\x00\x00\x00\x1cftypisom", "a video"),
        (b"PK\x03\x04", "an archive"),
        (b"\x00\x00\x01\x00\x01\x00", "an icon"),
        (b"hello", "of an unknown kind"),
        (b"\x89PNG\r\n", "of an unknown kind"),
        (b"RIFF\x00\x00\x00\x00WAVE", "of an unknown kind"),
        (bytes(range(256)), "of an unknown kind"),
    ],
)
def test_everything_else_is_named(head: bytes, what: str) -> None:
    assert what in (looks_like(head) or "")
