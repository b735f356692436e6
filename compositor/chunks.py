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
from typing import TYPE_CHECKING, Any

from sqlalchemy import update

from compositor import chunkrows as rows
from compositor.errors import LeaseLostError
from compositor.rows import changed, upsert
from compositor.runlease import process_name
from models.db import utc_now
from models.tables import ItemState, RunChunk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from models.db import Database

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

    @property
    def key(self) -> dict[str, int]:
        """Parameters that say which row of `run_chunks` this is about, and that it must not be another's by now."""
        return {"of_run": self.run_id, "of_number": self.number, "of_fence": self.fence}

    @property
    def items(self) -> dict[str, int]:
        """Parameters that say which rows of `run_items` belong to it."""
        return {"of_run": self.run_id, "of_first": self.first, "of_end": self.first + self.size}


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
    saved: bool = False
    """Whether all of it is committed; it may be although the caller was cancelled in the moment of the commit."""

    def note_saved(self) -> None:
        """All of it is committed."""
        self.saved = True

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
        now = self._clock()
        return await self._db.write_at_once(lambda connection: self._claim(connection, run_id, now))

    async def waiting(self, lease: ChunkLease) -> Sequence[Any]:
        """The columns of `chunkrows.WAITING_ITEMS` of each item of a chunk that has no outcome, in their order."""
        return await self._db.read_at_once(
            lambda connection: connection.execute(rows.WAITING_ITEMS, lease.items).all()
        )

    async def renew(self, lease: ChunkLease) -> None:
        """Prolong a lease.

        Raises:
            LeaseLostError: the chunk is another's now, or the run is no longer composed.

        """
        await self._db.write_at_once(lambda connection: self._guard(connection, lease))

    async def save(self, lease: ChunkLease, results: Results, *, done: bool = False) -> None:
        """Write results, and the chunk's counts as they then are, in one transaction; the lease is prolonged too.

        `done` ends the chunk; it is left waiting, for somebody to take, when an item still has no outcome.

        Raises:
            LeaseLostError: nothing was written, see `renew`.

        """

        def write(connection: Connection) -> None:
            self._guard(connection, lease, progress=bool(results.outcomes))
            _save_tries(connection, lease.run_id, results.tries, 1)
            _save_outcomes(connection, lease.run_id, results.outcomes, self._clock())
            upsert(connection, rows.OUTPUTS, [row for outcome in results.outcomes for row in outcome.outputs])
            upsert(connection, rows.SOURCES, _last_of_each(results.sources))
            if results.outcomes or done:
                _count(connection, lease, done=done)

        await self._db.write_at_once(write, results.note_saved)

    async def take_back(self, lease: ChunkLease, positions: Sequence[int]) -> None:
        """Undo one try of each of these items: their worker lives, so composing them killed nobody.

        Raises:
            LeaseLostError: nothing was written, see `renew`.

        """

        def write(connection: Connection) -> None:
            self._guard(connection, lease)
            _save_tries(connection, lease.run_id, positions, -1)

        await self._db.write_at_once(write)

    async def release(self, lease: ChunkLease, *, pause_s: float = 0.0) -> None:
        """Give an unfinished chunk back, so that a worker may take it at once or `pause_s` seconds from now."""
        free: dict[str, Any] = {"state": "waiting", "lease_owner": None, "lease_expires_at": None}
        if pause_s:
            # nobody's, but not to be taken before this lease runs out
            free = {"lease_owner": None, "lease_expires_at": self._clock() + timedelta(seconds=pause_s)}
        async with self._db.write() as session:
            await session.execute(
                update(RunChunk)
                .where(RunChunk.run_id == lease.run_id, RunChunk.number == lease.number)
                .where(RunChunk.fence == lease.fence, RunChunk.state == "running")
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

    def _claim(self, connection: Connection, run_id: int, now: datetime) -> ChunkLease | None:
        found = connection.execute(rows.FREE, {"of_run": run_id, "of_now": now}).first()
        if found is None:
            return None
        lease = ChunkLease(run_id, found.number, found.first, found.size, found.fence + 1, found.attempts + 1)
        new = {"of_fence": found.fence, "new_owner": self.owner, "new_until": now + self._lease}
        connection.execute(rows.SEIZE, {**lease.key, **new})
        return lease

    def _guard(self, connection: Connection, lease: ChunkLease, *, progress: bool = False) -> None:
        new = {"new_until": self._clock() + self._lease, "new_progress": progress}
        if not changed(connection.execute(rows.GUARD, {**lease.key, **new})):
            raise LeaseLostError


def _count(connection: Connection, lease: ChunkLease, *, done: bool) -> None:
    numbers = dict.fromkeys((*rows.COUNTED, "waiting"), 0)
    for state, reused, count in connection.execute(rows.COUNT, lease.items):
        numbers[state] += count
        if reused and state == ItemState.COMPLETED.value:
            numbers["reused"] += count
    new: dict[str, Any] = {f"new_{name}": numbers[name] for name in rows.COUNTED}
    if done:
        new["new_state"] = "waiting" if numbers["waiting"] else "done"
    connection.execute(rows.END if done else rows.COUNTS, {**lease.key, **new})


def _save_tries(connection: Connection, run_id: int, positions: Sequence[int], by: int) -> None:
    if positions:
        connection.execute(rows.TRY, {"of_run": run_id, "of_positions": list(positions), "new_tries": by})


def _save_outcomes(connection: Connection, run_id: int, outcomes: Sequence[Outcome], now: datetime) -> None:
    if not outcomes:
        return
    parameters = [
        {
            "of_run": run_id,
            "of_position": outcome.position,
            "new_state": outcome.state.value,
            "new_reused": outcome.reused,
            "new_code": outcome.code,
            "new_reason": None if outcome.reason is None else outcome.reason[:512],
            "new_source_key": outcome.source_key,
            "new_finished_at": now,
        }
        for outcome in outcomes
    ]
    connection.execute(rows.OUTCOME, parameters)


def _last_of_each(sources: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """In an order that all writers share, so that two transactions never wait for each other's rows in a circle."""
    last = {(row["owner_id"], row["url_sha256"]): row for row in sources}
    return [last[key] for key in sorted(last)]
