"""The feed that goes out: the original, streamed through, with the links of framed pictures in it.

Entries without output stay as they are. A well-formed XML feed keeps every character outside of the links; what it
was not, it is made (`repair`). A table becomes RSS here, and XML a table in `feed_as_csv`. Files appear whole or not
at all.
"""

from __future__ import annotations

import csv
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from lxml import etree  # type: ignore[import-untyped] # it ships no types

from compositor.feed.edit import MORE_PICTURES, PICTURE, Mode, edited, split_links
from compositor.feed.elements import elements
from compositor.feed.entries import OTHER_PICTURE_FIELDS
from compositor.feed.errors import FeedCode, FeedError, FeedLimits
from compositor.feed.fields import all_fields, local_name
from compositor.feed.markup import Piece, escape
from compositor.feed.reader import open_document
from compositor.feed.repair import DECLARATION, Repair, undeclared_prefixes
from compositor.feed.table import ProductTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from compositor.feed.products import ProductDocument

    Links = Callable[[int], Sequence[str] | None]

MAX_COLUMNS = 300
_ENCODING = re.compile(r"""(<\?xml\s[^>]*?encoding\s*=\s*)(?:"[^"]*"|'[^']*')""")
_NO_NAME = re.compile(r"[^\w.-]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_NUMBER = re.compile(r"[+-]?[\d .,]+(?: ?[A-Za-z]{1,4}|%)?")


def rewrite_feed(source: Path, target: Path, links: Links, mode: Mode, limits: FeedLimits | None = None) -> None:
    """Write `source` to `target` as XML in UTF-8, with `links(position)` in the entries that have some.

    In mode `replace` the first link becomes image_link and further ones additional_image_link; in mode `additional`
    all become additional_image_link and image_link stays.

    Raises:
        FeedError: `source` cannot be used; `target` is as it was before.
        OSError: `target` cannot be written; it is as it was before.

    """
    document = open_document(source, limits or FeedLimits())
    with _whole_file(target) as out:
        if isinstance(document, ProductTable):
            _table_as_rss(document, out, links, mode)
            return
        missing = _copy(document, out, links, mode)
        if document.partial or missing:
            out.seek(0)
            out.truncate()
            _copy_repaired(document, out, links, mode, missing)


def feed_as_csv(source: Path, target: Path, links: Links, mode: Mode, limits: FeedLimits | None = None) -> None:
    """Write `source` to `target` as comma-separated UTF-8 with a header row; a table keeps its own columns.

    Cells that a spreadsheet would run as a formula begin with an apostrophe.

    Raises:
        FeedError: `source` cannot be used; `target` is as it was before.
        OSError: `target` cannot be written; it is as it was before.

    """
    document = open_document(source, limits or FeedLimits())
    with _whole_file(target) as out:
        rows = csv.writer(out, lineterminator="\r\n")
        table = _table_rows(document) if isinstance(document, ProductTable) else _product_rows(document)
        columns = next(table)
        main, more = columns.index(PICTURE), columns.index(MORE_PICTURES)
        rows.writerow(map(inert, columns))
        position = -1
        for position, cells in enumerate(table):
            if found := links(position):
                first, others = split_links(found, mode)
                cells[main] = cells[main] if first is None else first
                kept = [cells[more]] if cells[more] else []
                cells[more] = ",".join([link.replace(",", "%2C") for link in others] + kept)
            rows.writerow(map(inert, cells))
        if position < 0:
            raise FeedError(FeedCode.EMPTY, "The feed has no entries.")


def inert(cell: str) -> str:
    """`cell` as it may stand in a table that a spreadsheet opens: plain numbers as they are, formulas as text."""
    if cell.lstrip(" ").startswith(_FORMULA) and not _NUMBER.fullmatch(cell):
        return f"'{cell}"
    return cell


def _copy(document: ProductDocument, out: TextIO, links: Links, mode: Mode) -> set[str]:
    """Stream it through; the prefixes that it uses and does not declare."""
    missing: set[str] = set()
    position = -1
    for position, piece in enumerate(document.pieces()):
        before = piece.before if position else _in_utf_8(piece.before)
        missing |= undeclared_prefixes(before + piece.opening + piece.inner, document.names)
        found = links(position)
        changed = edited(piece, found, mode, document.names) if found else piece
        out.write(f"{before}{changed.opening}{changed.inner}{changed.closing}")
    if position < 0:
        raise FeedError(FeedCode.EMPTY, "The feed has no entries.")
    out.write(document.tail)
    return missing


def _in_utf_8(head: str) -> str:
    return _ENCODING.sub(r'\1"UTF-8"', head, count=1)


def _copy_repaired(document: ProductDocument, out: TextIO, links: Links, mode: Mode, missing: set[str]) -> None:
    repair = Repair(document, missing)
    for position, piece in enumerate(document.pieces()):
        if position == 0:
            out.write(repair.head(piece.before))
        found = links(position)
        out.write(repair.entry(edited(piece, found, mode, document.names, tolerant=True) if found else piece))
    out.write(repair.tail())


def _table_as_rss(table: ProductTable, out: TextIO, links: Links, mode: Mode) -> None:
    out.write(DECLARATION)
    out.write('<rss version="2.0" xmlns:g="http://base.google.com/ns/1.0">\n<channel>\n<title>Products</title>\n')
    names = [_element_name(name) for name in _with_picture(table.columns)]
    for position, cells in enumerate(table.cells()):
        values = [(name, cell.strip()) for name, cell in zip(names, cells, strict=False) if name and cell.strip()]
        if found := links(position):
            first, others = split_links(found, mode)
            if first is not None:
                values = [pair for pair in values if pair[0] != PICTURE] + [(PICTURE, first)]
            at = next((place for place, (name, _) in enumerate(values) if name == MORE_PICTURES), len(values))
            values[at:at] = [(MORE_PICTURES, link) for link in others]
        out.write("<item>")
        for name, value in values:
            parts = value.split(",") if name == MORE_PICTURES and value.count("://") > 1 else [value]
            out.writelines(f"<g:{name}>{escape(part.strip())}</g:{name}>" for part in parts)
        out.write("</item>\n")
    out.write("</channel>\n</rss>\n")


def _element_name(column: str) -> str:
    """A column's name as an element may have it: `size (eu)` is `size__eu_`; empty for one without a name."""
    name = _NO_NAME.sub("_", column)
    plain = re.sub(r"[^a-z0-9_.-]", "_", name)
    return next((made for made in (name, f"_{name}", f"_{plain}") if name and _is_name(made)), "")


def _is_name(name: str) -> bool:
    try:
        etree.QName("urn:any", name)
    except ValueError:
        return False
    return True


def _table_rows(table: ProductTable) -> Iterator[list[str]]:
    """Header and rows, all of one width, with the two columns for pictures."""
    fields = _with_picture(table.columns)
    header = list(table.header)
    for column in (PICTURE, MORE_PICTURES):
        if column in fields:
            header[fields.index(column)] = column
        else:
            header.append(column)
    yield header
    for cells in table.cells():
        yield (cells + [""] * len(header))[: len(header)]


def _product_rows(document: ProductDocument) -> Iterator[list[str]]:
    """Header and rows of an XML feed; what comes several times in an entry is joined with commas."""
    columns = {"id": 0, PICTURE: 1, MORE_PICTURES: 2}
    for fields in document.fields():
        for name in fields:
            if name not in columns and len(columns) < MAX_COLUMNS:
                columns[name] = len(columns)
    yield list(columns)
    for piece in document.pieces():
        cells = [""] * len(columns)
        for name, value in _values(piece, document).items():
            if name in columns:
                cells[columns[name]] = value
        yield cells


def _values(piece: Piece, document: ProductDocument) -> dict[str, str]:
    fields = all_fields(piece, document.names, tolerant=document.partial)
    if piece.inner.count("additional_image_link") <= 2:  # noqa: PLR2004 - one element's two tags
        return fields
    links = [e.text for e in elements(piece.inner) if e.depth == 1 and local_name(e) == MORE_PICTURES]
    fields[MORE_PICTURES] = ",".join(link.replace(",", "%2C") for link in links if link)
    return fields


def _with_picture(columns: list[str]) -> list[str]:
    """`columns`, the one that serves as image_link under that name."""
    other = next((name for name in OTHER_PICTURE_FIELDS if name in columns), None)
    if PICTURE in columns or other is None:
        return columns
    at = columns.index(other)
    return [*columns[:at], PICTURE, *columns[at + 1 :]]


@contextmanager
def _whole_file(target: Path) -> Iterator[TextIO]:
    """A text file that takes its name when it is complete, and leaves nothing behind when it is not."""
    part = target.with_name(f"{target.name}.part")
    try:
        with part.open("w+", encoding="utf-8", newline="") as out:
            yield out
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
