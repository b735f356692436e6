"""What `scripts/bench_ingest` measures in processes of their own, and prints as one line for it to read."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compositor.feed.reader import open_feed
from scripts.ingesting.memory import Memory
from scripts.ingesting.parsing import DESIGN_FIELDS
from scripts.ingesting.whole import whole_run

if TYPE_CHECKING:
    from collections.abc import Iterator

PARSE, INGEST, PUBLISH = "parse", "ingest", "publish"


@dataclass(frozen=True, slots=True)
class Measured:
    """One step over one feed. Times in seconds; memory in MB, `above_mb` being the peak above the idle process."""

    step: str
    entries: int
    seconds: float
    cpu_s: float
    longest_s: float
    idle_mb: float
    above_mb: float

    @property
    def rate(self) -> float:
        """Entries a second by the clock."""
        return self.entries / self.seconds


def measured(feed: Path, database_url: str | None, *, publish: bool = False) -> list[Measured]:
    """The steps of a run of `feed`, in a fresh process."""
    words = [sys.executable, "-m", "scripts.ingesting.steps", str(feed), database_url or "", *["publish"] * publish]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    found = [line.split() for line in done.stdout.splitlines()]
    return [Measured(step, int(entries), *map(float, numbers)) for step, entries, *numbers in found]


def _parse(feed: Path) -> Measured:
    memory, started, cpu = Memory(), time.perf_counter(), time.process_time()
    count = sum(1 for _ in open_feed(feed, wanted=DESIGN_FIELDS.__contains__))
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    return Measured(PARSE, count, seconds, cpu_s, 0.0, memory.idle_mb, memory.above_mb)


async def _run(feed: Path, database_url: str | None, home: Path, *, publish: bool) -> list[Measured]:
    async with whole_run(home, database_url, feed) as run:
        memory = Memory()
        took = await run.ingest()
        count = await run.rows()
        found = [Measured(INGEST, count, took.seconds, took.cpu_s, took.longest_s, memory.idle_mb, memory.above_mb)]
        if publish:
            memory = Memory()
            took = await run.publish()
            found.append(
                Measured(PUBLISH, count, took.seconds, took.cpu_s, took.longest_s, found[0].idle_mb, memory.above_mb)
            )
        return found


def _steps(feed: Path, database_url: str | None, *, publish: bool) -> Iterator[Measured]:
    yield _parse(feed)
    with tempfile.TemporaryDirectory(dir=feed.parent) as home:
        yield from asyncio.run(_run(feed, database_url, Path(home), publish=publish))


if __name__ == "__main__":
    for one in _steps(Path(sys.argv[1]), sys.argv[2] or None, publish=sys.argv[3:] == ["publish"]):
        print(
            one.step,
            one.entries,
            f"{one.seconds:.3f} {one.cpu_s:.3f} {one.longest_s:.3f} {one.idle_mb:.1f} {one.above_mb:.1f}",
        )
