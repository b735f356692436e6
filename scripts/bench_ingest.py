"""Our feed reader beside bare lxml; whole ingests, feed to rows; and the memory of a run of a million entries.

Rounds of the readers alternate, so that a change of the machine's load meets all: only their ratios mean anything.
Whole ingests have no peer; they are told by the clock, which the machine's other work slows, and by this process's
processor time, in which PostgreSQL's own is not.
"""

from __future__ import annotations

import gzip
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy.engine import make_url

from scripts.ingesting import parsing
from scripts.ingesting.feeds import KINDS, write_feed
from scripts.ingesting.memory import GOAL_MB
from scripts.ingesting.steps import PARSE, Measured, measured

if TYPE_CHECKING:
    from collections.abc import Sequence

ROWS_GOAL = 20_000


def compare_readers(console: Console, folder: Path, entries: int, rounds: int) -> None:
    """Feeds of every kind, read by all."""
    for kind in KINDS:
        path = folder / f"{kind}.xml"
        write_feed(path, entries, kind)
        title = f"{kind}, {entries:,} entries; the goal is {parsing.GOAL} of bare lxml"
        parsing.show(console, title, path.stat().st_size, entries, parsing.compare(path, entries, rounds))


def measure_rows(console: Console, folder: Path, entries: int, databases: Sequence[str | None]) -> None:
    """A feed read, and read into rows, in a fresh process for each database."""
    path = folder / "rows.xml"
    write_feed(path, entries, "mixed")
    table = Table("", "entries/s", "a second of processor time", "longest transaction")
    table.title = f"feed to rows, {entries:,} entries; the goal is {ROWS_GOAL:,} entries/s"
    for url in databases:
        for one in measured(path, url):
            name = one.step if one.step == PARSE else f"{one.step}, {kind_of(url)}"
            table.add_row(
                name, f"{one.rate:,.0f}", f"{one.entries / one.cpu_s:,.0f}", f"{one.longest_s * 1000:.0f} ms"
            )
    console.print(table)


def measure_memory(console: Console, folder: Path, entries: int, databases: Sequence[str | None]) -> None:
    """A run of a gzipped feed: read, read into rows, published; in a fresh process for each database."""
    plain, packed = folder / "large.xml", folder / "large.xml.gz"
    write_feed(plain, entries, "mixed")
    with plain.open("rb") as source, gzip.open(packed, "wb", compresslevel=1) as out:
        shutil.copyfileobj(source, out, 1 << 20)
    size = plain.stat().st_size / 1e6
    plain.unlink()
    table = Table("", "above idle", "idle", "by the clock", "longest transaction")
    table.title = f"{entries:,} entries, {size:.0f} MB before gzip; the goal is {GOAL_MB} MB above idle"
    for url in databases:
        for one in measured(packed, url, publish=True):
            add_memory(table, one, url)
    console.print(table)


def add_memory(table: Table, one: Measured, url: str | None) -> None:
    """A row of what `measure_memory` shows."""
    name = one.step if one.step == PARSE else f"{one.step}, {kind_of(url)}"
    table.add_row(
        name,
        f"{one.above_mb:.0f} MB",
        f"{one.idle_mb:.0f} MB",
        f"{one.seconds:.0f} s",
        f"{one.longest_s * 1000:.0f} ms",
    )


def kind_of(url: str | None) -> str:
    """`sqlite` or `postgresql`."""
    return "sqlite" if url is None else make_url(url).get_backend_name()


def main(  # noqa: PLR0917 - the options of a command
    entries: Annotated[int, typer.Option(help="Entries of the feeds that are timed.")] = 50_000,
    rounds: Annotated[int, typer.Option(help="Rounds of each reader, alternating; 0 leaves them out.")] = 5,
    rows: Annotated[bool, typer.Option("--rows", help="Measure whole ingests, feed to rows.")] = False,
    memory: Annotated[int, typer.Option(help="Entries of the feed whose memory is measured; 0 leaves it out.")] = 0,
    database: Annotated[
        list[str] | None, typer.Option(help="A database for --rows and --memory beside SQLite in a new file.")
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Where the feeds and SQLite's files lie meanwhile.")] = None,
) -> None:
    """Compare the feed reader with bare lxml, and measure whole ingests and their memory."""
    console, databases = Console(), [None, *(database or [])]
    with tempfile.TemporaryDirectory(dir=folder) as name:
        if rounds:
            compare_readers(console, Path(name), entries, rounds)
        if rows:
            measure_rows(console, Path(name), entries, databases)
        if memory:
            measure_memory(console, Path(name), memory, databases)


if __name__ == "__main__":
    typer.run(main)
