"""From a feed to rows: keep a copy of the feed, read it once, write its entries and chunks, find duplicates.

The copy comes first and its key is in the run's row, so that an ingest which is killed goes on from the last entry
written, over the same bytes. Composing begins when all entries are there: a feed that breaks off makes nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from functools import lru_cache
from http import HTTPStatus
from itertools import islice
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from compositor.compose.fields import canonical
from compositor.duplicates import mark_duplicates
from compositor.errors import RunFailedError
from compositor.feed.errors import FeedError, FeedLimits
from compositor.feed.reader import open_feed
from compositor.names import feed_copy_key, used_fields
from compositor.rows import insert_many
from compositor.snapshot import Snapshot
from models.fetch import FetchError, FetchFailedError, FetchTooLargeError
from models.logs import get_logger
from models.store import ObjectMissingError
from models.tables import RunChunk, RunState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncSession

    from compositor.feed.entries import FeedEntry
    from compositor.kit import Kit
    from compositor.runlease import RunLease

    Row = tuple[Any, ...]

CHUNKS_AT_ONCE = 80
"""Chunks in one transaction: 4,000 entries of the usual size, some 100 ms."""
FIELD_CHARS = 2000
_quoted = json.JSONEncoder(ensure_ascii=False).encode
FEED_TYPES = "application/atom+xml,application/rss+xml,application/xml,text/xml,text/csv,*/*;q=0.5"
DOWNLOAD_PAUSES_S = (1.0, 3.0)
"""Before the second and the third try of a feed whose server failed, but in no way that is to stay."""
ITEM_COLUMNS = (
    *("run_id", "position", "product_id", "image_url", "fields"),
    *("state", "reused", "attempts", "code", "reason"),
)
CHUNK_COLUMNS = (
    *("run_id", "number", "first", "size", "state"),
    *("completed", "reused", "failed", "skipped", "fence", "attempts"),
)

log = get_logger(__name__)


class _MomentaryError(RunFailedError):
    """The feed could not be had, and another try may help."""


async def ingest(kit: Kit, lease: RunLease) -> int:
    """Read a run's feed into rows, and let composing begin. Returns how many chunks there are to work on.

    Raises:
        RunFailedError: the feed cannot be had or read.
        LeaseLostError: another process has the run, or it was cancelled.
        StoreError, DatabaseError, OSError: to be tried again.

    """
    path = kit.folder / "feed"
    async with kit.leases.kept(lease):
        await _bring_feed(kit, lease, path)
        limits = FeedLimits(max_bytes=kit.settings.feed_max_bytes, max_items=kit.settings.feed_max_items)
        try:
            partial = await _write_entries(kit, lease, path, limits)
        except FeedError as problem:
            raise RunFailedError(problem.code, problem.message) from None
        return await _begin_composing(kit, lease, partial=partial)


async def _bring_feed(kit: Kit, lease: RunLease, path: Path) -> None:
    """Put the feed into a file, and keep a copy of our own in the store unless an earlier attempt has done so."""
    run = lease.run
    key = run.feed_key
    if key is not None:
        try:
            await kit.store.get_file(key, path)
        except ObjectMissingError:
            raise RunFailedError("feed_missing", "The uploaded feed is gone from the store.") from None
        if run.feed_sha256 is not None:
            return
    else:
        await _download(kit, str(run.feed_url), path)
    copy = feed_copy_key(run.id)
    await kit.store.put_file(copy, path, media_type="application/octet-stream")
    await kit.leases.change(lease, feed_key=copy, feed_sha256=await asyncio.to_thread(_sha256, path))


async def _download(kit: Kit, url: str, path: Path) -> None:
    """Fetch a feed; a server that fails for a moment is asked again."""
    for pause_s in DOWNLOAD_PAUSES_S:
        try:
            await _download_once(kit, url, path)
        except _MomentaryError:
            await asyncio.sleep(pause_s)
        else:
            return
    await _download_once(kit, url, path)


async def _download_once(kit: Kit, url: str, path: Path) -> None:
    most = kit.settings.feed_max_bytes
    try:
        got = await kit.fetcher.download(
            url,
            path,
            headers={"Accept": FEED_TYPES},
            total_timeout_s=kit.settings.feed_timeout,
            max_wire_bytes=most,
            max_decoded_bytes=most,
        )
    except FetchTooLargeError:
        raise RunFailedError("feed_too_large", f"The feed is larger than {most} bytes.") from None
    except FetchError as problem:
        kind = _MomentaryError if isinstance(problem, FetchFailedError) else RunFailedError
        raise kind(problem.code.replace("fetch_", "feed_"), problem.message) from None
    if got.status != HTTPStatus.OK:
        momentary = got.status == HTTPStatus.TOO_MANY_REQUESTS or got.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        kind = _MomentaryError if momentary else RunFailedError
        raise kind("feed_refused", f"The feed's server answered {got.status}.")


async def _write_entries(kit: Kit, lease: RunLease, path: Path, limits: FeedLimits) -> bool:
    """Write all entries that are not there yet; whether the feed could only be read in recovery."""
    writer = EntryWriter(
        kit.settings.chunk_size, lease.run.id, used_fields(Snapshot.model_validate(lease.run.snapshot).design)
    )
    done = await _entries_there(kit, lease.run.id)
    reader = await asyncio.to_thread(open_feed, path, limits, writer.keeps)
    entries = iter(reader)
    size = kit.settings.chunk_size * CHUNKS_AT_ONCE

    def read_on() -> asyncio.Task[list[Row]]:
        return asyncio.create_task(asyncio.to_thread(_next_batch, writer, entries, size, done))

    batch = await read_on()
    while batch:
        # While PostgreSQL writes there is time to read. SQLite writes in this process: both at once would wait for
        # each other's turns at the interpreter, with the lock held, so there only the commit's wait for the disk is
        # used.
        following = None if kit.db.is_sqlite else read_on()
        try:
            async with kit.db.write() as session:
                await kit.leases.guard(session, lease)
                await writer.write(session, batch)
                following = following or read_on()
        finally:
            if following is not None:
                await asyncio.wait({following})
        batch = following.result()
    return reader.partial


def _next_batch(writer: EntryWriter, entries: Iterator[FeedEntry], size: int, done: int) -> list[Row]:
    while True:
        found = list(islice(entries, size))
        rows = [writer.row(entry) for entry in found if entry.position >= done]
        if rows or not found:
            return rows


async def _entries_there(kit: Kit, run_id: int) -> int:
    query = select(func.coalesce(func.max(RunChunk.first + RunChunk.size), 0)).where(RunChunk.run_id == run_id)
    async with kit.db.read() as session:
        return int(await session.scalar(query) or 0)


class EntryWriter:
    """Makes rows of entries, and writes them with their chunks."""

    def __init__(self, chunk_size: int, run_id: int, fields: frozenset[str]) -> None:
        self._chunk_size = chunk_size
        self._run_id = run_id
        self._fields = fields | {"title"}
        self._kept = lru_cache(maxsize=1024)(self._field)

    def _field(self, name: str) -> tuple[str, str] | None:
        """The name under which a field is kept, and how that begins in JSON; None when no design looks at it."""
        field = canonical(name)
        return (field, f"{_quoted(field)}:") if field in self._fields else None

    def keeps(self, name: str) -> bool:
        """Whether rows have a field of this name."""
        return self._kept(name) is not None

    def row(self, entry: FeedEntry) -> Row:
        """An entry's row, in the order of `ITEM_COLUMNS`. One that is at fault itself has its outcome already."""
        fields = {
            kept[0]: f"{kept[1]}{_quoted(_storable(text[:FIELD_CHARS]))}"
            for name, text in entry.fields.items()
            if text and (kept := self._kept(name)) is not None
        }
        _, product_id, image_url, _, code, reason = entry
        return (
            self._run_id,
            entry.position,
            product_id and _storable(product_id),
            image_url and _storable(image_url),
            f"{{{','.join(fields.values())}}}",
            "waiting" if code is None else "skipped",
            False,
            0,
            code,
            reason,
        )

    async def write(self, session: AsyncSession, rows: list[Row]) -> None:
        """Write rows in feed order, and the chunks that they fill."""
        await insert_many(session, "run_items", ITEM_COLUMNS, rows)
        await insert_many(session, "run_chunks", CHUNK_COLUMNS, list(self._chunks(rows)))

    def _chunks(self, rows: list[Row]) -> Iterator[tuple[Any, ...]]:
        for start in range(0, len(rows), self._chunk_size):
            first = rows[start][1]
            yield self._run_id, first, first, min(self._chunk_size, len(rows) - start), "waiting", 0, 0, 0, 0, 0, 0


async def _begin_composing(kit: Kit, lease: RunLease, *, partial: bool) -> int:
    run_id = lease.run.id
    await mark_duplicates(kit.db, kit.leases, lease)
    async with kit.db.write() as session:
        total = await session.scalar(select(func.sum(RunChunk.size)).where(RunChunk.run_id == run_id))
        left = await session.scalar(
            select(func.count()).select_from(RunChunk).where(RunChunk.run_id == run_id, RunChunk.state == "waiting")
        )
        await kit.leases.guard(
            session,
            lease,
            state=RunState.COMPOSING.value,
            total=int(total or 0),
            partial=partial,
            attempts=0,
            lease_owner=None,
            lease_expires_at=None,
        )
    return int(left or 0)


def _storable(text: str) -> str:
    """Without what PostgreSQL cannot keep in a text: NUL and halves of surrogate pairs."""
    if text.isascii():
        return text.replace("\0", "")
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
