"""Runs as callers see them: started, listed, counted, cancelled, tried again. The rows are the truth.

What a run does between these calls is the workers' part: `ingest`, `work`, `publish`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy import bindparam, delete, func, select, update

from compositor.errors import (
    NoFeedError,
    NothingToRetryError,
    RunActiveError,
    RunFinishedError,
    RunSupersededError,
)
from compositor.rows import changed
from compositor.snapshot import take_snapshot
from models.db import utc_now
from models.errors import NotFoundError
from models.leases import about_to_name
from models.tables import FINISHED_RUNS, Frame, ItemState, Run, RunChunk, RunItem, RunState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncSession

    from models.db import Database

_SUMMED = (RunChunk.size, RunChunk.completed, RunChunk.failed, RunChunk.skipped, RunChunk.reused)
_COUNTS = (
    select(RunChunk.run_id, *(func.coalesce(func.sum(column), 0) for column in _SUMMED))
    .where(RunChunk.run_id.in_(bindparam("of_runs", expanding=True)))
    .group_by(RunChunk.run_id)
)

FINISHED = tuple(sorted(state.value for state in FINISHED_RUNS))


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of a run's entries. `completed`, `failed`, `skipped` and `waiting` always add up to `total`.

    `reused` are those of `completed` for which nothing was composed. `waiting` are entries without an outcome: not
    yet, or, in a run that was cancelled or has failed, for ever.
    """

    total: int
    completed: int
    failed: int
    skipped: int
    reused: int
    waiting: int

    @property
    def processed(self) -> int:
        """Entries that have an outcome."""
        return self.completed + self.failed + self.skipped


async def start_run(
    db: Database,
    frame: Frame,
    trigger: str = "manual",
    after: Callable[[AsyncSession, Run], Awaitable[None]] | None = None,
) -> Run:
    """Save a new run of a frame, as the frame is at this moment. Its work is to be enqueued afterwards.

    Args:
        db: the database.
        frame: whose run it is; its row is read anew.
        trigger: what asked for it: `manual`, `refresh` or another word of at most 16 characters.
        after: done in the same transaction, with the run that has its `id`.

    Raises:
        NotFoundError: the frame is deleted.
        NoFeedError: it has no feed.
        RunActiveError: it has a run that has not ended.

    """
    async with db.write() as session:
        await about_to_name(session)  # its workers may find what an earlier run left
        row = await _lock_frame(session, frame.id)
        if row is None or row.deleted_at is not None:
            raise NotFoundError
        if not row.feed_url and not row.feed_key:
            raise NoFeedError
        await _refuse_second(session, row.id)
        run = Run(
            frame_id=row.id,
            owner_id=row.owner_id,
            state=RunState.QUEUED.value,
            trigger=trigger,
            snapshot=(await take_snapshot(session, row)).to_row(),
            feed_url=row.feed_url,
            feed_key=None if row.feed_url else row.feed_key,
            partial=False,
            fence=0,
            attempts=0,
            created_at=utc_now(),
        )
        session.add(run)
        await session.flush()
        if after is not None:
            await after(session, run)
    return run


async def cancel_run(db: Database, owner_id: str, run_id: int) -> Run:
    """End a run at once. What is done stays done; nothing is published, and workers stop at their next write.

    Raises:
        NotFoundError: there is no such run of this owner.
        RunFinishedError: it has ended already.

    """
    now = utc_now()
    cancel = (
        update(Run)
        .where(Run.id == run_id, Run.owner_id == owner_id, Run.state.not_in(FINISHED))
        .values(
            state=RunState.CANCELLED.value,
            cancel_requested_at=now,
            finished_at=now,
            lease_owner=None,
            lease_expires_at=None,
            fence=Run.fence + 1,
        )
    )
    async with db.write() as session:
        ended = await session.execute(cancel)
        run = await session.scalar(select(Run).where(Run.id == run_id, Run.owner_id == owner_id))
    if run is None:
        raise NotFoundError
    if not changed(ended):
        raise RunFinishedError
    return run


