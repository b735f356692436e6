"""Our engine beside stock diffusers: the same requests, checkpoint, machine and run.

Eight clients in a closed loop each send a request, wait for its picture and send the next. Stock
`StableDiffusionXLPipeline` serves them one by one (it can do nothing else safely); our engine batches them step by
step. Rounds of the two alternate, so that a change of the machine's load meets both. Only ratios mean anything.

Each contestant has a process of its own. In one process their two teams of OpenMP threads would be more threads than
cores, libgomp would stop spinning at its barriers, and stock diffusers would run at half its speed.
"""

from __future__ import annotations

import multiprocessing
import queue
import random
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from inference.engine.engine import BatchingEngine
    from inference.engine.types import EngineEvent, EngineInfo, PictureSpec

STOCK = "stock, one by one"
ROOT = Path(__file__).resolve().parent.parent
WORDS = ("red circle", "blue square", "green star", "yellow triangle", "city skyline at sunset", "mountains at night")


@dataclass(frozen=True, slots=True)
class Round:
    """One round's outcome: pictures a second over the whole, and each request's latency in seconds."""

    rate: float
    latencies: list[float]


def make_requests(count: int, sizes: list[tuple[int, int]], seed: int) -> list[PictureSpec]:
    """Requests with mixed steps (6 to 20), guidance (one in six without) and seeds."""
    from inference.engine.types import PictureSpec  # noqa: PLC0415 - torch is slow to import, --help should not be

    draw = random.Random(seed)
    specs = []
    for index in range(count):
        width, height = draw.choice(sizes)
        guidance = draw.choice([1.0, 2.0, 3.0, 4.0, 5.0, 7.5])
        prompt = f"a {draw.choice(WORDS)}"
        specs.append(PictureSpec(prompt, "", width, height, draw.randint(6, 20), guidance, index, "euler"))
    return specs


def closed_loop(requests: list[PictureSpec], clients: int, draw_one: Callable[[int, PictureSpec], None]) -> Round:
    """Run `requests` through `clients` threads; `draw_one` blocks until the picture is there."""
    todo: queue.SimpleQueue[tuple[int, PictureSpec]] = queue.SimpleQueue()
    for item in enumerate(requests):
        todo.put(item)
    latencies: list[float] = []

    def client() -> None:
        while True:
            try:
                index, spec = todo.get_nowait()
            except queue.Empty:
                return
            started = time.perf_counter()
            draw_one(index, spec)
            latencies.append(time.perf_counter() - started)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(latencies) != len(requests):
        raise RuntimeError("a client died; the figures would be wrong")
    return Round(len(requests) / (time.perf_counter() - started), latencies)


def stock_drawer(folder: Path, dtype: Any, device: str) -> Callable[[int, PictureSpec], None]:
    """Stock diffusers in a thread of its own, first come first served: a pipeline cannot be shared."""
    line = ThreadPoolExecutor(1)  # a lock would not be fair, and its latencies not the pipeline's
    pipeline = line.submit(_load_stock, folder, dtype, device).result()

    def call(spec: PictureSpec) -> None:
        import torch  # noqa: PLC0415

        pipeline(
            prompt=spec.prompt,
            negative_prompt=spec.negative_prompt,
            width=spec.width,
            height=spec.height,
            num_inference_steps=spec.steps,
            guidance_scale=spec.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(spec.seed),
            output_type="np",
        )

    return lambda _index, spec: line.submit(call, spec).result()


def _load_stock(folder: Path, dtype: Any, device: str) -> Any:
    from diffusers import StableDiffusionXLPipeline  # noqa: PLC0415

    pipeline = StableDiffusionXLPipeline.from_pretrained(str(folder), dtype=dtype, local_files_only=True).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def engine_drawer(engine: BatchingEngine) -> Callable[[int, PictureSpec], None]:
    """Our engine, called as the server calls it."""
    from inference.engine.types import Cancelled, Completed, EngineJob, Failed  # noqa: PLC0415

    serial = iter(range(10**9))

    def draw(_index: int, spec: PictureSpec) -> None:
        events: queue.SimpleQueue[EngineEvent] = queue.SimpleQueue()
        engine.submit(EngineJob(f"bench-{next(serial)}", (spec,)), events.put)
        while True:
            event = events.get()
            if isinstance(event, Completed):
                return
            if isinstance(event, Failed | Cancelled):
                raise RuntimeError(f"the engine failed: {event}")  # noqa: TRY004 - an outcome, not a wrong argument

    return draw


