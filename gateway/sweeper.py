"""Removes what was deleted: rows say what is to go, and go last, so that a killed process leaves nothing behind.

An object goes when nothing living names it any more: equal outputs of several runs share one object, and so do equal
pictures of several frames.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from sqlalchemy import String, cast, delete, func, or_, select, update

from compositor.errors import RunFinishedError
from compositor.runs import cancel_run
from models.db import DatabaseError, utc_now
from models.logs import get_logger
from models.store import StoreError
from models.tables import FINISHED_RUNS, Asset, Frame, Output, Picture, Run, RunChunk, RunItem

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.ext.asyncio import AsyncSession

    from models.db import Database
    from models.store import ObjectStore

EVERY_S = 60.0
BATCH = 100
ITEMS_AT_ONCE = 5000
"""Rows deleted in one transaction: on SQLite nobody else writes meanwhile."""
FINISHED = tuple(state.value for state in FINISHED_RUNS)

log = get_logger(__name__)


class Sweeper:
    """One task a process. Several processes may sweep at once."""

    def __init__(self, db: Database, store: ObjectStore) -> None:
        self._db = db
        self._store = store
        self._kicked = asyncio.Event()
        self._replaced: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start sweeping."""
        self._task = asyncio.create_task(self._work(), name="sweeper")

    async def stop(self) -> None:
        """Stop at once; the next process goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def kick(self, replaced: Iterable[str | None] = ()) -> None:
        """Sweep now. `replaced` are keys that a row named until a moment ago."""
        self._replaced |= {key for key in replaced if key is not None}
        self._kicked.set()

    async def sweep(self) -> None:
        """Remove everything that was deleted until now.

        Raises:
            DatabaseError, StoreError: what is left goes next time.

        """
        while self._replaced:
            await self._release(next(iter(self._replaced)))
        await self._outputs()
        await self._assets()
        async with self._db.read() as session:
            gone = list(await session.scalars(select(Frame).where(Frame.deleted_at.is_not(None))))
        for frame in gone:
            await self._frame(frame)

    async def _work(self) -> None:
        while True:
            self._kicked.clear()
            try:
                await self.sweep()
            except (DatabaseError, StoreError) as problem:
                log.warning("sweep_put_off", reason=problem.message)
            except Exception:  # the edge of a task that must not die while the process lives
                log.exception("sweep_crashed")
            try:
                async with asyncio.timeout(EVERY_S):
                    await self._kicked.wait()
            except TimeoutError:
                continue

    async def _outputs(self) -> None:
        query = select(Output.object_key).where(Output.deleted_at.is_not(None)).distinct().limit(BATCH)
        while True:
            async with self._db.read() as session:
                keys = list(await session.scalars(query))
            if not keys:
                return
            for key in keys:
                await self._output(key)

    async def _output(self, key: str) -> None:
        named = Output.object_key == key
        async with self._db.write() as session:  # on SQLite nobody adds a row meanwhile
            living = select(Output.run_id).where(named, Output.deleted_at.is_(None)).limit(1)
            if await session.scalar(living) is None:
                await self._store.delete(key)
            await session.execute(delete(Output).where(named, Output.deleted_at.is_not(None)))

    async def _assets(self) -> None:
        async with self._db.read() as session:
            gone = list(await session.scalars(select(Asset).where(Asset.deleted_at.is_not(None)).limit(BATCH)))
        for asset in gone:
            if await self._release(asset.object_key):
                async with self._db.write() as session:
                    await session.execute(delete(Asset).where(Asset.id == asset.id))

    async def _frame(self, frame: Frame) -> None:
        """Outputs, items, chunks, runs, feeds, the picture, and at last the frame's row."""
        async with self._db.write() as session:
            late = update(Output).where(Output.frame_id == frame.id, Output.deleted_at.is_(None))
            await session.execute(late.values(deleted_at=utc_now()))
        await self._outputs()
        async with self._db.read() as session:
            runs = list(await session.scalars(select(Run).where(Run.frame_id == frame.id)))
        for run in runs:
            if run.state not in FINISHED:
                with suppress(RunFinishedError):
                    await cancel_run(self._db, run.owner_id, run.id)
            await self._run(run)
        async with self._db.write() as session:
            await session.execute(delete(Frame).where(Frame.id == frame.id))
        await self._release(frame.picture_key)
        if frame.feed_key is not None:
            await self._release(frame.feed_key)

    async def _run(self, run: Run) -> None:
        async with self._db.read() as session:
            last = await session.scalar(select(func.max(RunItem.position)).where(RunItem.run_id == run.id))
        for first in range(0, (-1 if last is None else last) + 1, ITEMS_AT_ONCE):
            span = RunItem.position.between(first, first + ITEMS_AT_ONCE - 1)
            async with self._db.write() as session:
                await session.execute(delete(RunItem).where(RunItem.run_id == run.id, span))
        for key in (run.output_feed_key, run.output_csv_key):
            if key is not None:
                await self._store.delete(key)
                await self._store.delete(f"{key}.gz")
        async with self._db.write() as session:
            await session.execute(delete(RunChunk).where(RunChunk.run_id == run.id))
            await session.execute(delete(Run).where(Run.id == run.id))
        if run.feed_key is not None:
            await self._release(run.feed_key)
        await self._release(str(run.snapshot.get("picture_key", "")))

    async def _release(self, key: str) -> bool:
        """Remove an object unless something living names it; whether nothing does."""
        if not key:
            return True
        async with self._db.write() as session:
            needed = await _needed(session, key)
            if not needed:
                await self._store.delete(key)
        self._replaced.discard(key)
        return not needed


async def _needed(session: AsyncSession, key: str) -> bool:
    asks = (
        select(Picture.id).where(Picture.object_key == key),
        select(Asset.id).where(Asset.object_key == key, Asset.deleted_at.is_(None)),
        select(Frame.id).where(or_(Frame.picture_key == key, Frame.feed_key == key)),
        # what a run was started with is there for its retry
        select(Run.id).where(or_(Run.feed_key == key, cast(Run.snapshot, String).contains(key, autoescape=True))),
    )
    for ask in asks:
        if await session.scalar(ask.limit(1)) is not None:
            return True
    return False