async def retry_failed(db: Database, owner_id: str, run_id: int) -> Run:
    """Open a run that has ended again, for the products that failed or were never tried.

    The same run goes on, so that its counts and its feed grow whole; the design is the one it began with. A run
    whose feed could not be read begins anew.

    Raises:
        NotFoundError: there is no such run of this owner.
        RunActiveError: it, or another run of its frame, is under way.
        RunSupersededError: the frame has a later run.
        NothingToRetryError: every product has its picture.

    """
    async with db.write() as session:
        await about_to_name(session)
        run = await session.scalar(select(Run).where(Run.id == run_id, Run.owner_id == owner_id))
        frame = None if run is None else await _lock_frame(session, run.frame_id)
        if run is None or frame is None or frame.deleted_at is not None:
            raise NotFoundError
        await _refuse_second(session, run.frame_id)
        if await session.scalar(select(Run.id).where(Run.frame_id == run.frame_id, Run.id > run.id).limit(1)):
            raise RunSupersededError
        await session.refresh(run)
        await _reopen(session, run)
    return run


async def get_run(db: Database, owner_id: str, run_id: int) -> Run:
    """One run.

    Raises:
        NotFoundError: there is no such run of this owner.

    """
    async with db.read() as session:
        run = await session.scalar(select(Run).where(Run.id == run_id, Run.owner_id == owner_id))
    if run is None:
        raise NotFoundError
    return run


async def list_runs(db: Database, frame_id: int, *, limit: int = 50, before: int | None = None) -> list[Run]:
    """A frame's runs, newest first, with ids below `before`."""
    query = select(Run).where(Run.frame_id == frame_id)
    if before is not None:
        query = query.where(Run.id < before)
    async with db.read() as session:
        return list(await session.scalars(query.order_by(Run.id.desc()).limit(limit)))


async def counts(db: Database, run_id: int) -> Counts:
    """A run's counts: sums over its chunks, whose rows are rewritten with each result."""
    return (await counts_of(db, [run_id]))[run_id]


async def counts_of(db: Database, run_ids: list[int]) -> dict[int, Counts]:
    """The counts of several runs in one question to the database."""
    return await db.read_at_once(partial(read_counts, run_ids=run_ids))


def read_counts(connection: Connection, run_ids: list[int]) -> dict[int, Counts]:
    """As `counts_of`, within a transaction."""
    found = dict.fromkeys(run_ids, Counts(0, 0, 0, 0, 0, 0))
    for run_id, *numbers in connection.execute(_COUNTS, {"of_runs": run_ids}):
        total, completed, failed, skipped, reused = map(int, numbers)
        found[run_id] = Counts(total, completed, failed, skipped, reused, total - completed - failed - skipped)
    return found


async def _lock_frame(session: AsyncSession, frame_id: int) -> Frame | None:
    """The frame's row, held so that two starts of one frame come one after the other."""
    return await session.scalar(select(Frame).where(Frame.id == frame_id).with_for_update())


async def _refuse_second(session: AsyncSession, frame_id: int) -> None:
    active = select(Run.id).where(Run.frame_id == frame_id, Run.state.not_in(FINISHED)).limit(1)
    if await session.scalar(active) is not None:
        raise RunActiveError


async def _reopen(session: AsyncSession, run: Run) -> None:
    if run.total is None:  # its feed never came in whole
        await session.execute(delete(RunItem).where(RunItem.run_id == run.id))
        await session.execute(delete(RunChunk).where(RunChunk.run_id == run.id))
        run.state = RunState.QUEUED.value
        run.feed_key = None if run.feed_url else run.feed_key
        run.partial = False
    else:
        await _reopen_items(session, run)
        run.state = RunState.COMPOSING.value
    run.error_code = run.error = None
    run.cancel_requested_at = run.finished_at = None
    run.webhook_sent_at = run.webhook_next_at = run.webhook_error = None
    run.webhook_attempts = 0
    run.lease_owner = run.lease_expires_at = None
    run.started_at = utc_now()  # pictures fetched before this moment are asked for again
    run.fence += 1
    run.attempts = 0


async def _reopen_items(session: AsyncSession, run: Run) -> None:
    failed = (RunItem.run_id == run.id, RunItem.state == ItemState.FAILED.value)
    again = {"state": ItemState.WAITING.value, "attempts": 0, "code": None, "reason": None, "finished_at": None}
    await session.execute(update(RunItem).where(*failed).values(**again))
    unfinished = RunChunk.size > RunChunk.completed + RunChunk.skipped
    reopened = await session.execute(
        update(RunChunk)
        .where(RunChunk.run_id == run.id, unfinished)
        .values(
            state="waiting",
            failed=0,
            lease_owner=None,
            lease_expires_at=None,
            fence=RunChunk.fence + 1,
            attempts=0,
        )
    )
    # a run that failed while it was published, or was cancelled before, has nothing to compose but a feed to make
    if not changed(reopened) and run.state not in (RunState.FAILED.value, RunState.CANCELLED.value):
        raise NothingToRetryError
