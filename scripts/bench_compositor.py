"""Our compositor beside other libraries: the same products, frame, machine, core and run.

Rounds of all alternate, and of each picture the best of the rounds counts: a change of the machine's load then meets
all of them alike. Only ratios mean anything. `ours` goes through the composing process as in production: a job over a
socket, a file back. Rates are by processor time, of both processes together: by the clock, on a core that others use
too, ours also waits for its turn twice a picture.
"""

from __future__ import annotations

import asyncio
import io
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from PIL import Image, ImageChops, ImageStat
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from compositor.compose.client import ComposeClient, ComposeProcess
from compositor.compose.job import ComposeJob
from compositor.compose.render import Renderer
from compositor.design import Box, Design, OutputFormat, Placement
from scripts.compositing import peers, products, whole_run
from scripts.compositing.sheet import draw_sheet

if TYPE_CHECKING:
    from collections.abc import Sequence

Kind = Literal["jpeg", "png", "webp"]

OURS = "ours, through the process"
NAIVE = "Pillow, naive"
FLOOR = "floor: scaled decode + encode"
PSNR_PICTURES = 6
GOAL_RATIO, GOAL_PSNR, STRETCH_OF_FLOOR = 1.15, 39.0, 0.45


def ours(frame: Path, *, kind: Kind = "jpeg", exact: bool = False) -> Callable[[Path], ComposeJob]:
    """A product's job."""
    x, y, width, height = products.BOX
    box = Box(x=x, y=y, width=width, height=height)
    design = Design(placement=Placement(box=box), output=OutputFormat(kind=kind, quality=peers.QUALITY, exact=exact))
    size = design.output_sizes(products.FRAME_SIDE, products.FRAME_SIDE)[0]
    return lambda path: ComposeJob(path, frame, False, design, size)


def psnr(one: bytes, other: bytes) -> float:
    """Peak signal-to-noise ratio of two files' pixels in dB."""
    with Image.open(io.BytesIO(one)) as first, Image.open(io.BytesIO(other)) as second:
        difference = ImageChops.difference(first.convert("RGB"), second.convert("RGB"))
    error = statistics.fmean(value**2 for value in ImageStat.Stat(difference).rms)
    return 10 * math.log10(255**2 / error) if error else math.inf


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds by the clock and seconds of the processor."""

    wall_s: float
    cpu_s: float

    def least(self, other: Cost) -> Cost:
        """The lesser of each."""
        return Cost(min(self.wall_s, other.wall_s), min(self.cpu_s, other.cpu_s))


Contender = Callable[[Path], Awaitable[bytes]]


def blocking(compose: Callable[[Path], bytes]) -> Contender:
    """A library's function as a contender."""

    async def contender(path: Path) -> bytes:
        return compose(path)

    return contender


def through(client: ComposeClient, job: Callable[[Path], ComposeJob]) -> Contender:
    """Ours, as a worker asks it."""

    async def contender(path: Path) -> bytes:
        return (await client.compose(job(path))).data

    return contender


class Bench:
    """All contenders over the same files, in alternating rounds."""

    def __init__(self, paths: Sequence[Path], frame: Path, client: ComposeClient, kind: Kind = "jpeg") -> None:
        self._paths = paths
        self._client = client
        renderer = Renderer()
        job = ours(frame, kind=kind)
        self.contenders: dict[str, Contender] = {}
        self.absent: list[str] = []
        for name, make in peers.PEERS.items():
            try:
                self.contenders[name] = blocking(make(frame, kind))
            except ImportError:
                self.absent.append(name)
        self.contenders[OURS] = through(client, job)
        self.contenders["ours, in this process"] = blocking(lambda path: renderer.render(job(path)).data)
        self.contenders["ours, exact"] = through(client, ours(frame, kind=kind, exact=True))

    def _processor_s(self) -> float:
        """Processor time of this process and of the composing process together, in seconds."""
        child = self._client.child_pid
        spent = Path(f"/proc/{child}/schedstat").read_text().split()[0] if child else "0"
        return time.process_time() + int(spent) / 1e9

    async def run(self, rounds: int) -> dict[str, Cost]:
        """What each contender takes for all pictures: of each picture the best of the rounds."""
        best = {name: [Cost(math.inf, math.inf)] * len(self._paths) for name in self.contenders}
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("rounds", total=(rounds + 1) * len(best))
            for _ in range(rounds + 1):  # the first one warms everything up
                for name, compose in self.contenders.items():
                    costs = [await self._cost(compose, path) for path in self._paths]
                    best[name] = [before.least(now) for before, now in zip(best[name], costs, strict=True)]
                    progress.advance(task)
        return {name: Cost(sum(c.wall_s for c in all_), sum(c.cpu_s for c in all_)) for name, all_ in best.items()}

    async def _cost(self, compose: Contender, path: Path) -> Cost:
        wall, processor = time.perf_counter(), self._processor_s()
        await compose(path)
        return Cost(time.perf_counter() - wall, self._processor_s() - processor)

    async def fidelity(self, name: str) -> float:
        """Mean PSNR in dB against the full-quality result."""
        best, compose = self.contenders[NAIVE], self.contenders[name]
        return statistics.fmean([psnr(await compose(path), await best(path)) for path in self._paths[:PSNR_PICTURES]])

    async def weight(self, name: str) -> float:
        """Mean size of the files in bytes."""
        return statistics.fmean([len(await self.contenders[name](path)) for path in self._paths[:PSNR_PICTURES]])


