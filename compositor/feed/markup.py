"""Where entries begin and end in a feed's text.

lxml judges whether the document is well-formed (`judge`); this module finds the places, which keeps every byte of
the original at hand for the feed that is written again, and lets one broken entry stay one broken entry. Without a
DOCTYPE, which is refused before, XML has four kinds of markup besides text: tags, comments, CDATA sections and
processing instructions.
"""

from __future__ import annotations

import re
from html.entities import html5
from typing import TYPE_CHECKING, NamedTuple

from compositor.feed.errors import FeedCode, FeedError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_ENTRY_CHARS = 8 * 1024**2
"""No real entry comes near; it bounds what is held in memory."""
_TAG_REST = r"""(?:[^"'<>]++|"[^"]*+"|'[^']*+')*+>"""
_TAG_END = re.compile(_TAG_REST)
_ENDS = {"<!--": "-->", "<![CDATA[": "]]>", "<?": "?>"}
_OPENERS = r"<!--|<!\[CDATA\[|<\?"
_REFERENCE = re.compile(r"&(#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
NOT_XML = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


class Piece(NamedTuple):
    """One entry with what stands before it; the four parts of all pieces, and the tail, are the whole document."""

    before: str
    opening: str
    inner: str
    closing: str

    @property
    def length(self) -> int:
        """Characters of all four."""
        return len(self.before) + len(self.opening) + len(self.inner) + len(self.closing)


class Scanner:
    """Cuts a document, handed over in chunks, into entries.

    Args:
        local: the entries' local name: `entry` or `item`.
        root: the root element's name as written, prefix included.

    Attributes:
        tolerant: the document is not well-formed; an entry that is not closed ends where the next begins.
        rest: what came after the last entry.

    """

    def __init__(self, local: str, root: str) -> None:
        self._start = re.compile(rf"{_OPENERS}|<((?:[^\s<>/:!?]+:)?{local})(>|(?=[\s/]))")
        self._stop = re.compile(rf"{_OPENERS}|</((?:[^\s<>/:!?]+:)?channel|{re.escape(root)})\s*>")
        self._root_end = re.compile(rf"{_OPENERS}|</({re.escape(root)})\s*>")
        self.tolerant = False
        self.rest = ""

    def feed(self, text: str) -> Iterator[Piece]:
        """The entries that end in `text`, which follows what was fed before.

        Raises:
            FeedError: an entry, or what stands between two, is longer than `MAX_ENTRY_CHARS`.

        """
        buffer = self.rest + text
        done = 0
        while (piece := self.next(buffer, done)) is not None:
            yield piece
            done += piece.length
        self.keep(buffer[done:])

    def keep(self, rest: str) -> None:
        """Hold what belongs to the next entry until there is more.

        Raises:
            FeedError: it is longer than `MAX_ENTRY_CHARS`.

        """
        self.rest = rest
        if len(rest) > MAX_ENTRY_CHARS:
            raise FeedError(FeedCode.ENTRY_TOO_LARGE, f"An entry is longer than {MAX_ENTRY_CHARS} characters.")

    def finish(self) -> Iterator[Piece]:
        """The last entry of a document that is not well-formed, if it is not closed.

        Raises:
            FeedError: such a document ends before its root element does.

        """
        if not self.tolerant:
            return
        opened = self._opening(self.rest, 0)
        stop = _find(self._stop, self.rest, opened[1]) if opened else -1
        if opened and stop >= 0:
            start, end, _ = opened
            piece = Piece(self.rest[:start], self.rest[start:end], self.rest[end:stop], "")
            self.rest = self.rest[stop:]
            yield piece
        if _find(self._root_end, self.rest, 0) < 0:
            raise FeedError(FeedCode.TRUNCATED, "The feed ends too early: its last part is missing.")

    def next(self, buffer: str, done: int) -> Piece | None:
        """The first entry of `buffer` after `done`, with all that stands between; None while it is not all there."""
        opened = self._opening(buffer, done)
        if opened is None:
            return None
        start, inner, name = opened
        before, opening = buffer[done:start], buffer[start:inner]
        if opening.endswith("/>"):
            return Piece(before, opening, "", "")
        end = self._closing(buffer, inner, name)
        if end is None:
            return None
        if not buffer.startswith("</", end):  # tolerant, and the next entry begins here
            return Piece(before, opening, buffer[inner:end], "")
        after = buffer.find(">", end)
        if after < 0:
            return None
        return Piece(before, opening, buffer[inner:end], buffer[end : after + 1])

    def _opening(self, buffer: str, at: int) -> tuple[int, int, str] | None:
        """Start and end of the next entry's opening tag, and its name; None while it is not all there."""
        while (match := self._start.search(buffer, at)) is not None:
            name = match[1]
            if name is None:
                at = _skip(buffer, match)
                if at < 0:
                    return None
                continue
            end = match.end() if match[2] else self._tag_end(buffer, match.end())
            return None if end < 0 else (match.start(), end, name)
        return None

    def _tag_end(self, buffer: str, at: int) -> int:
        match = _TAG_END.match(buffer, at)
        if match:
            return match.end()
        return buffer.find(">", at) + 1 or -1 if self.tolerant else -1

    def _closing(self, buffer: str, inner: int, name: str) -> int | None:
        """Where the entry's content ends; None while that is not all there."""
        closing = f"</{name}"
        end = buffer.find(closing, inner)
        if end < 0 and not self.tolerant:
            return None
        simple = (
            end >= 0
            and buffer[end + len(closing) : end + len(closing) + 1] == ">"
            and not has_sections(buffer, inner, end)
            and buffer.find(f"<{name}", inner, end) < 0
        )
        return end if simple else self._closing_among_markup(buffer, inner, name)

    def _closing_among_markup(self, buffer: str, at: int, name: str) -> int | None:
        pattern = re.compile(rf"{_OPENERS}|<(/?){re.escape(name)}(?=[\s/>])")
        depth = 1
        while (match := pattern.search(buffer, at)) is not None:
            at = match.end()
            if match[1] is None:
                at = _skip(buffer, match)
                if at < 0:
                    return None
            elif match[1]:
                depth -= 1
                if depth == 0:
                    return match.start()
            elif self.tolerant:
                return match.start()
            else:
                at = self._tag_end(buffer, at)
                if at < 0:
                    return None
                depth += not buffer.endswith("/>", 0, at)
        return None


def _skip(buffer: str, opener: re.Match[str]) -> int:
    """The end of the comment, CDATA section or instruction that `opener` begins; -1 while it is not there."""
    mark = _ENDS[opener[0]]
    end = buffer.find(mark, opener.end())
    return end if end < 0 else end + len(mark)


def _find(pattern: re.Pattern[str], buffer: str, at: int) -> int:
    """Where `pattern` first has its group outside of sections; -1 if nowhere."""
    while (match := pattern.search(buffer, at)) is not None:
        if match[1] is not None:
            return match.start()
        at = _skip(buffer, match)
        if at < 0:
            break
    return -1


def has_sections(text: str, start: int = 0, end: int | None = None) -> bool:
    """Whether there is a comment, a CDATA section or an instruction."""
    return _follows_less_than(text, "!", start, end) or _follows_less_than(text, "?", start, end)


def _follows_less_than(text: str, mark: str, start: int, end: int | None) -> bool:
    """Whether `<` and `mark` stand together: faster than a search for both where `<` abounds and `mark` is rare."""
    at = text.find(mark, start, end)
    while at >= 0:
        if text[at - 1 : at] == "<":
            return True
        at = text.find(mark, at + 1, end)
    return False


def without_sections(inner: str) -> str:
    """`inner` without comments and instructions, its CDATA sections as plain text."""
    return _TOKEN_SECTIONS.sub(_as_text, inner)


_TOKEN_SECTIONS = re.compile(r"<!--.*?-->|<!\[CDATA\[(.*?)\]\]>|<\?.*?\?>", re.DOTALL)


def _as_text(section: re.Match[str]) -> str:
    data = section[1]
    return escape(data) if data else ""


def escape(text: str) -> str:
    """`text` as XML character data or attribute value; characters that XML cannot hold are left out."""
    text = NOT_XML.sub("", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def unescape(text: str) -> str:
    """References resolved. A bare `&` and names that HTML does not know stay as they are."""
    if "&" not in text:
        return text
    parts = text.split("&")
    for number in range(1, len(parts)):
        part = parts[number]
        if part.startswith("amp;"):
            parts[number] = f"&{part[4:]}"
            continue
        name, _, rest = part.partition(";")
        character = _USUAL.get(name)
        if character is None:
            return _REFERENCE.sub(_resolved, text)
        parts[number] = character + rest
    return "".join(parts)


_USUAL = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}


def _resolved(reference: re.Match[str]) -> str:
    name = reference[1]
    if not name.startswith("#"):
        return html5.get(f"{name};", reference[0])
    number = int(name.lstrip("#xX"), 16 if name[1] in "xX" else 10)
    if number > 0x10FFFF:  # noqa: PLR2004 - the last character of Unicode
        return ""
    return NOT_XML.sub("", chr(number))
