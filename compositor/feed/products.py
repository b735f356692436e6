"""A feed in XML, cut into entries in constant memory: Atom's `entry`, RSS's `item`.

`judge` says of each entry whether the document is well-formed so far. From its first objection on, and when bytes are
not valid in the declared encoding, the feed is `partial` and is read tolerantly. A document that ends before its root
element does is an error in either case.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from compositor.feed.errors import FeedCode, FeedError, FeedLimits
from compositor.feed.fields import Names, read_fields
from compositor.feed.judge import Judge
from compositor.feed.markup import Piece, Scanner
from compositor.feed.source import CHUNK_BYTES, FeedSource

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from compositor.feed.shapes import Shape, Wanted

MAX_PROLOG_CHARS = 1024**2
_PROLOG = re.compile(r"(?:\s++|<\?.*?\?>|<!--.*?-->)*+", re.DOTALL)
_ROOT = re.compile(r"<([^\s<>/!?]+)(?:[^\"'<>]++|\"[^\"]*+\"|'[^']*+')*+>")
_FEED_ROOT = re.compile(r"<((?:[^\s<>/:!?]+:)?(?:feed|rss|RDF))(?=[\s>])")
_DOCTYPE = re.compile(r"<!DOCTYPE", re.IGNORECASE)
_KINDS = {"feed": "atom", "rss": "rss", "rdf": "rss", "channel": "rss"}
_LOCAL = {"atom": "entry", "rss": "item"}


class ProductDocument:
    """An XML feed. `pieces` reads it through, once for each call.

    Attributes:
        kind: `atom` or `rss`.
        root: the root element's name as written; `root_tag` is its opening tag.
        names: how its elements' names become fields.
        partial: whether it was not well-formed, as far as it has been read.
        tail: after `pieces`, what follows the last entry.

    Raises:
        FeedError: on creation, when it is empty, has a DOCTYPE, is damaged or is no feed.

    """

    def __init__(self, path: Path, limits: FeedLimits, wanted: Wanted | None = None) -> None:
        self._path = path
        self._limits = limits
        self.partial = False
        self.tail = ""
        head = ""
        with FeedSource(path, limits) as source:
            for _, text in source.decoded():
                head += text
                if (root := _find_root(head)) is not None:
                    break
                if len(head) > MAX_PROLOG_CHARS:
                    raise FeedError(FeedCode.NOT_XML, "The feed does not begin like XML.")
            else:
                root = _find_root(head, complete=True)
        if root is None:
            raise FeedError(FeedCode.TRUNCATED, "The feed ends within its first element.")
        self.root, self.root_tag = root
        self.kind = _KINDS[self.root.rpartition(":")[2].lower()]
        self.names = Names(head, wanted)

    def pieces(self) -> Iterator[Piece]:
        """The entries, each with what stands before it.

        Raises:
            FeedError: cut off, over a limit, or with a DOCTYPE.

        """
        reading = self._begin()
        for _ in reading.windows():
            while (piece := reading.piece()) is not None:
                yield piece
        yield from reading.finish()
        self.tail = reading.rest

    def fields(self) -> Iterator[dict[str, str]]:
        """Each entry's fields, those that are wanted at least. A prefix that is declared nowhere makes it partial.

        Raises:
            FeedError: as `pieces`.

        """
        reading, names = self._begin(), self.names
        for _ in reading.windows():
            while True:
                if (shape := names.shapes.latest) is not None:
                    yield from reading.alike(shape)
                if (piece := reading.piece()) is None:
                    break
                yield self._long_way(piece)
        for piece in reading.finish():
            yield self._long_way(piece)

    def _begin(self) -> _Reading:
        return _Reading(self, FeedSource(self._path, self._limits), Scanner(_LOCAL[self.kind], self.root))

    def _long_way(self, piece: Piece) -> dict[str, str]:
        fields = read_fields(piece, self.names, tolerant=self.partial)
        if self.names.undeclared:
            self.partial = self.names.settle(piece.opening + piece.inner) or self.partial
        return fields


class _Reading:
    """One pass over a document: `windows` brings more of its text, `alike` and `piece` take entries from it."""

    def __init__(self, document: ProductDocument, source: FeedSource, scanner: Scanner) -> None:
        self._document = document
        self._source = source
        self._scanner = scanner
        self._judge = Judge()
        self._buffer = ""
        self._at = 0
        self._vouched: tuple[int, int] | None = None

    @property
    def rest(self) -> str:
        """What came after the last entry."""
        return self._scanner.rest

    def windows(self) -> Iterator[None]:
        """Each time there is more text to take entries from, until the document has ended."""
        judge, scanner = self._judge, self._scanner
        with self._source as source:
            for data, text in source.decoded():
                judge.hear(data, text)
                if source.repaired:
                    self._object()
                yield from self._window(scanner.rest + text)
                stuck = len(scanner.rest) > CHUNK_BYTES and not scanner.tolerant  # perhaps it never ends
                if stuck and not judge.approves_unfinished(scanner.rest):
                    self._object()
        if not scanner.tolerant and not judge.approves_end(scanner.rest):
            self._object()
        if scanner.tolerant:
            yield from self._window(scanner.rest)

    def _window(self, buffer: str) -> Iterator[None]:
        self._buffer, self._at, self._vouched = buffer, 0, None
        yield
        self._judge.moved(self._at)
        self._scanner.keep(self._buffer[self._at :])

    def _object(self) -> None:
        self._document.partial = self._scanner.tolerant = True

    def alike(self, shape: Shape) -> Iterator[dict[str, str]]:
        """The next entries' fields, as long as they have this shape; none once the document was found ill-formed."""
        if self._scanner.tolerant:
            return
        buffer, at, match, judge = self._buffer, self._at, shape.match, self._judge
        if self._vouched is None:
            self._vouched = judge.vouched(buffer, shape.entry)
        first, last = self._vouched
        while (found := match(buffer, at)) is not None:
            fields, end = found
            if (at < first or end > last) and not judge.approves(buffer, at, end):
                self._object()
                return
            self._at = at = end
            yield fields

    def piece(self) -> Piece | None:
        """The next entry with what stands before it; None while it is not all there."""
        piece = self._scanner.next(self._buffer, self._at)
        if piece is None:
            return None
        if not self._scanner.tolerant and not self._judge.approves(self._buffer, self._at, self._at + piece.length):
            self._object()
            return self.piece()  # an entry that is ill-formed may end elsewhere
        self._at += piece.length
        return piece

    def finish(self) -> Iterator[Piece]:
        """What `Scanner.finish` gives, after the last window."""
        return self._scanner.finish()


