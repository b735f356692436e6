"""Clients in a closed loop: each sends its next request when the last is answered."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from scripts.loading.process import Running


@dataclass(frozen=True, slots=True)
class Measured:
    """Requests a second as answered, the gateway's own processor time for each, and latencies, in milliseconds."""

    name: str
    requests: int
    per_second: float
    cpu_ms: float
    p50_ms: float
    p99_ms: float

    @property
    def per_core(self) -> float:
        """Requests a second that one whole core would carry, if nothing else set a limit."""
        return 1000 / self.cpu_ms if self.cpu_ms else 0.0


async def measure(
    name: str, running: Running, ask: Callable[[int], Awaitable[Any]], *, clients: int, requests: int
) -> Measured:
    """`requests` of a kind, by so many clients; `ask` gets each one's number and raises where it fails."""
    waiting = iter(range(requests))
    latencies: list[float] = []

    async def client() -> None:
        for number in waiting:
            began = time.perf_counter()
            await ask(number)
            latencies.append(time.perf_counter() - began)

    cpu, began = running.cpu_s(), time.perf_counter()
    async with asyncio.TaskGroup() as together:
        for _ in range(clients):
            together.create_task(client())
    seconds, used = time.perf_counter() - began, running.cpu_s() - cpu
    cuts = statistics.quantiles(latencies, n=100)
    return Measured(name, requests, requests / seconds, 1000 * used / requests, 1000 * cuts[49], 1000 * cuts[98])
