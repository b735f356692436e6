"""A published feed made anew when outputs that it names are deleted, so that no link in it leads nowhere.

The rows of deleted outputs say that it is due: they stay until the feed has been made without them (`sweeper`), so a
process that dies in between leaves it to the next.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from compositor.errors import RunFailedError
from compositor.publish import Press, republish
from models.db import DatabaseError
from models.logs import get_logger
from models.store import StoreError
from models.tables import Frame, Output, Run

if TYPE_CHECKING:
    from compositor.feed.errors import FeedLimits
    from models.db import Database
    from models.store import ObjectStore

AT_ONCE = 2
WAIT_S = 5.0
"""How long whoever deletes waits for the feed; a long one is ready later."""
MOST_KNOWN = 1000
TRIES = 5
"""Each is needed only when somebody deletes again while the feed is made."""

log = get_logger(__name__)


class Republisher:
    """Makes feeds anew. One a process; several processes may, and then the first to be ready is taken.

    Args:
        db: the database.
        store: the store.
        folder: where files are made; it need not exist.
        public_base: how links to pictures begin.
        limits: of feeds.

    """

    def __init__(
        self, db: Database, store: ObjectStore, *, folder: Path, public_base: str, limits: FeedLimits
    ) -> None:
        self._db = db
        self._store = store
        self._folder = folder
        self._public_base = public_base
        self._limits = limits
        self._places = asyncio.Semaphore(AT_ONCE)
        self._turns: dict[int, asyncio.Lock] = {}
        self._known: dict[int, tuple[object, ...]] = {}
        """By run: the key of a feed that was made, or cannot be, without the outputs that were deleted by then."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def stop(self) -> None:
        """Stop at once; the next process goes on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def soon(self, frame_id: int) -> None:
        """Bring a frame's feed up to date, and wait some seconds for that. What fails is done by the sweeper."""
        task = asyncio.create_task(self._quietly(frame_id), name=f"republish-{frame_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.wait({task}, timeout=WAIT_S)

    async def bring_up(self, frame_id: int) -> None:
        """See to it that a frame's published feed names no deleted output.

        Raises:
            DatabaseError, StoreError, OSError: it may still name some; to be tried again.

        """
        turn = self._turns.setdefault(frame_id, asyncio.Lock())
        try:
            async with turn, self._places:
                for _ in range(TRIES):
                    if not await self._once(frame_id):
                        return
        finally:
            if not turn.locked():
                self._turns.pop(frame_id, None)

    async def _once(self, frame_id: int) -> bool:
        """Make it anew if that is due; False when it was not."""
        async with self._db.read() as session:
            query = select(Run).join(Frame, Frame.published_run_id == Run.id)
            run = await session.scalar(query.where(Frame.id == frame_id, Frame.deleted_at.is_(None)))
            if run is None:
                return False
            gone = (Output.frame_id == frame_id, Output.run_id == run.id, Output.deleted_at.is_not(None))
            mark = select(func.count(), func.min(Output.deleted_at), func.max(Output.deleted_at)).where(*gone)
            deleted = tuple((await session.execute(mark)).one())
        if not deleted[0] or self._known.get(run.id) == (run.output_feed_key, *deleted):
            return False
        try:
            key = await self._republish(run)
        except RunFailedError as problem:
            log.warning("feed_not_republished", run_id=run.id, frame_id=frame_id, reason=str(problem))
            self._know(run.id, run.output_feed_key, *deleted)
            return False
        if key is not None:
            self._know(run.id, key, *deleted)
            log.info("feed_republished", run_id=run.id, frame_id=frame_id, deleted=deleted[0])
        return True

    async def _republish(self, run: Run) -> str | None:
        await asyncio.to_thread(self._folder.mkdir, mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="feed-", dir=self._folder) as folder:
            press = Press(self._db, self._store, Path(folder), self._public_base, self._limits)
            return await republish(press, run)

    def _know(self, run_id: int, *what: object) -> None:
        self._known.pop(run_id, None)
        self._known[run_id] = what
        if len(self._known) > MOST_KNOWN:
            del self._known[next(iter(self._known))]

    async def _quietly(self, frame_id: int) -> None:
        try:
            await self.bring_up(frame_id)
        except (DatabaseError, StoreError, OSError) as problem:
            log.warning("feed_republished_later", frame_id=frame_id, reason=str(problem))
        except Exception:  # the edge of a task of its own
            log.exception("republishing_crashed", frame_id=frame_id)