def _find_root(head: str, *, complete: bool = False) -> tuple[str, str] | None:
    """The root element's name and opening tag; None while it is not all there.

    Raises:
        FeedError: there is a DOCTYPE, or the root is none of a feed's.

    """
    prolog = _PROLOG.match(head)
    start = prolog.end() if prolog else 0
    junk = not _ROOT.match(head, start)
    if junk and not complete and len(head) - start < MAX_PROLOG_CHARS and _may_go_on(head[start:]):
        return None
    sought = _FEED_ROOT.search(head, start)
    doctype = _DOCTYPE.search(head, start, sought.start() if sought else len(head))
    if doctype and (junk or sought):
        raise FeedError(FeedCode.DOCTYPE, "The feed has a DOCTYPE, which is refused.")
    root = _ROOT.match(head, start)
    if root is not None and root[1].rpartition(":")[2].lower() in _KINDS:
        return root[1], root[0]
    if sought is not None:
        tag = _ROOT.match(head, sought.start())
        return (tag[1], tag[0]) if tag else None
    if root is None:
        raise FeedError(FeedCode.NOT_XML, "The feed is neither XML nor a table.")
    raise FeedError(FeedCode.NOT_A_FEED, f"The document is no product feed: its first element is <{root[1][:64]}>.")


def _may_go_on(head: str) -> bool:
    """Whether the prolog's next part, or the root's tag, is merely not all there yet."""
    if not head:
        return True
    if head.startswith(("<!--", "<?")):
        return True
    return head.startswith("<") and not head.startswith("<!") and ">" not in head
