"""Our engine beside stock diffusers: the same requests, checkpoint, machine and run.

1, 4, 8 and 16 clients each pause for a random time (together they send as a Poisson process would), send a request
with steps and guidance of its own, and wait for its picture. Three contestants serve them, each in its own process:
stock diffusers one by one, stock diffusers that batches equal requests in a window, and the engine. Rounds alternate,
so that a change of the machine's load meets all. Then: what the engine's own work costs beside the UNet and the VAE.
Only ratios mean anything.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from scripts.serving.contestants import ENGINE, STOCK, WINDOW, Contestant
from scripts.serving.load import make_work

if TYPE_CHECKING:
    from inference.engine.types import EngineInfo
    from scripts.serving.load import Round, Work

OVERHEAD_GOALS = {1: 3.0, 4: 8.0}
"""Percent of the whole by guided pictures at once: one is a batch of 2 rows, four are a bucket of 8."""


def compare(contestants: dict[str, Contestant], work: Work, rounds: int) -> dict[str, list[Round]]:
    """Alternate the contestants, in turning order."""
    results: dict[str, list[Round]] = {name: [] for name in contestants}
    names = list(contestants)
    with Progress(transient=True) as progress:
        task = progress.add_task(f"{work.clients} clients", total=rounds * len(contestants))
        for number in range(rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                results[name].append(contestants[name].round(work))
                progress.advance(task)
    return results


def show(console: Console, title: str, results: dict[str, list[Round]]) -> None:
    """Print medians over the rounds; the ratio is the median of each round's own ratio."""
    base = results[STOCK]
    table = Table("", "images/s", "p50 s", "p95 s", "x stock", "p50 / stock's", title=title)
    stock_p50 = statistics.median(latency for each in base for latency in each.latencies)
    for name, rounds in results.items():
        latencies = sorted(latency for each in rounds for latency in each.latencies)
        ratio = statistics.median(mine.rate / theirs.rate for mine, theirs in zip(rounds, base, strict=True))
        table.add_row(
            name,
            f"{statistics.median(each.rate for each in rounds):.2f}",
            f"{statistics.median(latencies):.2f}",
            f"{latencies[int(0.95 * (len(latencies) - 1))]:.2f}",
            f"{ratio:.2f}",
            f"{statistics.median(latencies) / stock_p50:.2f}",
        )
    console.print(table)


def show_overhead(console: Console, engine: Contestant, pictures: int) -> None:
    """Where the engine's seconds go, one picture at a time and four together."""
    table = Table("guided pictures at once", "UNet %", "VAE %", "the rest %", "goal %", title="the engine's own work")
    for together, goal in OVERHEAD_GOALS.items():
        found = engine.overhead(together, pictures)
        shares = [f"{100 * found[name] / found['whole']:.1f}" for name in ("unet", "vae", "rest")]
        table.add_row(str(together), *shares, f"{goal:.0f}")
    console.print(table)


def main(  # noqa: PLR0917 - the command's options
    checkpoint: Annotated[str, typer.Option(help="A checkpoint's name or diffusers folder.")] = "tiny",
    requests: Annotated[int, typer.Option(help="Requests in each round.")] = 32,
    clients: Annotated[str, typer.Option(help="Numbers of clients, with commas.")] = "1,4,8,16",
    rounds: Annotated[int, typer.Option(help="Rounds of each contestant, alternating.")] = 3,
    pause: Annotated[float, typer.Option(help="Mean pause of a client before each request, in seconds.")] = 0.1,
    threads: Annotated[int, typer.Option(help="PyTorch threads of each; 0 leaves its default.")] = 0,
    sizes: Annotated[int, typer.Option(min=1, max=2, help="One size, or two mixed.")] = 1,
    overhead: Annotated[int, typer.Option(help="Pictures of the overhead's measurement; 0 leaves it out.")] = 24,
) -> None:
    """Compare the engine with stock diffusers."""
    contestants = {name: Contestant(name, checkpoint, threads) for name in (STOCK, WINDOW, ENGINE)}
    about = contestants[ENGINE].about
    info: EngineInfo = about["info"]
    width, height = info.defaults.width, info.defaults.height
    chosen = [(width, height), (width, height * 3 // 4 // 8 * 8)][:sizes]
    console = Console()
    console.print(f"{info.checkpoint} on {info.device}, {info.dtype}, {info.versions}")
    console.print(f"{requests} requests a round, {rounds} rounds, {about['threads']} threads each, sizes {chosen}")
    for contestant in contestants.values():
        contestant.round(make_work(8, 8, chosen, pause_s=0, seed=2))  # warm caches, not counted
    for count in (int(word) for word in clients.split(",")):
        work = make_work(requests, count, chosen, pause_s=pause)
        show(console, f"{count} clients", compare(contestants, work, rounds))
    if overhead and info.device == "cpu":
        show_overhead(console, contestants[ENGINE], overhead)
    for contestant in contestants.values():
        contestant.close()


if __name__ == "__main__":
    typer.run(main)
