"""What is kept of the past: a frame's newest runs and those of the last days, and products' pictures still in use.

One process at a time does this, under a lease; each step is whole by itself, and one that was cut off comes again.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import delete, func, or_, select, tuple_, update

from compositor.runs import FINISHED
from gateway.removal import ROWS_AT_ONCE, Removal, under_way
from models.db import utc_now
from models.leases import about_to_delete
from models.logs import get_logger
from models.tables import Frame, Output, Reply, Run, RunItem, Source

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import datetime

    from models.db import Database
    from models.store import ObjectStore

RUNS_AT_ONCE = 20
LOOK_AT_ONCE = 200
REPLIES_KEPT = timedelta(days=7)
"""How long an Idempotency-Key is remembered."""

log = get_logger(__name__)


class Retention:
    """Removes what is older than the settings want kept.

    Args:
        db: the database.
        store: the store.
        keep_runs: how many of a frame's newest runs stay, however old.
        keep_days: for how many days any run, and a product's picture that no kept run uses, stays.
        clock: the time.

    """

    def __init__(
        self,
        db: Database,
        store: ObjectStore,
        *,
        keep_runs: int,
        keep_days: float,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._db = db
        self._removal = Removal(db, store)
        self._keep_runs = keep_runs
        self._keep = timedelta(days=keep_days)
        self._clock = clock

    async def sweep(self, still_ours: Callable[[], Awaitable[bool]]) -> None:
        """Remove what may go. `still_ours` is asked between steps; False ends the sweep.

        Raises:
            DatabaseError, StoreError: what is left goes next time.

        """
        for step in (self._runs, self._sources, self._replies):
            if not await step(still_ours):
                return

    async def old_runs(self, after: int = 0) -> list[Run]:
        """The next runs that may go: ended, old, not among their frame's newest, and not the one it has published."""
        place = func.row_number().over(partition_by=Run.frame_id, order_by=Run.id.desc()).label("place")
        placed = select(Run.id, place).subquery()
        query = (
            select(Run)
            .join(placed, placed.c.id == Run.id)
            .join(Frame, Frame.id == Run.frame_id)
            .where(placed.c.place > self._keep_runs, Run.state.in_(FINISHED), Run.id > after)
            .where(func.coalesce(Run.finished_at, Run.created_at) < self._clock() - self._keep)
            .where(or_(Frame.published_run_id.is_(None), Frame.published_run_id != Run.id))
        )
        async with self._db.read() as session:
            return list(await session.scalars(query.order_by(Run.id).limit(RUNS_AT_ONCE)))

    async def _runs(self, still_ours: Callable[[], Awaitable[bool]]) -> bool:
        after = 0
        while runs := await self.old_runs(after):
            for run in runs:
                if not await still_ours():
                    return False
                await self._run(run)
            after = runs[-1].id
        return True

    async def _run(self, run: Run) -> None:
        """Its outputs are hidden, and go when no run of the frame is under way; then the rest."""
        last = select(func.max(Output.position)).where(Output.run_id == run.id)
        async with self._db.read() as session:
            end = await session.scalar(last)
        for first in range(0, (-1 if end is None else end) + 1, ROWS_AT_ONCE):
            span = Output.position.between(first, first + ROWS_AT_ONCE - 1)
            hide = update(Output).where(Output.run_id == run.id, span, Output.deleted_at.is_(None))
            async with self._db.write() as session:
                await session.execute(hide.values(deleted_at=self._clock()))
        if await self._removal.outputs(run.frame_id):
            await self._removal.run(run)
            log.info("old_run_removed", run_id=run.id, frame_id=run.frame_id)

    async def _sources(self, still_ours: Callable[[], Awaitable[bool]]) -> bool:
        after = ("", "")
        while await still_ours():
            query = select(Source).where(tuple_(Source.owner_id, Source.url_sha256) > after)
            query = query.order_by(Source.owner_id, Source.url_sha256).limit(LOOK_AT_ONCE)
            async with self._db.read() as session:
                found = list(await session.scalars(query))
            if not found:
                return True
            after = (found[-1].owner_id, found[-1].url_sha256)
            old = [row for row in found if row.checked_at < self._clock() - self._keep]
            for owner_id in {row.owner_id for row in old}:
                await self._forget(owner_id, [row for row in old if row.owner_id == owner_id])
        return False

    async def _forget(self, owner_id: str, rows: Sequence[Source]) -> None:
        """Drop what is known of some addresses, with their pictures, where no kept entry shows them."""
        keys = {row.object_key for row in rows}
        used = select(RunItem.source_key).where(RunItem.source_key.in_(keys)).distinct()
        async with self._db.read() as session:
            shown = set(await session.scalars(used))
        unused = [row.url_sha256 for row in rows if row.object_key not in shown]
        if not unused:
            return
        async with self._db.write() as session:
            await about_to_delete(session)
            if await under_way(session, Run.owner_id == owner_id):
                return
            these = (Source.owner_id == owner_id, Source.url_sha256.in_(unused))
            again = set(await session.scalars(used))
            old = Source.checked_at < self._clock() - self._keep
            await session.execute(delete(Source).where(*these, old, Source.object_key.not_in(again)))
        for key in sorted(keys - shown):  # another address may have the same picture: only an unnamed one goes
            await self._removal.objects([key], idle=Run.owner_id == owner_id)

    async def _replies(self, still_ours: Callable[[], Awaitable[bool]]) -> bool:
        async with self._db.write() as session:
            await session.execute(delete(Reply).where(Reply.created_at < self._clock() - REPLIES_KEPT))
        return await still_ours()
