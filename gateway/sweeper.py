"""Removes what was deleted: rows say what is to go, and go last, so that a killed process leaves nothing behind.

An object goes when nothing living names it any more: equal outputs of several runs share one object, and so do equal
pictures of several frames. See `removal` for why none goes that is about to be used. A published feed that names
deleted outputs is made anew before their rows go (`republishing`).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from sqlalchemy import delete, select, update

from compositor.errors import RunFinishedError
from compositor.runs import FINISHED, cancel_run
from gateway.naming import named
from gateway.removal import Removal
from models.db import DatabaseError, utc_now
from models.leases import about_to_delete
from models.logs import get_logger
from models.store import StoreError
from models.tables import Asset, Frame, Output, Picture, Run

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.republishing import Republisher
    from models.db import Database
    from models.store import ObjectStore

EVERY_S = 60.0
BATCH = 100

log = get_logger(__name__)


class Sweeper:
    """One task a process. Several processes may sweep at once."""

    def __init__(self, db: Database, store: ObjectStore, republisher: Republisher) -> None:
        self._db = db
        self._removal = Removal(db, store)
        self._republisher = republisher
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
            DatabaseError, StoreError, OSError: what is left goes next time.

        """
        while self._replaced:
            key = next(iter(self._replaced))
            await self._removal.objects([key])
            self._replaced.discard(key)
        async with self._db.read() as session:
            gone = list(await session.scalars(select(Frame).where(Frame.deleted_at.is_not(None))))
        for frame in gone:
            await self._frame(frame)
        async with self._db.read() as session:
            query = select(Output.frame_id).where(Output.deleted_at.is_not(None)).distinct()
            frames = list(await session.scalars(query))
        for frame_id in frames:
            await self._republisher.bring_up(frame_id)
            await self._removal.outputs(frame_id)
        await self._pictures()
        await self._assets()

    async def _work(self) -> None:
        while True:
            self._kicked.clear()
            try:
                await self.sweep()
            except (DatabaseError, StoreError, OSError) as problem:
                log.warning("sweep_put_off", reason=str(problem))
            except Exception:  # the edge of a task that must not die while the process lives
                log.exception("sweep_crashed")
            try:
                async with asyncio.timeout(EVERY_S):
                    await self._kicked.wait()
            except TimeoutError:
                continue

    async def _pictures(self) -> None:
        async with self._db.read() as session:
            gone = await session.scalar(select(Picture.id).where(Picture.deleted_at.is_not(None)).limit(1))
        if gone is not None:  # nobody is kept from naming objects when there is nothing to do
            await self._removal.pictures()

    async def _assets(self) -> None:
        """An asset's row stays for as long as its object: a run may have been started with it."""
        async with self._db.read() as session:
            gone = list(await session.scalars(select(Asset).where(Asset.deleted_at.is_not(None)).limit(BATCH)))
        for asset in gone:
            async with self._db.write() as session:
                await about_to_delete(session)
                if not await named(session, [asset.object_key]):
                    await self._removal.delete([asset.object_key])
                    await session.execute(delete(Asset).where(Asset.id == asset.id))

    async def _frame(self, frame: Frame) -> None:
        """Runs are stopped; outputs, entries, chunks, runs, feeds, the picture, and the frame's row go."""
        async with self._db.read() as session:
            runs = list(await session.scalars(select(Run).where(Run.frame_id == frame.id)))
        for run in runs:
            if run.state not in FINISHED:
                with suppress(RunFinishedError):
                    await cancel_run(self._db, run.owner_id, run.id)
        async with self._db.write() as session:
            late = update(Output).where(Output.frame_id == frame.id, Output.deleted_at.is_(None))
            await session.execute(late.values(deleted_at=utc_now()))
        if not await self._removal.outputs(frame.id, settled=True):
            return  # a run began between the two; it is stopped next time
        for run in runs:
            await self._removal.run(run)
        async with self._db.write() as session:
            await session.execute(delete(Frame).where(Frame.id == frame.id))
        await self._removal.objects([key for key in (frame.picture_key, frame.feed_key) if key])
