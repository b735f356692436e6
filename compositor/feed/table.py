"""A feed as a table: CSV or TSV (or with semicolons or bars), the first row naming the fields."""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING

from compositor.feed.errors import FeedCode, FeedError, FeedLimits
from compositor.feed.shapes import MAX_FIELD_CHARS
from compositor.feed.source import FeedSource

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_LINE_CHARS = 1024**2
MAX_COLUMNS = 1000
_DELIMITERS = "\t,;|"
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_LINE = re.compile(r"\r\n|\n|\r(?!\Z)")
_NEEDED = {"id", "image_link", "image_url", "imagelink", "image"}


class ProductTable:
    """A table of products. `rows` reads it through, once for each call.

    Attributes:
        kind: `csv` or `tsv`.
        delimiter: what stands between cells.
        header: the first row as written.
        columns: the field of each column.
        partial: whether bytes were not valid in its encoding, as far as it has been read.

    Raises:
        FeedError: on creation, when it is empty or its first row cannot be read.

    """

    def __init__(self, path: Path, limits: FeedLimits) -> None:
        self._path = path
        self._limits = limits
        self.partial = False
        self.delimiter = ","
        with FeedSource(path, limits) as source:
            _, head = next(source.decoded())
        self.delimiter = _delimiter(_first_line(head))
        self.kind = "tsv" if self.delimiter == "\t" else "csv"
        self.header: list[str] = next(self._records(), [])
        self.columns = [column_name(cell) for cell in self.header]
        if len(self.columns) > MAX_COLUMNS:
            raise FeedError(FeedCode.BAD_TABLE, f"The table has more than {MAX_COLUMNS} columns.")

    def rows(self) -> Iterator[dict[str, str]]:
        """Each row's fields; of two columns for one field the first that is filled counts."""
        for cells in self.cells():
            fields: dict[str, str] = {}
            for name, cell in zip(self.columns, cells, strict=False):
                if name and not fields.get(name):
                    fields[name] = cell.strip()[:MAX_FIELD_CHARS]
            if "," in (more := fields.get("additional_image_link", "")):
                fields["additional_image_link"] = more.partition(",")[0].strip()
            yield fields

    def cells(self) -> Iterator[list[str]]:
        """Each row after the header, without blank ones.

        Raises:
            FeedError: cut off within a quoted cell or a row, or a row or cell is too long.

        """
        records = self._records()
        next(records, None)
        yield from records

    def _records(self) -> Iterator[list[str]]:
        with FeedSource(self._path, self._limits) as source:
            lines = _Lines(source)
            reader = csv.reader(lines, delimiter=self.delimiter)
            width = 0
            try:
                for cells in reader:
                    self.partial = self.partial or source.repaired
                    if lines.ended:
                        raise FeedError(FeedCode.TRUNCATED, "The table ends within a quoted cell.")
                    if not any(cells):
                        continue
                    width = width or len(cells)
                    if lines.unfinished and len(cells) < width:
                        raise FeedError(FeedCode.TRUNCATED, "The table's last row is cut off.")
                    yield cells
            except csv.Error as fault:
                raise FeedError(FeedCode.BAD_TABLE, f"Line {reader.line_num}: {fault}.") from None


class _Lines:
    """A source's lines with their ends.

    Attributes:
        ended: there is no line left, and one was asked for.
        unfinished: the last line has no line end.

    """

    def __init__(self, source: FeedSource) -> None:
        self._texts = source.decoded()
        self._ready: list[str] = []
        self._rest = ""
        self.ended = False
        self.unfinished = False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        """The next line, without NULs, which no cell may hold."""
        while not self._ready:
            chunk = next(self._texts, None)
            if chunk is None:
                return self._last()
            text = chunk[1]
            self._rest += text
            start = 0
            for end in _LINE.finditer(self._rest):
                self._ready.append(self._rest[start : end.end()])
                start = end.end()
            self._ready.reverse()
            self._rest = self._rest[start:]
            if len(self._rest) > MAX_LINE_CHARS:
                raise FeedError(FeedCode.ENTRY_TOO_LARGE, f"A line is longer than {MAX_LINE_CHARS} characters.")
        return self._ready.pop().replace("\0", "")

    def _last(self) -> str:
        if not self._rest:
            self.ended = True
            raise StopIteration
        line, self._rest = self._rest, ""
        self.unfinished = not line.endswith(("\r", "\n"))
        return line.replace("\0", "")


def is_table(head: str) -> bool:
    """Whether a feed that begins so is a table: no markup, and its first line names an id or a picture."""
    if head.lstrip().startswith("<"):
        return False
    line = _first_line(head)
    cells = next(csv.reader([line], delimiter=_delimiter(line)), [])
    return not _NEEDED.isdisjoint(map(column_name, cells))


def column_name(cell: str) -> str:
    """The field that a column's heading names: `g:Image Link` is `image_link`."""
    name = re.sub(r"[\s-]+", "_", cell.strip().lower())
    return name.removeprefix("g:")


def _first_line(head: str) -> str:
    for line in head.splitlines():
        if line.strip():
            return line[:MAX_LINE_CHARS]
    return ""


def _delimiter(line: str) -> str:
    bare = _QUOTED.sub("", line)
    return max(_DELIMITERS, key=lambda mark: (bare.count(mark), mark == ","))
