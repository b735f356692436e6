"""Chunks: taken by one worker at a time, under a lease with a fence, and written only while that fence holds.

Every write of results begins with an UPDATE of the chunk's row that holds only while the fence is this worker's and
the run is being composed, so a worker that was silent past its lease, or whose run was cancelled, changes nothing.
Leases are compared with the clock of the process that looks: hosts must agree within a few seconds.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Table, bindparam, func, select, update

from compositor.errors import LeaseLostError
from compositor.rows import changed, upsert
from compositor.runlease import process_name
from compositor.runs import claimable
from models.db import utc_now
from models.tables import ItemState, Output, Run, RunChunk, RunItem, RunState, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncSession

    from models.db import Database

ITEMS = cast("Table", RunItem.__table__)
OUTPUTS = cast("Table", Output.__table__)
SOURCES = cast("Table", Source.__table__)
CLAIM_AT_ONCE = 8
FAILED_TAKING = 3
"""What a taking counts that came to nothing in a worker which lives. One that ended with its worker counts one: they
are killed for many reasons, and a product that kills them has its own tries."""


@dataclass(frozen=True, slots=True)
class ChunkLease:
    """The right to write one chunk.

    `attempts` counts takings since it last made progress, this one included; see `FAILED_TAKING` for how much each.
    """

    run_id: int
    number: int
    first: int
    size: int
    fence: int
    attempts: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one item, with the rows of its outputs and its source."""

    position: int
    product_id: str | None
    state: ItemState
    reused: bool = False
    code: str | None = None
    reason: str | None = None
    source_key: str | None = None
    outputs: tuple[dict[str, Any], ...] = ()


@dataclass(slots=True)
class Results:
    """What the next write says: outcomes, sources learned of, and the positions that are about to be composed."""

    outcomes: list[Outcome] = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)
    tries: list[int] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.outcomes or self.sources or self.tries)


