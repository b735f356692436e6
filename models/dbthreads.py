"""Whole transactions in a thread: one hand-over between the event loop and the driver, however many statements.

With asyncio's drivers each statement, each cursor and each commit is a message to a thread and back (SQLite) or a
turn of the loop (PostgreSQL). Where a transaction is a fixed list of statements and there are thousands of them,
those messages cost more than the statements.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection, Engine

T = TypeVar("T")


class TransactionThreads:
    """Threads with one connection each. Nothing is opened before the first use, so it may cross a fork until then."""

    def __init__(self, make_engine: Callable[[int], Engine], threads: int) -> None:
        """Take how it is made.

        Args:
            make_engine: an engine with as many connections as it is given.
            threads: transactions at a time; others wait their turn, in order.

        """
        self._make_engine = make_engine
        self._count = threads
        self._engine: Engine | None = None
        self._threads: ThreadPoolExecutor | None = None

    async def run(self, work: Callable[[Connection], T], committed: Callable[[], None] = lambda: None) -> T:
        """Call `work` within a transaction, which commits when it returns and rolls back when it raises.

        `committed` is called, in the thread, once it has committed.

        A caller who is cancelled meanwhile hears of it when the transaction has ended, one way or the other: it is
        never still under way in the background.
        """
        if self._engine is None or self._threads is None:
            self._engine = self._make_engine(self._count)
            self._threads = ThreadPoolExecutor(self._count, thread_name_prefix="transactions")
        under_way = asyncio.get_running_loop().run_in_executor(
            self._threads, _transact, self._engine, work, committed
        )
        try:
            return await asyncio.shield(under_way)
        except asyncio.CancelledError:
            await _ended(under_way)
            raise

    async def close(self) -> None:
        """Close every connection, after what is under way."""
        engine, threads, self._engine, self._threads = self._engine, self._threads, None, None
        if threads is not None:
            await asyncio.to_thread(threads.shutdown)
        if engine is not None:
            engine.dispose()


def _transact(engine: Engine, work: Callable[[Connection], T], committed: Callable[[], None]) -> T:
    with engine.begin() as connection:
        found = work(connection)
    committed()
    return found


async def _ended(under_way: asyncio.Future[T]) -> None:
    """Wait for it, whatever comes of it and however often the waiting is cancelled."""
    while not under_way.done():
        try:
            await asyncio.wait([under_way])
        except asyncio.CancelledError:
            continue  # the first one is raised when it is over
    if not under_way.cancelled():
        under_way.exception()  # seen: the cancellation is what the caller hears of
