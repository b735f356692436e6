"""Our feed reader beside bare lxml: the same file, machine and run.

The peer is the usual loop: `iterparse` of the entries, each cleared, with the siblings before it deleted; once doing
nothing else, once taking two fields out of each entry, once all. Ours judges each entry besides, and refuses what
lxml refuses; as a run's ingest reads, which asks for the fields that its design looks at, and with all fields.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from lxml import etree  # type: ignore[import-untyped] # it ships no types
from rich.table import Table

from compositor.feed.reader import open_feed
from compositor.feed.writer import rewrite_feed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rich.console import Console

GOAL = 0.9
GOOGLE = "{http://base.google.com/ns/1.0}"
DESIGN_FIELDS = frozenset({"title", "price", "sale_price", "availability"})
"""What the design of a run with two texts and a badge asks for."""


def bare_lxml(path: Path) -> int:
    """Entries found, and forgotten."""
    count = 0
    for _, element in etree.iterparse(str(path), events=("end",), tag="{*}item", no_network=True):
        count += 1
        element.clear()
        while element.getprevious() is not None:
            del element.getparent()[0]
    return count


def lxml_two_fields(path: Path) -> int:
    """Entries found, their id and picture taken."""
    count = 0
    for _, element in etree.iterparse(str(path), events=("end",), tag="{*}item", no_network=True):
        count += bool(element.findtext(f"{GOOGLE}id") and element.findtext(f"{GOOGLE}image_link"))
        element.clear()
        while element.getprevious() is not None:
            del element.getparent()[0]
    return count


def lxml_all_fields(path: Path) -> int:
    """Entries found, all their fields taken."""
    count = 0
    for _, element in etree.iterparse(str(path), events=("end",), tag="{*}item", no_network=True):
        count += bool({child.tag: child.text for child in element})
        element.clear()
        while element.getprevious() is not None:
            del element.getparent()[0]
    return count


def ours(path: Path) -> int:
    """Our reader, as a run's ingest uses it."""
    return sum(entry.code is None for entry in open_feed(path, wanted=DESIGN_FIELDS.__contains__))


def ours_all_fields(path: Path) -> int:
    """Our reader, finding every field of each entry."""
    return sum(entry.code is None for entry in open_feed(path))


def ours_written_again(path: Path) -> int:
    """Our writer with a link for every entry; no peer does the same."""
    count = 0

    def link(position: int) -> list[str]:
        nonlocal count
        count += 1
        return [f"https://igen.example/media/outputs/{position:032x}.jpg"]

    rewrite_feed(path, path.with_suffix(".out"), link, "replace")
    return count


CONTESTANTS: dict[str, Callable[[Path], int]] = {
    "bare lxml iterparse": bare_lxml,
    "lxml, id and picture": lxml_two_fields,
    "lxml, all fields": lxml_all_fields,
    "IGen, a run's fields": ours,
    "IGen, all fields": ours_all_fields,
}


def compare(path: Path, entries: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of processor time of each round of each contestant; their order turns with every round."""
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    names = list(CONTESTANTS)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            started = time.process_time()
            if CONTESTANTS[name](path) != entries:
                raise RuntimeError(f"{name} did not find all entries; the figures would be wrong")
            seconds[name].append(time.process_time() - started)
    return seconds


def show(console: Console, title: str, size: int, entries: int, seconds: dict[str, list[float]]) -> None:
    """Medians over the rounds; the ratio is the median of each round's own ratio."""
    table = Table("", "MB/s", "entries/s", "x bare lxml", title=title)
    base = seconds["bare lxml iterparse"]
    for name, each in seconds.items():
        middle = statistics.median(each)
        ratio = statistics.median(theirs / mine for mine, theirs in zip(each, base, strict=True))
        table.add_row(name, f"{size / middle / 1e6:.0f}", f"{entries / middle:,.0f}", f"{ratio:.2f}")
    console.print(table)
