"""A run's ingest and its publishing, by the code of the jobs, over a database and a store of files."""

from __future__ import annotations

import secrets
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from compositor import progress
from compositor.chunks import Chunks
from compositor.compose.client import ComposeClient
from compositor.design import Box, Design, TextLayer
from compositor.ingest import ingest
from compositor.kit import Kit
from compositor.progress import Reporter
from compositor.publish import publish
from compositor.queue import Queues, connect
from compositor.runlease import RunLeases
from compositor.runs import start_run
from compositor.settings import CompositorSettings
from compositor.sources import SourceFetcher
from models.db import Database, utc_now
from models.fetch import FetchPolicy, SafeFetcher
from models.migrations import upgrade
from models.store import open_store
from models.tables import Frame, RunState, User

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncSession

    from compositor.runlease import RunLease
    from models.tables import Run

    Step = Callable[[Kit, RunLease], Awaitable[object]]

NO_REDIS = "redis://127.0.0.1:1/0"
"""Neither reading a feed nor writing one talks to it."""
OUTPUTS = """
INSERT INTO outputs
(run_id, position, size, frame_id, owner_id, name, suffix, object_key, width, height, bytes, created_at)
SELECT run_id, position, 'original', :frame, :owner, :name || position, 'jpg', :name || position, 1, 1, 1, :now
FROM run_items WHERE run_id = :run AND position >= :first AND position < :last AND state = 'waiting'
"""
DONE = "UPDATE run_chunks SET state = 'done', completed = size - skipped WHERE run_id = :run"
AT_ONCE = 50_000


class TimedDatabase(Database):
    """Knows how long the longest transaction that writes was open: others wait as long for SQLite's one writer."""

    longest_s = 0.0

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """As `Database.write`."""
        started = time.perf_counter()
        async with super().write() as session:
            yield session
        self.longest_s = max(self.longest_s, time.perf_counter() - started)


@dataclass(frozen=True, slots=True)
class Took:
    """One step: seconds by the clock and of this process's processor time, and its longest transaction's."""

    seconds: float
    cpu_s: float
    longest_s: float


@dataclass(frozen=True, slots=True)
class WholeRun:
    """One run of an uploaded feed."""

    kit: Kit
    db: TimedDatabase
    run: Run

    async def ingest(self) -> Took:
        """Feed to rows, as the ingest job does it."""
        lease = await self.kit.leases.claim_ingest(self.run.id)
        return await self._timed(lease, ingest)

    async def publish(self) -> Took:
        """Rows to feeds, as the publishing job does it, after every entry has got an output's row."""
        await self._frame_all()
        lease = await self.kit.leases.claim_publish(self.run.id)
        took = await self._timed(lease, publish)
        async with self.db.read() as session:
            state = await session.scalar(text("SELECT state FROM runs WHERE id = :run"), {"run": self.run.id})
        if state != RunState.COMPLETED.value:
            raise RuntimeError(f"the run ended as {state}; the figures would be wrong")
        return took

    async def rows(self) -> int:
        """Entries written."""
        async with self.db.read() as session:
            query = text("SELECT count(*) FROM run_items WHERE run_id = :run")
            return int(await session.scalar(query, {"run": self.run.id}) or 0)

    async def _timed(self, lease: RunLease | None, step: Step) -> Took:
        if lease is None:
            raise RuntimeError("the run is not ready for this step")
        self.db.longest_s = 0.0
        started, cpu = time.perf_counter(), time.process_time()
        await step(self.kit, lease)
        return Took(time.perf_counter() - started, time.process_time() - cpu, self.db.longest_s)

    async def _frame_all(self) -> None:
        values = {"frame": self.run.frame_id, "owner": self.run.owner_id, "run": self.run.id}
        values |= {"now": utc_now().replace(tzinfo=None), "name": "0" * 40}
        for first in range(0, await self.rows(), AT_ONCE):
            async with self.db.write() as session:
                await session.execute(text(OUTPUTS), {**values, "first": first, "last": first + AT_ONCE})
        async with self.db.write() as session:
            await session.execute(text(DONE), {"run": self.run.id})


@asynccontextmanager
async def whole_run(home: Path, database_url: str | None, feed: Path) -> AsyncIterator[WholeRun]:
    """A run of `feed` that waits for its ingest; the database has its tables, the store the feed.

    Args:
        home: a folder for the store and for work.
        database_url: an empty or migrated database; None for SQLite in `home`.
        feed: the feed's file.

    """
    url = database_url or f"sqlite:///{home}/igen.db"
    values: dict[str, Any] = {
        "home": home,
        "database_url": url,
        "redis_url": NO_REDIS,
        "store_url": f"file://{home}/store",
    }
    settings = CompositorSettings(_env_file=None, public_url="http://pictures.example", **values)
    async with AsyncExitStack() as stack:
        db = TimedDatabase(url)
        stack.push_async_callback(db.close)
        await upgrade(db)
        kit = await _kit(stack, settings, db, home)
        key = f"feeds/{secrets.token_hex(16)}"
        await kit.store.put_file(key, feed, media_type="application/xml")
        yield WholeRun(kit, db, await start_run(db, await _frame(db, key)))


async def _kit(stack: AsyncExitStack, settings: CompositorSettings, db: Database, home: Path) -> Kit:
    fetcher = await stack.enter_async_context(SafeFetcher(FetchPolicy()))
    publisher = progress.connect(settings.redis)
    stack.push_async_callback(publisher.aclose)
    redis = connect(settings.redis)
    stack.callback(redis.close)
    return Kit(
        settings=settings,
        db=db,
        store=open_store(settings.store),
        fetcher=fetcher,
        sources=SourceFetcher(fetcher, 1, 1, max_bytes=settings.source_max_bytes),
        composer=ComposeClient(home / "socket"),
        chunks=Chunks(db, lease_seconds=settings.chunk_lease_seconds),
        leases=RunLeases(db, lease_seconds=settings.chunk_lease_seconds),
        reporter=Reporter(db, publisher),
        queues=Queues(redis),
        folder=home,
    )


async def _frame(db: Database, feed_key: str) -> Frame:
    """A frame of a new owner's, whose design looks at four fields of the feed."""
    box = Box(x=0, y=0, width=100, height=50)
    texts = tuple(TextLayer(text=words, box=box) for words in ("{title}", "{price} {sale_price} {availability}"))
    owner, now = f"usr_{secrets.token_hex(13)}", utc_now()
    frame = Frame(
        owner_id=owner,
        name="bench",
        revision=1,
        secret=secrets.token_hex(16),
        picture_key="frames/none.png",
        picture_sha256="0" * 64,
        width=1080,
        height=1080,
        transparent=True,
        design=Design(texts=texts).model_dump(mode="json"),
        feed_key=feed_key,
        feed_mode="replace",
        created_at=now,
        updated_at=now,
    )
    async with db.write() as session:
        session.add(User(id=owner, name=owner, created_at=now))
        await session.flush()
        session.add(frame)
    return frame
