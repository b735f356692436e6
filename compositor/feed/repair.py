"""A feed that is not well-formed, written so that it is: what can be kept is kept as it stands."""

from __future__ import annotations

import re
from html.entities import html5
from typing import TYPE_CHECKING

from lxml import etree  # type: ignore[import-untyped] # it ships no types

from compositor.feed.elements import elements
from compositor.feed.markup import NOT_XML, Piece, escape, has_sections, without_sections

if TYPE_CHECKING:
    from compositor.feed.fields import Names
    from compositor.feed.products import ProductDocument

DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'
_SPACES = {
    "g": "http://base.google.com/ns/1.0",
    "c": "http://base.google.com/cns/1.0",
    "atom": "http://www.w3.org/2005/Atom",
    "media": "http://search.yahoo.com/mrss/",
    "content": "http://purl.org/rss/1.0/modules/content/",
    "dc": "http://purl.org/dc/elements/1.1/",
}
_PREFIX = re.compile(r"<([^\s<>/!?:=\"'&]+):|<[^<>/!?][^<>]*?\s([^\s<>/!?:=\"'&]+):[^\s<>/!?:=\"'&]+\s*=")
_PLAIN_NAME = re.compile(r"(?:[A-Za-z_][\w.-]*:)?[A-Za-z_][\w.-]*")
_LOOSE = re.compile(
    r"(<!--.*?-->|<!\[CDATA\[.*?\]\]>|<\?.*?\?>)|&(?:(?:amp|lt|gt|quot|apos|#\d{1,7}|#x[0-9a-fA-F]{1,6});|"
    r"([A-Za-z][A-Za-z0-9]{1,31};)|)",
    re.DOTALL,
)
_CHANNEL = re.compile(r"<((?:[^\s<>/:!?]+:)?channel)(?=[\s>])[^<>]*>")


def undeclared_prefixes(text: str, names: Names) -> set[str]:
    """Prefixes used in some markup that neither it nor the feed's head declares."""
    if has_sections(text):
        text = without_sections(text)
    used = {prefix for pair in _PREFIX.findall(text) for prefix in pair if prefix and prefix != "xmlns"}
    return {prefix for prefix in used if not names.declares(prefix) and f"xmlns:{prefix}" not in text}


class Repair:
    """Writes one feed's parts so that together they are well-formed.

    Args:
        document: the feed, read through before.
        prefixes: those that it uses and does not declare.

    """

    def __init__(self, document: ProductDocument, prefixes: set[str]) -> None:
        self._root = document.root
        added = "".join(f' xmlns:{name}="{_SPACES.get(name, "urn:prefix:" + name)}"' for name in sorted(prefixes))
        tag = document.root_tag.removesuffix(">").removesuffix("/")
        self._open = f"{tag}{added}>"
        if not self._is_good(""):
            space = ' xmlns="http://www.w3.org/2005/Atom"' if document.kind == "atom" else ' version="2.0"'
            self._open = f"<{self._root}{space}{added}>"
        self._is_rss = document.kind == "rss"
        self._channel = ""

    def head(self, before: str) -> str:
        """The document's beginning, from what stands before the first entry."""
        after_root = before.partition(f"<{self._root}")[2].partition(">")[2]
        channel = _CHANNEL.search(after_root)
        self._channel = f"</{channel[1]}>" if channel and self._is_rss else ""
        middle = _tidy(after_root)
        if not self._is_good(middle + self._channel):
            middle = channel[0] if channel and self._channel else ""
        return DECLARATION + self._open + middle

    def entry(self, piece: Piece) -> str:
        """One entry, with a line end before it."""
        name = piece.opening[1:].rstrip("/>").split(maxsplit=1)[0]
        closing = piece.closing or ("" if piece.opening.endswith("/>") else f"</{name}>")
        for text in (piece.inner, _tidy(piece.inner)):
            whole = piece.opening + text + closing
            if self._is_good(whole):
                return f"\n{whole}"
        flat = [
            f"<{element.name}>{escape(element.own_text)}</{element.name}>"
            for element in elements(piece.inner)
            if element.own_text and _PLAIN_NAME.fullmatch(element.name)
        ]
        return f"\n<{name}>{''.join(flat)}</{name}>"

    def tail(self) -> str:
        """The document's end."""
        return f"\n{self._channel}</{self._root}>\n"

    def _is_good(self, content: str) -> bool:
        parser = etree.XMLParser(no_network=True, resolve_entities=False)
        try:
            etree.fromstring(f"{self._open}{content}</{self._root}>".encode(), parser)
        except etree.XMLSyntaxError:
            return False
        return True


def _tidy(text: str) -> str:
    """Loose ampersands and HTML's names made right, characters that XML cannot hold left out."""
    return _LOOSE.sub(_right, NOT_XML.sub("", text))


def _right(match: re.Match[str]) -> str:
    if match[1] is not None or (len(match[0]) > 1 and match[2] is None):
        return match[0]
    if match[2] in html5:
        return escape(html5[match[2]])
    return f"&amp;{match[0][1:]}"
