"""Asks for whatever the rows still want done: after a crash, a lost Redis, a lost job; and starts due refreshes.

Several processes may run; one at a time holds the lease row and works. It changes nothing that jobs own: it only
puts jobs into queues, and jobs that come twice change nothing.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from redis.exceptions import RedisError
from sqlalchemy import and_, func, or_, select, update

from compositor.chunkrows import claimable
from compositor.errors import NoFeedError, RunActiveError
from compositor.kit import sweep_work_folder
from compositor.queue import Queues, connect
from compositor.rows import changed
from compositor.runs import FINISHED, start_run
from models.db import Database, DatabaseError, utc_now
from models.errors import NotFoundError
from models.leases import NamedLease
from models.logs import get_logger
from models.tables import Frame, Run, RunChunk, RunState

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from compositor.settings import CompositorSettings

EVERY_S = 5.0
LEASE = "reconcile"
LEASE_S = 15.0
SWEEP_EVERY_S = 600.0
SETTLE_S = 2.0
"""A run younger than this has its first job on the way from whoever started it."""
WEBHOOK_FIRST = timedelta(seconds=60)
WEBHOOK_FORGOTTEN_FOR = timedelta(hours=6)
WEBHOOK_OPEN_FOR = timedelta(days=7)
"""Its tries take some six hours; the rest is for a deployment that stood still meanwhile."""
REFRESHES_AT_ONCE = 50

log = get_logger(__name__)


async def run_reconciler(settings: CompositorSettings, stop: asyncio.Event) -> None:
    """Reconcile every five seconds until told to stop. Faults of database and Redis are waited out."""
    db = Database(settings.database)
    redis = connect(settings.redis)
    reconciler = Reconciler(db, Queues(redis))
    swept = time.monotonic() - SWEEP_EVERY_S
    try:
        while not stop.is_set():
            try:
                await reconciler.reconcile()
                if time.monotonic() - swept >= SWEEP_EVERY_S:
                    await sweep_work_folder(settings.work_folder)
                    swept = time.monotonic()
            except (DatabaseError, RedisError) as problem:
                log.warning("reconcile_missed", reason=str(problem) or type(problem).__name__)
            except Exception:  # the edge of a loop that must not die while the process lives
                log.exception("reconcile_crashed")
            await _pause(stop, EVERY_S)
    finally:
        await db.close()
        redis.close()


class Reconciler:
    """One process's reconciling; its name owns the lease."""

    def __init__(self, db: Database, queues: Queues, *, clock: Callable[[], datetime] = utc_now) -> None:
        self.owner = f"rec_{secrets.token_hex(8)}"
        self._db = db
        self._queues = queues
        self._clock = clock
        self._lease = NamedLease(db, LEASE, self.owner, seconds=LEASE_S, clock=clock)

    async def reconcile(self) -> bool:
        """One round. False: another process has the lease.

        Raises:
            DatabaseError, RedisError: the round is not whole; the next one is.

        """
        if not await self._lease.hold():
            return False
        await self._start_refreshes()
        asked = await asyncio.to_thread(self._queues.asked)
        for run in await self._open_runs():
            await self._ask(run, asked)
        await self._ask_webhooks(asked)
        return True

    async def _open_runs(self) -> list[Run]:
        async with self._db.read() as session:
            return list(await session.scalars(select(Run).where(Run.state.not_in(FINISHED)).order_by(Run.id)))

    async def _ask(self, run: Run, asked: dict[tuple[str, int], int]) -> None:
        now = self._clock()
        silent = run.lease_expires_at is None or run.lease_expires_at <= now
        young = (now - run.created_at).total_seconds() < SETTLE_S
        if run.state in (RunState.QUEUED.value, RunState.INGESTING.value):
            if silent and not young and not asked.get(("ingest", run.id)):
                await self._put("ingest", run.id)
        elif run.state == RunState.COMPOSING.value:
            await self._ask_chunks(run, now, asked)
        elif silent and not asked.get(("publish", run.id)):
            await self._put("publish", run.id)

    async def _ask_chunks(self, run: Run, now: datetime, asked: dict[tuple[str, int], int]) -> None:
        waiting = select(func.count()).select_from(RunChunk).where(RunChunk.run_id == run.id, claimable(now))
        undone = select(func.count()).select_from(RunChunk).where(RunChunk.run_id == run.id, RunChunk.state != "done")
        async with self._db.read() as session:
            left = int(await session.scalar(waiting) or 0)
            over = not await session.scalar(undone)
        if over and not asked.get(("publish", run.id)):
            await self._put("publish", run.id)
        elif left:
            await asyncio.to_thread(self._queues.compose, run.id, left)

    async def _put(self, kind: str, run_id: int) -> None:
        log.info("job_asked_for_again", job=kind, run_id=run_id)
        await asyncio.to_thread(self._queues.again, kind, run_id)

    async def _ask_webhooks(self, asked: dict[tuple[str, int], int]) -> None:
        """Webhooks that are to be posted again, and those that nobody has posted yet."""
        now = self._clock()
        # whoever ended the run asks for the first post; a run of before this long is not told of any more
        forgotten = and_(
            Run.webhook_attempts == 0,
            Run.finished_at.between(now - WEBHOOK_FORGOTTEN_FOR, now - WEBHOOK_FIRST),
        )
        due = and_(Run.webhook_attempts > 0, Run.webhook_next_at <= now, Run.finished_at > now - WEBHOOK_OPEN_FOR)
        open_ones = (Run.state.in_(FINISHED), Run.webhook_sent_at.is_(None), or_(due, forgotten))
        async with self._db.read() as session:
            runs = list(await session.scalars(select(Run).where(*open_ones).order_by(Run.id)))
        for run in runs:
            if run.snapshot.get("webhook_url") and not asked.get(("webhook", run.id)):
                await self._put("webhook", run.id)

    async def _start_refreshes(self) -> None:
        now = self._clock()
        due = select(Frame).where(Frame.next_refresh_at <= now, Frame.deleted_at.is_(None))
        async with self._db.read() as session:
            frames = list(await session.scalars(due.order_by(Frame.next_refresh_at).limit(REFRESHES_AT_ONCE)))
        for frame in frames:
            following = None if not frame.refresh_seconds else now + timedelta(seconds=frame.refresh_seconds)
            same = (Frame.id == frame.id, Frame.next_refresh_at == frame.next_refresh_at)
            async with self._db.write() as session:
                moved = changed(await session.execute(update(Frame).where(*same).values(next_refresh_at=following)))
            if moved and following is not None:
                await self._refresh(frame)

    async def _refresh(self, frame: Frame) -> None:
        try:
            run = await start_run(self._db, frame, "refresh")
        except (RunActiveError, NoFeedError, NotFoundError) as problem:
            log.info("refresh_left_out", frame_id=frame.id, reason=problem.code)
            return
        log.info("refresh_started", frame_id=frame.id, run_id=run.id)
        await asyncio.to_thread(self._queues.ingest, run.id)


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
