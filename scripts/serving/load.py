"""Requests and the clients that send them."""

from __future__ import annotations

import queue
import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference.engine.types import PictureSpec

WORDS = ("red circle", "blue square", "green star", "yellow triangle", "city skyline at sunset", "mountains at night")


@dataclass(frozen=True, slots=True)
class Round:
    """One round's outcome: pictures a second over the whole, and each request's latency in seconds."""

    rate: float
    latencies: list[float]


@dataclass(frozen=True, slots=True)
class Work:
    """What one round sends. `pauses` are the seconds that a client waits before each request."""

    requests: list[PictureSpec]
    pauses: list[float]
    clients: int


def make_work(count: int, clients: int, sizes: list[tuple[int, int]], *, pause_s: float, seed: int = 1) -> Work:
    """Requests with mixed steps, guidance (one in six without) and seeds.

    Steps are of few kinds (8, 12, 20), as callers have: most leave the default. Pauses are exponential with mean
    `pause_s`, so that each client's requests come as a Poisson process that stops while one is under way.
    """
    from inference.engine.types import PictureSpec  # noqa: PLC0415 - torch is slow to import, --help should not be

    draw = random.Random(seed)
    specs, pauses = [], []
    for index in range(count):
        width, height = draw.choice(sizes)
        guidance = draw.choice([1.0, 2.5, 2.5, 2.5, 5.0, 7.5])
        prompt = f"a {draw.choice(WORDS)}"
        specs.append(PictureSpec(prompt, "", width, height, draw.choice([8, 12, 20]), guidance, index, "euler"))
        pauses.append(draw.expovariate(1 / pause_s) if pause_s else 0.0)
    return Work(specs, pauses, clients)


def run_clients(work: Work, draw_one: Callable[[PictureSpec], None]) -> Round:
    """Send everything through `work.clients` threads; `draw_one` blocks until the picture is there.

    Raises:
        RuntimeError: a request failed, so that the figures would be wrong.

    """
    todo: queue.SimpleQueue[tuple[float, PictureSpec]] = queue.SimpleQueue()
    for item in zip(work.pauses, work.requests, strict=True):
        todo.put(item)
    latencies: list[float] = []

    def client() -> None:
        while True:
            try:
                pause, spec = todo.get_nowait()
            except queue.Empty:
                return
            time.sleep(pause)
            started = time.perf_counter()
            draw_one(spec)
            latencies.append(time.perf_counter() - started)

    threads = [threading.Thread(target=client) for _ in range(work.clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(latencies) != len(work.requests):
        raise RuntimeError("a client died; the figures would be wrong")
    return Round(len(latencies) / (time.perf_counter() - started), latencies)