def report(
    console: Console, costs: dict[str, Cost], fidelities: dict[str, float], absent: Sequence[str], count: int
) -> bool:
    """Print the table; whether the goals are met."""
    rates = {name: count / cost.cpu_s for name, cost in costs.items()}
    table = Table("contender", "ms", "CPU ms", "images/CPU s", "x naive", "of floor", "PSNR dB")
    for name, rate in rates.items():
        milliseconds = f"{1000 * costs[name].wall_s / count:.1f}", f"{1000 / rate:.1f}"
        ratios = f"{rate / rates[NAIVE]:.2f}", f"{rate / rates[FLOOR]:.2f}"
        fidelity = f"{fidelities[name]:.1f}" if name in fidelities else "-"
        table.add_row(name, *milliseconds, f"{rate:.1f}", *ratios, fidelity)
    console.print(table)
    for name in absent:
        console.print(f"not installed here: {name}")
    peers_alone = [name for name in rates if not name.startswith(("ours", "floor"))]
    fastest = max(peers_alone, key=rates.__getitem__)
    ratio, of_floor = rates[OURS] / rates[fastest], rates[OURS] / rates[FLOOR]
    wall = costs[fastest].wall_s / costs[OURS].wall_s
    console.print(f"ours / fastest peer ({fastest}): {ratio:.2f} by processor time, {wall:.2f} by clock")
    console.print(f"ours / floor: {of_floor:.2f}; PSNR {fidelities[OURS]:.1f} dB")
    console.print(f"goals for JPEG: {GOAL_RATIO}, {STRETCH_OF_FLOOR} as a stretch, {GOAL_PSNR:g} dB")
    return ratio >= GOAL_RATIO and fidelities[OURS] >= GOAL_PSNR


async def bench(count: int, rounds: int, core: int, kind: Kind) -> bool:
    """Measure all contenders; whether the goals, which are for JPEG, are met."""
    console = Console(width=118)
    with tempfile.TemporaryDirectory() as folder, ComposeProcess() as process:
        paths = products.write_products(Path(folder), count)
        weights = [path.stat().st_size // 1000 for path in paths]
        console.print(f"{count} products of {min(weights)} to {max(weights)} kB, core {core}, {rounds} rounds")
        for who, options in peers.OPTIONS[kind].items():
            console.print(f"{kind}, {who}: {options}")
        async with ComposeClient(process.socket_path) as client:
            contest = Bench(paths, products.write_frame(Path(folder) / "frame.png"), client, kind)
            costs = await contest.run(rounds)
            compared = [name for name in costs if name not in (NAIVE, FLOOR)]
            fidelities = {name: await contest.fidelity(name) for name in compared}
            sizes = {name: f"{await contest.weight(name) / 1000:.0f}" for name in costs if name != FLOOR}
        console.print("kB a picture: " + ", ".join(f"{name} {size}" for name, size in sizes.items()))
        met = report(console, costs, fidelities, contest.absent, count)
        return met or kind != "jpeg"


def main(  # noqa: PLR0917 - a command's options
    count: Annotated[int, typer.Option(help="product pictures a round")] = 12,
    rounds: Annotated[int, typer.Option(help="rounds after the first, which warms up")] = 3,
    core: Annotated[int, typer.Option(help="processor core to run on, -1 for all")] = 0,
    kind: Annotated[Kind, typer.Option("--format", help="what is written; the goals are for JPEG")] = "jpeg",
    sheet: Annotated[Path | None, typer.Option(help="draw the contact sheet to this file instead")] = None,
    run: Annotated[int, typer.Option(help="measure whole runs of so many products instead", metavar="COUNT")] = 0,
    delay_ms: Annotated[int, typer.Option(help="with --run: after how long the slower origin answers")] = 50,
    database_url: Annotated[
        str | None, typer.Option(help="with --run: an empty database; SQLite if not given")
    ] = None,
) -> None:
    """Measure, and exit with 1 if a goal is missed."""
    if run:
        found = asyncio.run(whole_run.measure(run, delay_ms, database_url))
        sys.exit(0 if whole_run.report(Console(width=118), found) else 1)
    if sheet is not None:
        draw_sheet(sheet)
        return
    if core >= 0:
        os.sched_setaffinity(0, {core})
    sys.exit(0 if asyncio.run(bench(count, rounds, core, kind)) else 1)


if __name__ == "__main__":
    typer.run(main)
