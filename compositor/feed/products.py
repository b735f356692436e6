"""A feed in XML, cut into entries in constant memory: Atom's `entry`, RSS's `item`.

Every chunk goes through lxml's parser first, which builds nothing and says whether the document is well-formed so
far. From its first objection on, and when bytes are not valid in the declared encoding, the feed is `partial` and is
read tolerantly. A document that ends before its root element does is an error in either case.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lxml import etree  # type: ignore[import-untyped] # it ships no types

from compositor.feed.errors import FeedCode, FeedError, FeedLimits
from compositor.feed.fields import Names, read_fields
from compositor.feed.markup import Piece, Scanner
from compositor.feed.source import FeedSource

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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

    def __init__(self, path: Path, limits: FeedLimits) -> None:
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
        self.names = Names(head)

    def pieces(self) -> Iterator[Piece]:
        """The entries, each with what stands before it.

        Raises:
            FeedError: cut off, over a limit, or with a DOCTYPE.

        """
        scanner = Scanner(_LOCAL[self.kind], self.root)
        for text in self._judged(scanner):
            yield from scanner.feed(text)
        yield from scanner.finish()
        self.tail = scanner.rest

    def fields(self) -> Iterator[dict[str, str]]:
        """Each entry's fields. A prefix that is declared nowhere makes the feed partial.

        Raises:
            FeedError: as `pieces`.

        """
        scanner, names = Scanner(_LOCAL[self.kind], self.root), self.names
        for text in self._judged(scanner):
            buffer, at = scanner.rest + text, 0
            while True:
                shape = None if scanner.tolerant else names.shapes.latest
                if shape is not None and (found := shape.match(buffer, at)) is not None:
                    fields, at = found
                    yield fields
                    continue
                piece = scanner.next(buffer, at)
                if piece is None:
                    break
                at += piece.length
                yield self._long_way(piece)
            scanner.keep(buffer[at:])
        for piece in scanner.finish():
            yield self._long_way(piece)

    def _long_way(self, piece: Piece) -> dict[str, str]:
        fields = read_fields(piece, self.names, tolerant=self.partial)
        if self.names.undeclared:
            self.partial = self.names.settle(piece.opening + piece.inner) or self.partial
        return fields

    def _judged(self, scanner: Scanner) -> Iterator[str]:
        """The document's text in chunks; at lxml's first objection the scanner is told.

        Each chunk is handed on only after the parser has had the next one or the end: it may hold a fault back until
        it has seen what follows.
        """
        parser: etree.XMLParser | None = _judge()
        waiting = ""
        with FeedSource(self._path, self._limits) as source:
            for data, text in source.decoded():
                if parser is not None and (source.repaired or not _approves(parser, data)):
                    parser = None
                    self.partial = scanner.tolerant = True
                yield waiting
                waiting = text
        if parser is not None and not _approves_end(parser):
            self.partial = scanner.tolerant = True
        yield waiting


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


class _NothingBuilt:
    """A parser target that keeps nothing."""

    def doctype(self, _name: str, _public: str | None, _system: str | None) -> None:
        """Met only if the look at the document's head missed it."""
        raise FeedError(FeedCode.DOCTYPE, "The feed has a DOCTYPE, which is refused.")

    def close(self) -> None:
        """There is nothing to hand over."""


def _judge() -> etree.XMLParser:
    return etree.XMLParser(target=_NothingBuilt(), encoding="utf-8", no_network=True, huge_tree=False)


def _approves(parser: etree.XMLParser, data: bytes) -> bool:
    try:
        parser.feed(data)
    except etree.XMLSyntaxError:
        return False
    return True


def _approves_end(parser: etree.XMLParser) -> bool:
    try:
        parser.close()
    except etree.XMLSyntaxError:
        return False
    return True
