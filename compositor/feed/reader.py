"""The front door: any product feed, entry by entry, in constant memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compositor.feed.entries import NEEDED, EntryMaker, FeedEntry
from compositor.feed.errors import FeedCode, FeedError, FeedLimits
from compositor.feed.products import ProductDocument
from compositor.feed.source import FeedSource
from compositor.feed.table import ProductTable, is_table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from compositor.feed.shapes import Wanted

__all__ = ["FeedEntry", "FeedError", "FeedLimits", "FeedReader", "open_feed"]


class FeedReader:
    """Iterating it reads the feed through; it may be iterated again.

    Attributes:
        document: where the entries come from.
        count: how many entries were read so far.

    Raises:
        FeedError: while iterating: cut off, over a limit, damaged, or without a single entry. What was yielded
            before was in the feed, but a feed that raises must not be used.
        OSError: the file cannot be read.

    """

    def __init__(self, document: ProductDocument | ProductTable, limits: FeedLimits) -> None:
        self.document = document
        self.count = 0
        self._limits = limits

    @property
    def kind(self) -> str:
        """`atom`, `rss`, `csv` or `tsv`."""
        return self.document.kind

    @property
    def partial(self) -> bool:
        """Whether the feed is damaged and was read as well as it can be; final once all of it has been read."""
        return self.document.partial

    def __iter__(self) -> Iterator[FeedEntry]:
        """The feed's entries, those that cannot be framed included."""
        self.count = 0
        document, most, make = self.document, self._limits.max_items, EntryMaker().make
        records = document.fields() if isinstance(document, ProductDocument) else document.rows()
        for position, fields in enumerate(records):
            if position >= most:
                raise FeedError(FeedCode.TOO_MANY_ITEMS, f"The feed has more than {most} entries.")
            self.count = position + 1
            yield make(position, fields)
        if not self.count:
            raise FeedError(FeedCode.EMPTY, "The feed has no entries.")


def open_feed(path: Path, limits: FeedLimits | None = None, wanted: Wanted | None = None) -> FeedReader:
    """Look at a feed's beginning and make its reader.

    Args:
        path: the feed's file.
        limits: how much of it is read.
        wanted: says of a field's name whether its text is needed; others may then be missing in entries, which is
            quicker. `id` and pictures' addresses are there in any case.

    Raises:
        FeedError: it is empty, has a DOCTYPE, is no feed, or is damaged from the start.
        OSError: the file cannot be read.

    """
    limits = limits or FeedLimits()
    return FeedReader(open_document(path, limits, wanted), limits)


def open_document(path: Path, limits: FeedLimits, wanted: Wanted | None = None) -> ProductDocument | ProductTable:
    """The feed's document, of the kind that its first characters show."""
    with FeedSource(path, limits) as source:
        _, head = next(source.decoded())
    if is_table(head):
        return ProductTable(path, limits)
    return ProductDocument(path, limits, wanted and (lambda name: name in NEEDED or wanted(name)))
