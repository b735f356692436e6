"""How objects and their rows go: a bounded number in one transaction, looked at again inside it, rows last.

Nobody may name an object while it goes. Whoever makes a row that names one, or begins a run whose workers may find
it, holds `about_to_name`; whoever deletes holds `about_to_delete`, and leaves alone what a run under way may be
about to use: a frame's outputs while a run of that frame is, an owner's sources while any run of that owner is.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import and_, delete, func, or_, select

from compositor.runs import FINISHED
from gateway.inputs import inline_fields, input_key
from gateway.naming import named
from models.db import utc_now
from models.leases import about_to_delete
from models.store import ObjectMissingError
from models.tables import Generation, Output, Picture, Run, RunChunk, RunItem, RunState

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from sqlalchemy import ColumnElement
    from sqlalchemy.ext.asyncio import AsyncSession

    from models.db import Database
    from models.store import ObjectStore

AT_ONCE = 32
"""Objects deleted in one transaction: while it lasts nothing else is named, and on SQLite nobody else writes."""
ROWS_AT_ONCE = 5000
SETTLED_S = 60.0
"""A run that was cancelled, or has failed, may have a worker in the midst of its last transaction."""
STOPPED = (RunState.CANCELLED.value, RunState.FAILED.value)


class Removal:
    """Deletes objects that no row names any more."""

    def __init__(self, db: Database, store: ObjectStore) -> None:
        self.db = db
        self.store = store

    async def objects(
        self, keys: Collection[str], *, idle: ColumnElement[bool] | None = None, older_than: datetime | None = None
    ) -> bool:
        """Remove those of some objects that no row names, `AT_ONCE` at most.

        Args:
            keys: their keys.
            idle: runs of which none may be under way.
            older_than: what was written later stays.

        Returns:
            False when nothing was looked at, since such a run is under way.

        Raises:
            DatabaseError, StoreError: what is left goes another time.

        """
        async with self.db.write() as session:
            await about_to_delete(session)
            if idle is not None and await under_way(session, idle):
                return False
            free = sorted(set(keys) - await named(session, keys))
            if older_than is not None:
                free = await self.old(free, older_than)
            await self.delete(free)
        return True

    async def old(self, keys: Collection[str], older_than: datetime) -> list[str]:
        """Those of some objects that are there and were written before a moment."""

        async def is_old(key: str) -> bool:
            try:
                return (await self.store.head(key)).last_modified < older_than
            except ObjectMissingError:
                return False

        asked = list(keys)
        told = await asyncio.gather(*map(is_old, asked))
        return [key for key, old in zip(asked, told, strict=True) if old]

    async def delete(self, keys: Collection[str]) -> None:
        """Delete objects, several at a time, whoever names them."""
        waiting = list(keys)
        for first in range(0, len(waiting), AT_ONCE):
            await asyncio.gather(*(self.store.delete(key) for key in waiting[first : first + AT_ONCE]))

    async def pictures(self) -> None:
        """Remove the pictures of deleted generations, and what those were asked to start from.

        Raises:
            DatabaseError, StoreError: what is left goes another time.

        """
        some = select(Picture).where(Picture.deleted_at.is_not(None)).limit(AT_ONCE)
        while True:
            async with self.db.write() as session:
                await about_to_delete(session)
                if not (gone := list(await session.scalars(some))):
                    return
                whose = {picture.generation_id for picture in gone}
                asked = select(Generation.id, Generation.input).where(Generation.id.in_(whose))
                for generation_id, fields in (await session.execute(asked)).all():
                    await self.delete([input_key(generation_id, field) for field in inline_fields(fields)])
                keys = {picture.object_key for picture in gone}
                await self.delete(keys - await named(session, keys))
                await session.execute(delete(Picture).where(Picture.id.in_([picture.id for picture in gone])))

    async def outputs(self, frame_id: int, *, settled: bool = False) -> bool:
        """Remove a frame's outputs that were deleted; False: some are left until its run has ended.

        Args:
            frame_id: whose.
            settled: the frame is deleted as well, so that it does not matter what a stopped run still writes.

        """
        gone = (Output.frame_id == frame_id, Output.deleted_at.is_not(None))
        some = select(Output.object_key).where(*gone).distinct().limit(AT_ONCE)
        while True:
            async with self.db.write() as session:
                await about_to_delete(session)
                if not (keys := list(await session.scalars(some))):
                    return True
                if await under_way(session, Run.frame_id == frame_id, settled=settled):
                    return False
                await self.delete(set(keys) - await named(session, keys))
                await session.execute(delete(Output).where(*gone, Output.object_key.in_(keys)))

    async def run(self, run: Run) -> None:
        """Remove a run that has ended, all of whose outputs are gone: its feeds, entries, chunks, and its row."""
        folder = [key async for key in self.store.list(f"runs/{run.id}")]
        await self.delete(folder)
        async with self.db.read() as session:
            last = await session.scalar(select(func.max(RunItem.position)).where(RunItem.run_id == run.id))
        for first in range(0, (-1 if last is None else last) + 1, ROWS_AT_ONCE):
            span = RunItem.position.between(first, first + ROWS_AT_ONCE - 1)
            async with self.db.write() as session:
                await session.execute(delete(RunItem).where(RunItem.run_id == run.id, span))
        async with self.db.write() as session:
            await session.execute(delete(RunChunk).where(RunChunk.run_id == run.id))
            await session.execute(delete(Run).where(Run.id == run.id))
        await self.objects([key for key in _materials(run) if key])


async def under_way(session: AsyncSession, which: ColumnElement[bool], *, settled: bool = False) -> bool:
    """Whether one of some runs is under way, or (unless `settled`) was stopped a moment ago."""
    still: ColumnElement[bool] = Run.state.not_in(FINISHED)
    if not settled:
        stopped = and_(Run.state.in_(STOPPED), Run.finished_at > utc_now() - timedelta(seconds=SETTLED_S))
        still = or_(still, stopped)
    return await session.scalar(select(Run.id).where(which, still).limit(1)) is not None


def _materials(run: Run) -> list[str]:
    """What the run was started with. An object that the frame, or another run, still names stays."""
    kept = run.feed_key or ""
    assets = run.snapshot.get("assets", {})
    keys = [str(run.snapshot.get("picture_key", "")), *(str(each.get("key", "")) for each in assets.values())]
    return [*(key for key in keys if key.startswith("objects/")), kept if kept.startswith("feeds/") else ""]
