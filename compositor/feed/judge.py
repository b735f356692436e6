"""Whether a feed is well-formed, told while it is read.

lxml's parser is the judge, and it builds nothing. It need not see all: leaving well-formed elements out of a document
changes nothing about whether it is well-formed, and an entry that an exact pattern has matched (`shapes`) is such an
element if its text is good too. What can be wrong with text is looked for in a whole chunk at once, several times
faster than a parser goes through it: characters that XML does not have, references that it does not know, and `]]>`.
"""

from __future__ import annotations

import re

from lxml import etree  # type: ignore[import-untyped] # it ships no types

from compositor.feed.errors import FeedCode, FeedError
from compositor.feed.markup import has_sections

_CHARACTERS = bytes(byte for byte in range(256) if byte >= ord(" ") or chr(byte) in "\t\n\r")
_NO_REFERENCE = re.compile(
    "&(?!(?:amp|lt|gt|quot|apos"
    "|#(?:0*+(?:9|10|13|3[2-9]|[4-9][0-9]|[1-9][0-9]{2,3}|[1-4][0-9]{4}))"
    "|#x0*+(?:9|[aAdD]|[2-9a-fA-F][0-9a-fA-F]|[1-9a-fA-F][0-9a-fA-F]{2}|[1-9a-cA-C][0-9a-fA-F]{3}));)"
)
"""An ampersand that begins none of XML's own references nor, plainly, one of a character that XML has. Rarer ones,
beyond U+CFFF, are left to the parser."""
_SECTION = re.compile(r"<!\[CDATA\[(?:[^\]]++|\](?!\]>))*+\]\]>")
_NEUTRAL = b";"
"""Text, which changes nothing, after each piece: the parser holds back an ampersand until it has seen a semicolon."""


class Judge:
    """Hears a document's text as it comes, and is shown those parts of it that nothing else vouches for.

    Offsets are into the reader's buffer: what it has not yet done with, up to the end of what was heard.
    """

    def __init__(self) -> None:
        self._parser = etree.XMLParser(target=_NothingBuilt(), encoding="utf-8", no_network=True, huge_tree=False)
        self._good_characters = 0
        self._seen = 0

    def hear(self, data: bytes, text: str) -> None:
        """The document goes on with `text`, which is `data` in UTF-8."""
        bad = data.translate(None, _CHARACTERS) or "\ufffe" in text or "\uffff" in text
        self._good_characters = 0 if bad else self._good_characters + len(text)

    def moved(self, by: int) -> None:
        """The buffer's first `by` characters are gone."""
        self._seen = max(0, self._seen - by)

    def vouched(self, buffer: str, entry: str) -> tuple[int, int]:
        """Between which offsets an element called `entry` is well-formed if it and its children are flat and plain.

        `buffer` begins where text may stand. What looks like a CDATA section there and is none does no harm: the
        comment, instruction or tag that it stands in is seen here or shown to the parser.
        """
        nothing = (0, 0)
        if len(buffer) > self._good_characters:
            return nothing
        end = buffer.rfind("</" + entry)
        if end < 0:
            return nothing
        text = buffer[:end]
        if has_sections(text):
            text = _SECTION.sub("", text)
            if has_sections(text):
                return nothing
        if _NO_REFERENCE.search(text) or ("]" in text and "]]>" in text):
            return nothing
        return self._seen, buffer.find(">", end) + 1

    def approves(self, buffer: str, start: int, end: int) -> bool:
        """Whether the document may go on with `buffer[start:end]`; text may stand at its end."""
        start = max(start, self._seen)
        return start >= end or self._feed(buffer[start:end].encode() + _NEUTRAL, end)

    def approves_unfinished(self, buffer: str) -> bool:
        """Whether the document may go on with all of `buffer`, which may end within anything."""
        return self._feed(buffer[self._seen :].encode(), len(buffer))

    def approves_end(self, buffer: str) -> bool:
        """Whether the document may end with `buffer`."""
        if not self.approves_unfinished(buffer):
            return False
        try:
            self._parser.close()
        except etree.XMLSyntaxError:
            return False
        return True

    def _feed(self, data: bytes, end: int) -> bool:
        self._seen = max(end, self._seen)
        try:
            self._parser.feed(data)
        except etree.XMLSyntaxError:
            return False
        return True


class _NothingBuilt:
    """A parser target that keeps nothing."""

    def doctype(self, _name: str, _public: str | None, _system: str | None) -> None:
        """Met only if the look at the document's head missed it."""
        raise FeedError(FeedCode.DOCTYPE, "The feed has a DOCTYPE, which is refused.")

    def close(self) -> None:
        """There is nothing to hand over."""