class Contestant:
    """One of the two in a process of its own, told which requests to serve."""

    def __init__(self, kind: str, checkpoint: str, clients: int, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, kind, checkpoint, clients, threads), daemon=True)
        self._process.start()
        theirs.close()
        self.about: dict[str, Any] = self._pipe.recv()

    def close(self) -> None:
        """Let the process go."""
        self._pipe.close()
        self._process.join(timeout=30)

    def round(self, requests: list[PictureSpec], clients: int) -> Round:
        """Run one closed loop there."""
        self._pipe.send((requests, clients))
        outcome = self._pipe.recv()
        if not isinstance(outcome, Round):
            raise RuntimeError(f"a contestant failed: {outcome}")  # noqa: TRY004 - an outcome, not a wrong argument
        return outcome


def _serve(pipe: Connection, kind: str, checkpoint: str, clients: int, threads: int) -> None:
    import torch  # noqa: PLC0415

    from inference.engine.checkpoint import choose_device  # noqa: PLC0415
    from inference.engine.factory import EngineOptions, open_engine  # noqa: PLC0415
    from inference.engine.locate import locate  # noqa: PLC0415

    if threads:
        torch.set_num_threads(threads)
    search = (ROOT / "inference" / "checkpoints",)
    device = choose_device("auto")
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    about: dict[str, Any] = {"threads": torch.get_num_threads()}
    if kind == STOCK:
        drawer = stock_drawer(locate(checkpoint, None, search).folder, dtype, str(device))
    else:
        with ThreadPoolExecutor(1) as loader:  # as the server does, for the same reason as the two processes
            options = EngineOptions(checkpoint, search=search, max_batch=clients)
            engine = loader.submit(open_engine, options).result()
        about |= {"info": engine.info}
        drawer = engine_drawer(engine)
    pipe.send(about)
    while True:
        try:
            requests, many = pipe.recv()
        except EOFError:
            if kind != STOCK:
                engine.close()
            return
        try:
            pipe.send(closed_loop(requests, many, drawer))
        except Exception as problem:  # noqa: BLE001 - the process's edge; the other side says it
            pipe.send(repr(problem))


def compare(
    contestants: dict[str, Contestant], requests: list[PictureSpec], clients: int, rounds: int
) -> dict[str, list[Round]]:
    """Alternate the contestants, first one first in even rounds, last one first in odd ones."""
    results: dict[str, list[Round]] = {name: [] for name in contestants}
    with Progress(transient=True) as progress:
        task = progress.add_task("measuring", total=rounds * len(contestants))
        for number in range(rounds):
            order = list(contestants) if number % 2 == 0 else list(reversed(contestants))
            for name in order:
                results[name].append(contestants[name].round(requests, clients))
                progress.advance(task)
    return results


def show(console: Console, title: str, results: dict[str, list[Round]]) -> None:
    """Print medians over the rounds; the ratio is the median of each round's own ratio."""
    base = results[STOCK]
    table = Table("", "images/s", "p50 s", "p95 s", "x stock", title=title)
    for name, rounds in results.items():
        latencies = sorted(latency for each in rounds for latency in each.latencies)
        ratio = statistics.median(mine.rate / theirs.rate for mine, theirs in zip(rounds, base, strict=True))
        table.add_row(
            name,
            f"{statistics.median(each.rate for each in rounds):.2f}",
            f"{statistics.median(latencies):.2f}",
            f"{latencies[int(0.95 * (len(latencies) - 1))]:.2f}",
            f"{ratio:.2f}",
        )
    console.print(table)


def main(
    checkpoint: Annotated[str, typer.Option(help="A checkpoint's name or diffusers folder.")] = "tiny",
    requests: Annotated[int, typer.Option(help="Requests in each round.")] = 48,
    clients: Annotated[int, typer.Option(help="Clients in the closed loop.")] = 8,
    rounds: Annotated[int, typer.Option(help="Rounds of each contestant, alternating.")] = 5,
    threads: Annotated[int, typer.Option(help="PyTorch threads for both; 0 leaves its default.")] = 0,
) -> None:
    """Compare the engine with stock diffusers called one by one."""
    contestants = {name: Contestant(name, checkpoint, clients, threads) for name in (STOCK, "engine")}
    about = contestants["engine"].about
    info: EngineInfo = about["info"]
    width, height = info.defaults.width, info.defaults.height
    console = Console()
    console.print(f"{info.checkpoint} on {info.device}, {info.dtype}, {info.versions}")
    console.print(f"{clients} clients, {requests} requests a round, {rounds} rounds, {about['threads']} threads each")
    tables = {
        f"one size, {width}x{height}: the goal is 1.5": [(width, height)],
        "two sizes, no goal": [(width, height), (width, height * 3 // 4 // 8 * 8)],
    }
    for title, sizes in tables.items():
        work = make_requests(requests, sizes, seed=1)
        for contestant in contestants.values():
            contestant.round(work[:clients], clients)  # warm caches, not counted
        show(console, title, compare(contestants, work, clients, rounds))
    for contestant in contestants.values():
        contestant.close()


if __name__ == "__main__":
    typer.run(main)
