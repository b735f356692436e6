"""The end of a run: the feed with the framed pictures in it, stored, and then made the frame's feed in one write."""

from __future__ import annotations

import asyncio
import gzip
import shutil
from typing import TYPE_CHECKING

from sqlalchemy import select, update

from compositor.errors import RunFailedError
from compositor.feed.errors import FeedError
from compositor.feed.writer import feed_as_csv, rewrite_feed
from compositor.names import output_feed_keys
from compositor.runs import counts
from compositor.snapshot import Snapshot
from models.db import utc_now
from models.logs import get_logger
from models.store import ObjectMissingError
from models.tables import Frame, Output, RunState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from compositor.kit import Kit
    from compositor.runlease import RunLease

PAGE = 1000
MEDIA_TYPES = {"xml": "application/xml", "csv": "text/csv; charset=utf-8"}

log = get_logger(__name__)


async def publish(kit: Kit, lease: RunLease) -> RunState:
    """Make, store and publish a run's feed, and end the run.

    Raises:
        RunFailedError: the feed's copy is gone or cannot be written again.
        LeaseLostError: another process has the run, or it was cancelled; nothing was published.
        StoreError, DatabaseError, OSError: to be tried again.

    """
    snapshot = Snapshot.model_validate(lease.run.snapshot)
    async with kit.leases.kept(lease):
        source = kit.folder / "feed"
        try:
            await kit.store.get_file(str(lease.run.feed_key), source)
        except ObjectMissingError:
            raise RunFailedError("feed_missing", "The run's copy of the feed is gone from the store.") from None
        xml, csv = kit.folder / "output.xml", kit.folder / "output.csv"
        try:
            links = _Links(kit, lease.run.id, snapshot, asyncio.get_running_loop())
            await asyncio.to_thread(rewrite_feed, source, xml, links, snapshot.feed_mode)
            await asyncio.to_thread(feed_as_csv, source, csv, links, snapshot.feed_mode)
        except FeedError as problem:
            raise RunFailedError(problem.code, problem.message) from None
        xml_key, csv_key = output_feed_keys(lease.run.id)
        for path, key, kind in ((xml, xml_key, "xml"), (csv, csv_key, "csv")):
            await kit.store.put_file(key, path, media_type=MEDIA_TYPES[kind])
            packed = await asyncio.to_thread(_gzip, path)
            await kit.store.put_file(f"{key}.gz", packed, media_type="application/gzip")
        return await _switch(kit, lease, xml_key, csv_key)


class _Links:
    """The links of an entry's outputs, in the design's order of sizes; called in a thread, reads in the loop."""

    def __init__(self, kit: Kit, run_id: int, snapshot: Snapshot, loop: asyncio.AbstractEventLoop) -> None:
        self._kit = kit
        self._run_id = run_id
        self._order = {
            size.name: place
            for place, size in enumerate(snapshot.design.output_sizes(snapshot.width, snapshot.height))
        }
        self._base = f"{kit.settings.public_base}/media/outputs"
        self._loop = loop
        self._page = -1
        self._found: dict[int, list[str]] = {}

    def __call__(self, position: int) -> Sequence[str] | None:
        if position // PAGE != self._page:
            self._page = position // PAGE
            self._found = asyncio.run_coroutine_threadsafe(self._read(), self._loop).result()
        return self._found.get(position)

    async def _read(self) -> dict[int, list[str]]:
        start = self._page * PAGE
        query = select(Output.position, Output.size, Output.name, Output.suffix).where(
            Output.run_id == self._run_id,
            Output.position >= start,
            Output.position < start + PAGE,
            Output.deleted_at.is_(None),
        )
        async with self._kit.db.read() as session:
            rows = list(await session.execute(query))
        rows.sort(key=lambda row: (row.position, self._order.get(row.size, len(self._order))))
        found: dict[int, list[str]] = {}
        for row in rows:
            found.setdefault(row.position, []).append(f"{self._base}/{row.name}.{row.suffix}")
        return found


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
