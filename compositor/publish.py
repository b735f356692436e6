"""The end of a run: the feed with the framed pictures in it, stored, and then made the frame's feed in one write.

When outputs of a run are deleted later, the same feed is made once more without them.
"""

from __future__ import annotations

import asyncio
import gzip
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import select, update

from compositor.errors import RunFailedError
from compositor.feed.errors import FeedError, FeedLimits
from compositor.feed.writer import feed_as_csv, rewrite_feed
from compositor.names import output_feed_keys
from compositor.rows import changed
from compositor.runs import counts
from compositor.snapshot import Snapshot
from models.db import utc_now
from models.logs import get_logger
from models.store import ObjectMissingError
from models.tables import Frame, Output, Run, RunState

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from compositor.kit import Kit
    from compositor.runlease import RunLease
    from models.db import Database
    from models.store import ObjectStore

PAGE = 1000
LOOK_S = 1.0
MEDIA_TYPES = {"xml": "application/xml", "csv": "text/csv; charset=utf-8"}

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Press:
    """What makes feeds: of rows of `db` and objects of `store`, by way of files in `folder`.

    Links to pictures begin with `public_base`; `limits` are those under which the feed was read.
    """

    db: Database
    store: ObjectStore
    folder: Path
    public_base: str
    limits: FeedLimits

    async def make(self, run: Run) -> tuple[str, str]:
        """Make and store a run's feed with the outputs that are there; its keys, as XML and as CSV.

        Raises:
            RunFailedError: the feed's copy is gone or cannot be written again.
            StoreError, DatabaseError, OSError: to be tried again.

        """
        if run.feed_key is None:
            raise _missing()
        snapshot = Snapshot.model_validate(run.snapshot)
        source = self.folder / "feed"
        try:
            await self.store.get_file(run.feed_key, source)
        except ObjectMissingError:
            raise _missing() from None
        xml, csv = self.folder / "output.xml", self.folder / "output.csv"
        try:
            with _asked_from_threads(_Links(self, run.id, snapshot, asyncio.get_running_loop())) as links:
                await asyncio.to_thread(rewrite_feed, source, xml, links, snapshot.feed_mode, self.limits)
                await asyncio.to_thread(feed_as_csv, source, csv, links, snapshot.feed_mode, self.limits)
        except FeedError as problem:
            raise RunFailedError(problem.code, problem.message) from None
        xml_key, csv_key = output_feed_keys(run.id)
        for path, key, kind in ((xml, xml_key, "xml"), (csv, csv_key, "csv")):
            await self.store.put_file(key, path, media_type=MEDIA_TYPES[kind])
            packed = await asyncio.to_thread(_gzip, path)
            await self.store.put_file(f"{key}.gz", packed, media_type="application/gzip")
        return xml_key, csv_key


async def publish(kit: Kit, lease: RunLease) -> RunState:
    """Make, store and publish a run's feed, and end the run.

    Raises:
        RunFailedError: the feed's copy is gone or cannot be written again.
        LeaseLostError: another process has the run, or it was cancelled; nothing was published.
        StoreError, DatabaseError, OSError: to be tried again.

    """
    limits = FeedLimits(max_bytes=kit.settings.feed_max_bytes)
    press = Press(kit.db, kit.store, kit.folder, kit.settings.public_base, limits)
    async with kit.leases.kept(lease):
        xml_key, csv_key = await press.make(lease.run)
        return await _switch(kit, lease, xml_key, csv_key)


async def republish(press: Press, run: Run) -> str | None:
    """Make the feed of a published run anew, with the outputs that are there now, and put it in the old one's place.

    `run` is its row as read before the outputs are looked at. The new feed's key as XML; None where somebody else
    has put another feed there meanwhile.

    Raises:
        RunFailedError, StoreError, DatabaseError, OSError: as `Press.make`; the old feed stays.

    """
    xml_key, csv_key = await press.make(run)
    same = update(Run).where(Run.id == run.id, Run.output_feed_key == run.output_feed_key)
    async with press.db.write() as session:
        done = await session.execute(same.values(output_feed_key=xml_key, output_csv_key=csv_key))
    return xml_key if changed(done) else None


def _missing() -> RunFailedError:
    return RunFailedError("feed_missing", "The run's copy of the feed is gone from the store.")


class _AbandonedError(Exception):
    """Nobody waits for this feed any more."""


class _Links:
    """The links of an entry's outputs, in the design's order of sizes; called in a thread, reads in the loop."""

    def __init__(self, press: Press, run_id: int, snapshot: Snapshot, loop: asyncio.AbstractEventLoop) -> None:
        self._press = press
        self._run_id = run_id
        self._order = {
            size.name: place
            for place, size in enumerate(snapshot.design.output_sizes(snapshot.width, snapshot.height))
        }
        self._base = f"{press.public_base}/media/outputs"
        self._loop = loop
        self._page = -1
        self._found: dict[int, list[str]] = {}
        self.over = False

    def __call__(self, position: int) -> Sequence[str] | None:
        if self.over:
            raise _AbandonedError
        if position // PAGE != self._page:
            self._page = position // PAGE
            self._found = self._wait_for(asyncio.run_coroutine_threadsafe(self._read(), self._loop))
        return self._found.get(position)

    def _wait_for(self, reading: Future[dict[int, list[str]]]) -> dict[int, list[str]]:
        """What was read. A loop that has ended reads nothing any more, and its process waits for this thread."""
        while True:
            try:
                return reading.result(LOOK_S)
            except TimeoutError:
                if reading.done():
                    raise
                if self.over:
                    raise _AbandonedError from None

    async def _read(self) -> dict[int, list[str]]:
        start = self._page * PAGE
        query = select(Output.position, Output.size, Output.name, Output.suffix).where(
            Output.run_id == self._run_id,
            Output.position >= start,
            Output.position < start + PAGE,
            Output.deleted_at.is_(None),
        )
        async with self._press.db.read() as session:
            rows = list(await session.execute(query))
        rows.sort(key=lambda row: (row.position, self._order.get(row.size, len(self._order))))
        found: dict[int, list[str]] = {}
        for row in rows:
            found.setdefault(row.position, []).append(f"{self._base}/{row.name}.{row.suffix}")
        return found


@contextmanager
def _asked_from_threads(links: _Links) -> Iterator[_Links]:
    """`links`, which lets its thread end as well when whoever waits for that is cancelled."""
    try:
        yield links
    finally:
        links.over = True


async def _switch(kit: Kit, lease: RunLease, xml_key: str, csv_key: str) -> RunState:
    found = await counts(kit.db, lease.run.id)
    state = RunState.COMPLETED_WITH_FAILURES if found.failed or found.waiting else RunState.COMPLETED
    async with kit.db.write() as session:
        await kit.leases.guard(
            session,
            lease,
            state=state.value,
            output_feed_key=xml_key,
            output_csv_key=csv_key,
            finished_at=utc_now(),
            lease_owner=None,
            lease_expires_at=None,
        )
        await session.execute(
            update(Frame).where(Frame.id == lease.run.frame_id).values(published_run_id=lease.run.id)
        )
    return state


def _gzip(path: Path) -> Path:
    packed = path.with_name(f"{path.name}.gz")
    with (
        path.open("rb") as source,
        packed.open("wb") as file,
        gzip.GzipFile("", "wb", 6, file, mtime=0) as target,
    ):
        shutil.copyfileobj(source, target, 1 << 20)
    return packed