class Chunks:
    """All writes to chunks and their items. One object a process; its name owns the leases."""

    def __init__(self, db: Database, *, lease_seconds: float, clock: Callable[[], datetime] = utc_now) -> None:
        self.owner = f"{process_name(os.getpid())}:{secrets.token_hex(4)}"
        self.lease_seconds = lease_seconds
        self._db = db
        self._lease = timedelta(seconds=lease_seconds)
        self._clock = clock

    async def claim(self, run_id: int) -> ChunkLease | None:
        """Take a chunk of a run that is being composed; None when all are done or in other workers' hands."""
        while True:
            now = self._clock()
            found = select(RunChunk).where(RunChunk.run_id == run_id, claimable(now)).order_by(RunChunk.number)
            async with self._db.read() as session:
                candidates = list(await session.scalars(found.limit(CLAIM_AT_ONCE)))
            if not candidates:
                return None
            for chunk in candidates:
                if await self._seize(chunk, now):
                    return ChunkLease(
                        run_id, chunk.number, chunk.first, chunk.size, chunk.fence + 1, chunk.attempts + 1
                    )
            async with self._db.read() as session:
                if await session.scalar(select(Run.state).where(Run.id == run_id)) != RunState.COMPOSING.value:
                    return None

    async def renew(self, lease: ChunkLease) -> None:
        """Prolong a lease.

        Raises:
            LeaseLostError: the chunk is another's now, or the run is no longer composed.

        """
        async with self._db.write() as session:
            await self._guard(session, lease, {})

    async def save(self, lease: ChunkLease, results: Results, *, done: bool = False) -> None:
        """Write results, and the chunk's counts as they then are, in one transaction; the lease is prolonged too.

        `done` ends the chunk; it is left waiting, for somebody to take, when an item still has no outcome.

        Raises:
            LeaseLostError: nothing was written, see `renew`.

        """
        async with self._db.write() as session:
            await self._guard(session, lease, {"attempts": 0} if results.outcomes else {})
            await _save_tries(session, lease.run_id, results.tries)
            await _save_outcomes(session, lease.run_id, results.outcomes, self._clock())
            await upsert(session, OUTPUTS, [row for outcome in results.outcomes for row in outcome.outputs])
            await upsert(session, SOURCES, _last_of_each(results.sources))
            if results.outcomes or done:
                await self._count(session, lease, done=done)

    async def take_back(self, lease: ChunkLease, positions: Sequence[int]) -> None:
        """Undo one try of each of these items: their worker lives, so composing them killed nobody.

        Raises:
            LeaseLostError: nothing was written, see `renew`.

        """
        async with self._db.write() as session:
            await self._guard(session, lease, {})
            await _save_tries(session, lease.run_id, positions, -1)

    async def release(self, lease: ChunkLease, *, pause_s: float = 0.0) -> None:
        """Give an unfinished chunk back, so that a worker may take it at once or `pause_s` seconds from now."""
        free: dict[str, Any] = {"state": "waiting", "lease_owner": None, "lease_expires_at": None}
        if pause_s:
            # nobody's, but not to be taken before this lease runs out
            free = {"lease_owner": None, "lease_expires_at": self._clock() + timedelta(seconds=pause_s)}
        async with self._db.write() as session:
            await session.execute(
                update(RunChunk)
                .where(*_mine(lease))
                .where(RunChunk.state == "running")
                .values(**free, fence=RunChunk.fence + 1, attempts=RunChunk.attempts + FAILED_TAKING - 1)
            )

    async def release_all_of(self, process: str) -> int:
        """Give back what a process of this machine that has died held; `process` is `host:pid`."""
        free = {"state": "waiting", "lease_owner": None, "lease_expires_at": None}
        held = (RunChunk.state == "running", RunChunk.lease_owner.startswith(f"{process}:", autoescape=True))
        async with self._db.write() as session:
            return changed(
                await session.execute(update(RunChunk).where(*held).values(**free, fence=RunChunk.fence + 1))
            )

    async def _seize(self, chunk: RunChunk, now: datetime) -> bool:
        take = (
            update(RunChunk)
            .where(RunChunk.run_id == chunk.run_id, RunChunk.number == chunk.number, RunChunk.fence == chunk.fence)
            .where(claimable(now), _composing(chunk.run_id))
            .values(
                state="running",
                lease_owner=self.owner,
                lease_expires_at=now + self._lease,
                fence=chunk.fence + 1,
                attempts=chunk.attempts + 1,
            )
        )
        async with self._db.write() as session:
            return bool(changed(await session.execute(take)))

    async def _guard(self, session: AsyncSession, lease: ChunkLease, values: dict[str, Any]) -> None:
        held = (
            update(RunChunk)
            .where(*_mine(lease))
            .where(RunChunk.state == "running", _composing(lease.run_id))
            .values(lease_expires_at=self._clock() + self._lease, **values)
        )
        if not changed(await session.execute(held)):
            raise LeaseLostError

    async def _count(self, session: AsyncSession, lease: ChunkLease, *, done: bool) -> None:
        query = (
            select(RunItem.state, RunItem.reused, func.count())
            .where(RunItem.run_id == lease.run_id)
            .where(RunItem.position >= lease.first, RunItem.position < lease.first + lease.size)
            .group_by(RunItem.state, RunItem.reused)
        )
        numbers = dict.fromkeys(("completed", "failed", "skipped", "waiting", "reused"), 0)
        for state, reused, count in await session.execute(query):
            numbers[state] += count
            if reused and state == ItemState.COMPLETED.value:
                numbers["reused"] += count
        waiting = numbers.pop("waiting")
        values: dict[str, Any] = dict(numbers)
        if done:
            values |= {"state": "waiting" if waiting else "done", "lease_owner": None, "lease_expires_at": None}
        await session.execute(update(RunChunk).where(*_mine(lease)).values(**values))


def _mine(lease: ChunkLease) -> tuple[Any, ...]:
    return (RunChunk.run_id == lease.run_id, RunChunk.number == lease.number, RunChunk.fence == lease.fence)


def _composing(run_id: int) -> Any:
    return select(Run.id).where(Run.id == run_id, Run.state == RunState.COMPOSING.value).exists()


async def _save_tries(session: AsyncSession, run_id: int, positions: Sequence[int], by: int = 1) -> None:
    if positions:
        these = (RunItem.run_id == run_id, RunItem.position.in_(positions))
        await session.execute(update(RunItem).where(*these).values(attempts=RunItem.attempts + by))


async def _save_outcomes(session: AsyncSession, run_id: int, outcomes: Sequence[Outcome], now: datetime) -> None:
    if not outcomes:
        return
    statement = (
        update(ITEMS)
        .where(ITEMS.c.run_id == run_id, ITEMS.c.position == bindparam("at"))
        .values({name: bindparam(f"new_{name}") for name in ("state", "reused", "code", "reason", "source_key")})
        .values(finished_at=now)
    )
    rows = [
        {
            "at": outcome.position,
            "new_state": outcome.state.value,
            "new_reused": outcome.reused,
            "new_code": outcome.code,
            "new_reason": None if outcome.reason is None else outcome.reason[:512],
            "new_source_key": outcome.source_key,
        }
        for outcome in outcomes
    ]
    await (await session.connection()).execute(statement, rows)


def _last_of_each(sources: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """In an order that all writers share, so that two transactions never wait for each other's rows in a circle."""
    last = {(row["owner_id"], row["url_sha256"]): row for row in sources}
    return [last[key] for key in sorted(last)]
