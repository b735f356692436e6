"""From a feed to rows: keep a copy of the feed, read it once, write its entries and chunks, find duplicates.

The copy comes first and its key is in the run's row, so that an ingest which is killed goes on from the last entry
written, over the same bytes. Composing begins when all entries are there: a feed that breaks off makes nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from bisect import bisect_right
from collections import Counter
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Table, bindparam, case, func, select, update

from compositor.compose.fields import canonical
from compositor.errors import RunFailedError
from compositor.feed.errors import FeedError, FeedLimits
from compositor.feed.reader import open_feed
from compositor.names import feed_copy_key, used_fields
from compositor.rows import insert_many
from compositor.snapshot import Snapshot
from models.fetch import FetchError, FetchTooLargeError
from models.logs import get_logger
from models.store import ObjectMissingError
from models.tables import ItemState, RunChunk, RunItem, RunState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncSession

    from compositor.feed.entries import FeedEntry
    from compositor.kit import Kit
    from compositor.runlease import RunLease

CHUNKS_AT_ONCE = 80
"""Chunks in one transaction: 4,000 entries of the usual size, some 100 ms."""
FIELD_CHARS = 2000
_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
DUPLICATE = "duplicate_id", "An earlier entry of the feed has the same id."
HTTP_OK = 200
ITEM_COLUMNS = (
    *("run_id", "position", "product_id", "image_url", "fields"),
    *("state", "reused", "attempts", "code", "reason"),
)
CHUNK_COLUMNS = (
    *("run_id", "number", "first", "size", "state"),
    *("completed", "reused", "failed", "skipped", "fence", "attempts"),
)
ITEMS = cast("Table", RunItem.__table__)
CHUNKS = cast("Table", RunChunk.__table__)

log = get_logger(__name__)


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
    most = kit.settings.feed_max_bytes
    try:
        got = await kit.fetcher.download(
            url,
            path,
            headers={
                "Accept": "application/atom+xml,application/rss+xml,application/xml,text/xml,text/csv,*/*;q=0.5"
            },
            total_timeout_s=kit.settings.feed_timeout,
            max_wire_bytes=most,
            max_decoded_bytes=most,
        )
    except FetchTooLargeError:
        raise RunFailedError("feed_too_large", f"The feed is larger than {most} bytes.") from None
    except FetchError as problem:
        raise RunFailedError(problem.code.replace("fetch_", "feed_"), problem.message) from None
    if got.status != HTTP_OK:
        raise RunFailedError("feed_refused", f"The feed's server answered {got.status}.")


async def _write_entries(kit: Kit, lease: RunLease, path: Path, limits: FeedLimits) -> bool:
    """Write all entries that are not there yet; whether the feed could only be read in recovery."""
    writer = EntryWriter(
        kit.settings.chunk_size, lease.run.id, used_fields(Snapshot.model_validate(lease.run.snapshot).design)
    )
    done = await _entries_there(kit, lease.run.id)
    reader = await asyncio.to_thread(open_feed, path, limits)
    entries = iter(reader)
    size = kit.settings.chunk_size * CHUNKS_AT_ONCE
    batch = await asyncio.to_thread(_next_batch, writer, entries, size, done)
    while batch:
        following = asyncio.create_task(asyncio.to_thread(_next_batch, writer, entries, size, done))
        try:
            async with kit.db.write() as session:
                await kit.leases.guard(session, lease)
                await writer.write(session, batch)
        finally:
            await asyncio.wait({following})
        batch = following.result()
    return reader.partial


def _next_batch(writer: EntryWriter, entries: Iterator[FeedEntry], size: int, done: int) -> list[tuple[Any, ...]]:
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

    def _field(self, name: str) -> str | None:
        """The name under which a field is kept; None when the design does not look at it."""
        field = canonical(name)
        return field if field in self._fields else None

    def row(self, entry: FeedEntry) -> tuple[Any, ...]:
        """An entry's row, in the order of `ITEM_COLUMNS`. One that is at fault itself has its outcome already."""
        fields = {
            field: _storable(text[:FIELD_CHARS])
            for name, text in entry.fields.items()
            if text and (field := self._kept(name)) is not None
        }
        return (
            self._run_id,
            entry.position,
            entry.product_id and _storable(entry.product_id),
            entry.image_url and _storable(entry.image_url),
            _json(fields),
            "waiting" if entry.code is None else "skipped",
            False,
            0,
            entry.code,
            entry.reason,
        )

    async def write(self, session: AsyncSession, rows: list[tuple[Any, ...]]) -> None:
        """Write rows in feed order, and the chunks that they fill."""
        await insert_many(session, "run_items", ITEM_COLUMNS, rows)
        await insert_many(session, "run_chunks", CHUNK_COLUMNS, list(self._chunks(rows)))

    def _chunks(self, rows: list[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        for start in range(0, len(rows), self._chunk_size):
            first = rows[start][1]
            yield self._run_id, first, first, min(self._chunk_size, len(rows) - start), "waiting", 0, 0, 0, 0, 0, 0


async def _begin_composing(kit: Kit, lease: RunLease, *, partial: bool) -> int:
    run_id = lease.run.id
    async with kit.db.write() as session:
        await kit.leases.guard(session, lease)
        await mark_duplicates(session, run_id)
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


async def mark_duplicates(session: AsyncSession, run_id: int) -> None:
    """Skip later uses of an id, and count what is skipped; chunks with nothing left to do are done.

    Each step reads one index from end to end, so that a million entries take seconds whatever is in them.
    """
    repeated = (
        select(RunItem.product_id, func.min(RunItem.position))
        .where(RunItem.run_id == run_id, RunItem.product_id.is_not(None))
        .group_by(RunItem.product_id)
        .having(func.count() > 1)
    )
    code, reason = DUPLICATE
    skip = (
        update(ITEMS)
        .where(ITEMS.c.run_id == run_id, ITEMS.c.product_id == bindparam("id"))
        .where(ITEMS.c.position > bindparam("at"), ITEMS.c.state == ItemState.WAITING.value)
        .values(state=ItemState.SKIPPED.value, code=code, reason=reason)
    )
    connection = await session.connection()
    found = [{"id": product_id, "at": first} for product_id, first in await connection.execute(repeated)]
    if found:
        await connection.execute(skip, found)
    await _count_skipped(session, run_id)


async def _count_skipped(session: AsyncSession, run_id: int) -> None:
    skipped = select(RunItem.position).where(RunItem.run_id == run_id, RunItem.state == ItemState.SKIPPED.value)
    starts = select(RunChunk.first).where(RunChunk.run_id == run_id).order_by(RunChunk.first)
    firsts = list(await session.scalars(starts))
    numbers = Counter(firsts[bisect_right(firsts, position) - 1] for position in await session.scalars(skipped))
    if not numbers:
        return
    count = (
        update(CHUNKS)
        .where(CHUNKS.c.run_id == run_id, CHUNKS.c.number == bindparam("at"))
        .values(
            skipped=bindparam("count"),
            state=case((CHUNKS.c.size == bindparam("count"), "done"), else_="waiting"),
        )
    )
    rows = [{"at": first, "count": number} for first, number in numbers.items()]
    await (await session.connection()).execute(count, rows)


def _storable(text: str) -> str:
    """Without what PostgreSQL cannot keep in a text: NUL and halves of surrogate pairs."""
    if text.isascii():
        return text.replace("\0", "")
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
