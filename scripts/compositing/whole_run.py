"""Whole runs beside their bare parts.

Everything is measured in one go on one machine, so that ratios mean something: how near a first run comes to
composing alone, what a second worker brings, what it costs to find that nothing has changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from models.tables import Frame
from scripts.compositing import bare, peers
from scripts.compositing.rig import opened

if TYPE_CHECKING:
    from rich.console import Console

    from scripts.compositing.rig import Bench

CHANGED = 10
FIRST_GOAL, TWO_GOAL, RERUN_GOAL = 0.75, 0.9, 0.10


@dataclass(frozen=True, slots=True)
class Series:
    """What runs cost with the same delay."""

    first: bare.Cost
    again: bare.Cost
    changed: bare.Cost
    asking: bare.Cost
    composed: int


async def series(bench: Bench, delay_ms: int) -> Series:
    """A first run, the same again (the better of two), and one after some pictures were changed."""
    frame = await bench.new_frame()
    await bench.shop(delay_ms)
    first = await bench.run(frame)
    again = [await bench.run(frame) for _ in range(2)]
    if any(took.counts.reused != bench.count for took in again):
        raise RuntimeError("an unchanged product was composed again")
    asking = await bench.asking(2)
    await bench.shop(delay_ms, CHANGED)
    changed = await bench.run(frame)
    best = min((took.cost for took in again), key=lambda cost: cost.wall_s)
    return Series(first.cost, best, changed.cost, asking, bench.count - changed.counts.reused)


async def stored(bench: Bench) -> bare.Cost:
    """A run that has every picture and composes each anew, for its design is another."""
    frame = await bench.new_frame()
    await bench.shop(0)
    await bench.run(frame)
    output = bench.design.output.model_copy(update={"quality": peers.QUALITY - 1})
    async with bench.db.write() as session:
        row = await session.get_one(Frame, frame.id)
        row.design = bench.design.model_copy(update={"output": output}).model_dump(mode="json")
    took = await bench.run(frame)
    if took.counts.reused:
        raise RuntimeError("a product of another design was found")
    return took.cost


@dataclass(frozen=True, slots=True)
class Measured:
    """Everything, in one go."""

    count: int
    delay_ms: int
    bare_one: bare.Cost
    bare_two: bare.Cost
    one_worker: bare.Cost
    at_once: Series
    slow: Series
    stored: bare.Cost

    @property
    def table(self) -> dict[str, bare.Cost]:
        """Rows to print."""
        late = f"origin after {self.delay_ms} ms"
        return {
            "composing alone, 1 process": self.bare_one,
            "composing alone, 2 processes (before and after)": self.bare_two,
            "first run, 1 worker, origin at once": self.one_worker,
            "first run, 2 workers, origin at once": self.at_once.first,
            f"first run, 2 workers, {late}": self.slow.first,
            "new design, 2 workers, pictures in the store": self.stored,
            "unchanged, origin at once": self.at_once.again,
            "asking alone, 2 processes, origin at once": self.at_once.asking,
            f"unchanged, {late}": self.slow.again,
            f"asking alone, 2 processes, {late}": self.slow.asking,
            f"{CHANGED} changed, origin at once": self.at_once.changed,
        }

    @property
    def gain(self) -> float:
        """What a second worker brings, to what a second bare process brings."""
        workers = self.one_worker.wall_s / self.at_once.first.wall_s
        return workers / (self.bare_one.wall_s / self.bare_two.wall_s)


async def measure(count: int, delay_ms: int, database_url: str | None) -> Measured:
    """Measure all."""
    async with opened(count, database_url) as bench:
        bare_one, before = await bench.composing(1), await bench.composing(2)
        await bench.worker()
        await bench.shop(0)
        alone = await bench.run(await bench.new_frame())
        await bench.worker()
        at_once, slow = await series(bench, 0), await series(bench, delay_ms)
        anew = await stored(bench)
        after = await bench.composing(2)
    two = bare.Cost((before.wall_s + after.wall_s) / 2, (before.cpu_s + after.cpu_s) / 2)
    return Measured(count, delay_ms, bare_one, two, alone.cost, at_once, slow, anew)


def report(console: Console, found: Measured) -> bool:
    """Print all, and say whether the goals are met."""
    table = Table("what", "seconds", "products/s", "CPU ms each")
    for name, cost in found.table.items():
        rate = f"{found.count / cost.wall_s:.0f}"
        table.add_row(name, f"{cost.wall_s:.2f}", rate, f"{1000 * cost.cpu_s / found.count:.2f}")
    console.print(table)
    two, at_once, slow = found.bare_two, found.at_once, found.slow
    end_to_end, again = two.wall_s / slow.first.wall_s, at_once.again.wall_s / at_once.first.wall_s
    for what, (one, other), goal in (
        (f"rate of a first run, {found.delay_ms} ms / composing alone", (two, slow.first), f"goal {FIRST_GOAL}"),
        ("rate of a first run, at once / composing alone", (two, at_once.first), ""),
        ("rate of a new design / composing alone", (two, found.stored), f"goal {TWO_GOAL}"),
        ("time of an unchanged run / first run, at once", (at_once.again, at_once.first), f"goal {RERUN_GOAL}"),
        ("time of an unchanged run / asking alone, at once", (at_once.again, at_once.asking), ""),
        (f"time of an unchanged run / asking alone, {found.delay_ms} ms", (slow.again, slow.asking), ""),
    ):
        by_cpu = f"{one.cpu_s / other.cpu_s:.2f}" if other.cpu_s else "not measurable"  # it is counted in 10 ms
        ratios = f"{one.wall_s / other.wall_s:.2f} by clock, {by_cpu} by processor time"
        console.print(f"{what}: {ratios}" + (f" ({goal})" if goal else ""))
    console.print(f"gain by a second worker / by a second bare process: {found.gain:.2f} (goal {TWO_GOAL})")
    console.print(f"{CHANGED} changed: {at_once.composed} and {slow.composed} composed")
    exact = at_once.composed == slow.composed == CHANGED
    return exact and end_to_end >= FIRST_GOAL and found.gain >= TWO_GOAL and again < RERUN_GOAL
