"""The tasks of this process: one for each row that it carries, and two that keep leases and take over lost rows."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from models.db import DatabaseError
from models.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.forwarder import Forwarder
    from gateway.ledger import Ledger
    from models.tables import Generation

log = get_logger(__name__)


class Runner:
    """Starts, watches and stops the tasks that carry rows."""

    def __init__(self, forwarder: Forwarder, ledger: Ledger, *, lease_seconds: float) -> None:
        self._forwarder = forwarder
        self._ledger = ledger
        self._beat_s = lease_seconds / 3
        self._carrying: dict[str, asyncio.Task[None]] = {}
        self._keepers: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        """Start renewing leases and looking for rows whose owner fell silent."""
        self._keepers = [
            asyncio.create_task(self._beat(self._renew), name="renew-leases"),
            asyncio.create_task(self._beat(self._take_over), name="take-over"),
        ]

    @property
    def carried(self) -> int:
        """How many rows this process carries now."""
        return len(self._carrying)

    def carries(self, generation_id: str) -> bool:
        """Whether this process carries a row now."""
        return generation_id in self._carrying

    def carry(self, row: Generation) -> None:
        """Carry a row that is leased to this process, in a task of its own."""
        task = asyncio.create_task(self._forwarder.carry(row), name=row.id)
        self._carrying[row.id] = task
        task.add_done_callback(lambda done: self._ended(row.id, done))

    async def wait(self, generation_id: str, *, at_most_s: float) -> None:
        """Wait until a row carried here ends; for another process's row, a moment, after which to look again."""
        task = self._carrying.get(generation_id)
        if task is None:
            await asyncio.sleep(min(at_most_s, 0.25))
        else:
            await asyncio.wait({task}, timeout=at_most_s)

    async def settle(self, *, at_most_s: float) -> None:
        """Wait for the rows carried here to end."""
        if self._carrying and at_most_s > 0:
            await asyncio.wait(set(self._carrying.values()), timeout=at_most_s)

    async def stop(self) -> None:
        """Stop every task; rows that have not ended are given back for recovery."""
        for keeper in self._keepers:
            keeper.cancel()
        left = list(self._carrying.values())
        if left:
            log.warning("rows_left_to_recovery", count=len(left))
        for task in left:
            task.cancel()
        await asyncio.gather(*self._keepers, *left, return_exceptions=True)

    async def _beat(self, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await step()
            except DatabaseError:
                log.warning("beat_missed")  # the database's own error was logged where it came up
            except Exception:  # the edge of a task that must not die while the process lives
                log.exception("beat_crashed")
            await asyncio.sleep(self._beat_s)

    async def _renew(self) -> None:
        for lost in await self._ledger.renew(list(self._carrying)):
            if (task := self._carrying.get(lost)) is not None:
                log.warning("lease_lost", generation_id=lost)
                task.cancel()

    async def _take_over(self) -> None:
        for row in await self._ledger.take_over(list(self._carrying)):
            log.warning("row_taken_over", generation_id=row.id, state=row.state, fence=row.fence)
            self.carry(row)

    def _ended(self, generation_id: str, task: asyncio.Task[None]) -> None:
        if self._carrying.get(generation_id) is task:
            del self._carrying[generation_id]
        if not task.cancelled() and (problem := task.exception()) is not None:
            # the row stays open and its lease runs out, so recovery comes back to it
            log.error("carry_crashed", generation_id=generation_id, exc_info=problem)
