"""The lease of a whole run: held while its feed is read, and again while its result is published."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, or_, select, update

from compositor.errors import LeaseLostError
from compositor.rows import changed
from models.db import DatabaseError, utc_now
from models.logs import get_logger
from models.tables import Run, RunChunk, RunState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncSession

    from models.db import Database

MOST_ATTEMPTS = 5
"""A run whose feed could not be read, or whose result could not be published, this often has failed."""
LEASED = (RunState.INGESTING.value, RunState.PUBLISHING.value)
BEATS = 3
"""How often a lease is renewed within its time."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RunLease:
    """The right to change a run's row. `run` is the row as it was when the lease was taken."""

    run: Run
    fence: int
    attempts: int


class RunLeases:
    """Takes, keeps and ends leases of runs."""

    def __init__(self, db: Database, *, lease_seconds: float, clock: Callable[[], datetime] = utc_now) -> None:
        self.owner = f"{process_name(os.getpid())}:{secrets.token_hex(4)}"
        self.seconds = lease_seconds
        self._db = db
        self._clock = clock

    async def claim_ingest(self, run_id: int) -> RunLease | None:
        """Take a run whose feed is still to be read; None when there is nothing to take."""
        now = self._clock()
        ready = or_(
            Run.state == RunState.QUEUED.value,
            and_(Run.state == RunState.INGESTING.value, Run.lease_expires_at <= now),
        )
        return await self._claim(run_id, ready, RunState.INGESTING, now)

    async def claim_publish(self, run_id: int) -> RunLease | None:
        """Take a run whose chunks are all done; None when there is nothing to take."""
        now = self._clock()
        ready = or_(
            and_(Run.state == RunState.COMPOSING.value, all_done(run_id)),
            and_(Run.state == RunState.PUBLISHING.value, Run.lease_expires_at <= now),
        )
        return await self._claim(run_id, ready, RunState.PUBLISHING, now)

    async def change(self, lease: RunLease, **values: Any) -> None:
        """Change the row.

        Raises:
            LeaseLostError: another process has it, or it was cancelled.

        """
        async with self._db.write() as session:
            await self.guard(session, lease, **values)

    async def guard(self, session: AsyncSession, lease: RunLease, **values: Any) -> None:
        """As `change`, within a transaction of the caller's; without values it only prolongs the lease."""
        values = values or {"lease_expires_at": self._clock() + timedelta(seconds=self.seconds)}
        held = update(Run).where(Run.id == lease.run.id, Run.fence == lease.fence)
        if not changed(await session.execute(held.where(Run.state.in_(LEASED)).values(**values))):
            raise LeaseLostError

    async def release(self, lease: RunLease) -> None:
        """Give an unfinished run back, so that the reconciler asks for it again at once."""
        await self.change(lease, lease_expires_at=self._clock())

    async def release_all_of(self, process: str) -> int:
        """Give back what a process of this machine that has died held; `process` is `host:pid`."""
        held = (Run.lease_owner.startswith(f"{process}:", autoescape=True), Run.state.in_(LEASED))
        async with self._db.write() as session:
            return changed(await session.execute(update(Run).where(*held).values(lease_expires_at=self._clock())))

    @asynccontextmanager
    async def kept(self, lease: RunLease) -> AsyncIterator[None]:
        """Renew a lease for as long as the block runs; the block is cancelled when the lease is lost.

        Raises:
            LeaseLostError: it was.

        """
        async with keep_beating(lambda: self.change(lease), self.seconds):
            yield

    async def _claim(self, run_id: int, ready: Any, state: RunState, now: datetime) -> RunLease | None:
        take = (
            update(Run)
            .where(Run.id == run_id, ready)
            .values(
                state=state.value,
                lease_owner=self.owner,
                lease_expires_at=now + timedelta(seconds=self.seconds),
                fence=Run.fence + 1,
                attempts=Run.attempts + 1,
            )
        )
        async with self._db.write() as session:
            if not changed(await session.execute(take)):
                return None
            run = await session.get_one(Run, run_id, populate_existing=True)
            if run.started_at is None:
                run.started_at = now
        return RunLease(run, run.fence, run.attempts)


def process_name(pid: int) -> str:
    """A process of this machine, as it stands at the beginning of its leases' owners."""
    return f"{socket.gethostname()[:30]}:{pid}"


def all_done(run_id: int) -> Any:
    """Whether no chunk of a run is still to be done."""
    left = select(RunChunk.number).where(RunChunk.run_id == run_id, RunChunk.state != "done")
    return ~left.exists()


@asynccontextmanager
async def keep_beating(renew: Callable[[], Awaitable[None]], lease_seconds: float) -> AsyncIterator[None]:
    """Call `renew` three times a lease while the block runs; a lost lease cancels the block and is raised.

    A database that does not answer is asked again at the next beat: the lease may still hold, and writes are fenced.
    """
    block = asyncio.current_task()
    assert block is not None  # noqa: S101 - coroutines run in tasks
    lost = False

    async def beat() -> None:
        nonlocal lost
        while True:
            await asyncio.sleep(lease_seconds / BEATS)
            try:
                await renew()
            except DatabaseError:
                log.warning("beat_missed")
            except LeaseLostError:
                lost = True
                block.cancel()
                return

    beating = asyncio.create_task(beat())
    try:
        yield
    except asyncio.CancelledError:
        if lost and block.uncancel() == 0:
            raise LeaseLostError from None
        raise
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
