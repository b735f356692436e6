"""Our feed reader beside bare lxml: the same file, machine and run; and its memory at a million entries.

The peer is the usual loop: `iterparse` of the entries, each cleared, with the siblings before it deleted; once doing
nothing else, once taking two fields out of each entry. Ours finds all fields of each entry, judges it, and refuses
what lxml refuses. Rounds alternate, so that a change of the machine's load meets all. Only ratios mean anything.
"""

from __future__ import annotations

import gzip
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from lxml import etree  # type: ignore[import-untyped] # it ships no types
from rich.console import Console
from rich.table import Table

from compositor.feed.reader import open_feed
from compositor.feed.writer import rewrite_feed

if TYPE_CHECKING:
    from collections.abc import Callable

GOOGLE = "{http://base.google.com/ns/1.0}"
SENTENCES = (
    "A light shoe for long distances, with a sole that gives back what you put in.",
    "Made of wool from one farm & dyed by hand.",
    "Größen 36 bis 47, auch in Weiß; fällt klein aus.",
    "Dishwasher safe, 350 ml, with a lid that stays where it is.",
)
GOAL, MEMORY_GOAL_MB = 0.9, 80


def write_feed(path: Path, entries: int, kind: str, seed: int = 1) -> None:
    """A merchant's feed of about 1 kB an entry. `kind`: `plain`, `mixed` (fields come and go), or `cdata`."""
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8") as out:
        out.write(
            '<?xml version="1.0" encoding="UTF-8"?>\n<rss version="2.0" xmlns:g="http://base.google.com/ns/1.0">\n'
        )
        out.write("<channel>\n<title>Shop</title>\n")
        for number in range(entries):
            text = " ".join(draw.choices(SENTENCES, k=6))
            held = f"<![CDATA[{text}]]>" if kind == "cdata" else text.replace("&", "&amp;")
            sale = (
                f"    <g:sale_price>{number % 50}.49 EUR</g:sale_price>\n" if number % 3 and kind != "plain" else ""
            )
            out.write(
                f"  <item>\n    <g:id>SKU-{number:08d}</g:id>\n    <g:title>Product {number} &amp; more</g:title>\n"
                f"    <g:description>{held}</g:description>\n"
                f"    <g:link>https://shop.example/products/{number}</g:link>\n"
                f"    <g:image_link>https://cdn.shop.example/pictures/{number}.jpg?w=1200</g:image_link>\n"
                f"    <g:price>{number % 90 + 10}.99 EUR</g:price>\n{sale}"
                "    <g:availability>in stock</g:availability>\n"
                "    <g:condition>new</g:condition>\n    <g:brand>Example</g:brand>\n"
                f"    <g:gtin>{4000000000000 + number}</g:gtin>\n"
                "    <g:google_product_category>Apparel &gt; Shoes</g:google_product_category>\n  </item>\n"
            )
        out.write("</channel>\n</rss>\n")


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
    "IGen, all fields": ours,
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


def peak_mb() -> float:
    """This process's peak resident memory so far (getrusage would count what the parent held before exec)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def report_memory(path: Path) -> None:
    """Print how many entries `path` has, the peak above the idle process's, and that; for a process of its own."""
    idle = peak_mb()
    count = ours(path)
    print(f"{count} {peak_mb() - idle:.1f} {idle:.1f}")


def measure_memory(console: Console, folder: Path, entries: int) -> None:
    """A feed of `entries`, gzipped, read in a fresh process."""
    path = folder / "large.xml"
    write_feed(path, entries, "mixed")
    packed = folder / "large.xml.gz"
    with path.open("rb") as plain, gzip.open(packed, "wb", compresslevel=1) as out:
        while data := plain.read(1 << 20):
            out.write(data)
    for each in (path, packed):
        words = ["-m", "scripts.bench_ingest", "--memory-of", str(each)]
        answer = subprocess.run([sys.executable, *words], check=True, capture_output=True, text=True).stdout.split()
        console.print(
            f"{int(answer[0]):,} entries, {each.stat().st_size / 1e6:.0f} MB{' gzipped' if each is packed else ''}: "
            f"{answer[1]} MB above the idle process's {answer[2]} MB; the goal is at most {MEMORY_GOAL_MB}"
        )


def main(
    entries: Annotated[int, typer.Option(help="Entries of the feeds that are timed.")] = 50_000,
    rounds: Annotated[int, typer.Option(help="Rounds of each contestant, alternating.")] = 5,
    memory: Annotated[int, typer.Option(help="Entries of the feed whose memory is measured; 0 leaves it out.")] = 0,
    memory_of: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Compare the feed reader with bare lxml, and measure its memory."""
    if memory_of is not None:
        report_memory(memory_of)
        return
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in ("plain", "mixed", "cdata"):
            path = folder / f"{kind}.xml"
            write_feed(path, entries, kind)
            title = f"{kind}, {entries:,} entries; the goal is {GOAL} of bare lxml"
            show(console, title, path.stat().st_size, entries, compare(path, entries, rounds))
            started = time.process_time()
            ours_written_again(path)
            rate = path.stat().st_size / (time.process_time() - started) / 1e6
            console.print(f"written again with new links: {rate:.0f} MB/s, no peer")
        if memory:
            measure_memory(console, folder, memory)


if __name__ == "__main__":
    typer.run(main)
