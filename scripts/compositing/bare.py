"""What a run's parts cost without the run: composing alone, and asking alone, in as many processes as workers."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from compositor.compose.client import ComposeClient, ComposeProcess
from compositor.compose.job import ComposeJob
from compositor.sources import Known, SourceFetcher
from models.fetch import FetchPolicy, SafeFetcher, parse_allow_hosts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from multiprocessing.queues import SimpleQueue
    from multiprocessing.synchronize import Barrier

    from compositor.design import Design

WARM_UP = 4
START_S = 60.0

Steps = Callable[[], Awaitable[None]]
Work = Callable[..., AbstractAsyncContextManager[Steps]]


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds by the clock, and seconds of processors by all processes together."""

    wall_s: float
    cpu_s: float


def tree_cpu_s(roots: Iterable[int]) -> float:
    """Processor time so far of some processes and of all that descend from them, those that have ended included."""
    children: dict[int, list[int]] = {}
    spent: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
            spent[int(entry.name)] = sum(map(int, fields[11:15]))  # utime, stime, and those of reaped children
    waiting, ticks = list(roots), 0
    while waiting:
        pid = waiting.pop()
        ticks += spent.get(pid, 0)
        waiting += children.get(pid, [])
    return ticks / os.sysconf("SC_CLK_TCK")


def composing(paths: Sequence[Path], frame: Path, design: Design, side: int, processes: int) -> Cost:
    """What it costs to compose all of `paths`, shared out among processes that each have a composing process."""
    shares = [list(paths[place::processes]) for place in range(processes)]
    return _together(_compose, [(share, frame, design, side) for share in shares])


def asking(host: str, tags: Sequence[tuple[str, str]], per_host: int, processes: int) -> Cost:
    """What it costs to ask for all addresses with their ETags, by the client that workers use."""
    shares = [list(tags[place::processes]) for place in range(processes)]
    return _together(_ask, [(host, share, per_host) for share in shares])


def _together(work: Work, arguments: Sequence[tuple[Any, ...]]) -> Cost:
    """From the moment when all processes are ready to the end of the last."""
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Barrier(len(arguments) + 1)
    spent = spawn.SimpleQueue()
    processes = [spawn.Process(target=_in_process, args=(work, ready, spent, given)) for given in arguments]
    for process in processes:
        process.start()
    ready.wait(START_S)
    started = time.perf_counter()
    cpu_s = sum(spent.get() for _ in processes)
    wall_s = time.perf_counter() - started
    for process in processes:
        process.join()
    return Cost(wall_s, cpu_s)


def _in_process(work: Work, ready: Barrier, spent: SimpleQueue[float], given: tuple[Any, ...]) -> None:
    uvloop.run(_measured(work, ready, spent, given))


async def _measured(work: Work, ready: Barrier, spent: SimpleQueue[float], given: tuple[Any, ...]) -> None:
    async with work(*given) as steps:
        await asyncio.to_thread(ready.wait, START_S)
        before = tree_cpu_s([os.getpid()])
        await steps()
        spent.put(tree_cpu_s([os.getpid()]) - before)


@asynccontextmanager
async def _compose(paths: list[Path], frame: Path, design: Design, side: int) -> AsyncIterator[Steps]:
    size = design.output_sizes(side, side)[0]
    with ComposeProcess() as process:
        async with ComposeClient(process.socket_path) as client:

            async def all_of(some: list[Path]) -> None:
                for path in some:
                    await client.compose(ComposeJob(path, frame, False, design, size))

            await all_of(paths[:WARM_UP])
            yield partial(all_of, paths)


@asynccontextmanager
async def _ask(host: str, tags: list[tuple[str, str]], per_host: int) -> AsyncIterator[Steps]:
    policy = FetchPolicy(allow_hosts=parse_allow_hosts(host))
    with tempfile.TemporaryDirectory() as folder:
        async with SafeFetcher(policy) as fetcher:
            sources = SourceFetcher(fetcher, per_host, 4 * per_host)
            waiting = iter(tags)

            async def some() -> None:
                for url, tag in waiting:
                    got = await sources.fetch(url, Known("0" * 64, etag=tag), Path(folder))
                    if got.path is not None:
                        raise RuntimeError("the origin sent what was known")

            async def all_of() -> None:
                await asyncio.gather(*(some() for _ in range(2 * per_host)))

            yield all_of
