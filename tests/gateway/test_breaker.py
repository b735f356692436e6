from __future__ import annotations

import asyncio

import pytest

from gateway.breaker import FAILURES_TO_OPEN, PAUSE_S, Breaker
from gateway.failures import BackendUnavailableError


class Bench:
    """A breaker with a clock and a backend of our own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.alive = False
        self.probes = 0
        self.breaker = Breaker(self.probe, clock=lambda: self.now)

    async def probe(self) -> bool:
        self.probes += 1
        await asyncio.sleep(0)
        return self.alive

    def fail(self, times: int) -> None:
        for _ in range(times):
            self.breaker.failed()

    async def refused(self) -> bool:
        try:
            await self.breaker.admit()
        except BackendUnavailableError as problem:
            return problem.retry_after_s is not None
        return False


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_it_stays_closed_until_enough_failures_in_a_row(bench: Bench) -> None:
    bench.fail(FAILURES_TO_OPEN - 1)
    bench.breaker.succeeded()
    bench.fail(FAILURES_TO_OPEN - 1)
    assert not await bench.refused()
    bench.fail(1)
    assert await bench.refused()
    assert bench.probes == 0


async def test_after_the_pause_a_probe_decides(bench: Bench) -> None:
    bench.fail(FAILURES_TO_OPEN)
    bench.now = PAUSE_S
    assert await bench.refused()
    assert await bench.refused()
    assert bench.probes == 1
    bench.now = 2 * PAUSE_S
    bench.alive = True
    assert not await bench.refused()
    assert not bench.breaker.is_open


async def test_many_callers_share_one_probe(bench: Bench) -> None:
    bench.fail(FAILURES_TO_OPEN)
    bench.now, bench.alive = PAUSE_S, True
    assert await asyncio.gather(*(bench.refused() for _ in range(10))) == [False] * 10
    assert bench.probes == 1
