"""Later uses of an id are skipped whatever their number, in short transactions, and never by somebody else's run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, update

from compositor import duplicates
from compositor.duplicates import mark_duplicates
from compositor.errors import LeaseLostError
from compositor.ingest import CHUNK_COLUMNS, ITEM_COLUMNS
from compositor.rows import insert_many
from models.tables import Run, RunChunk, RunItem
from scripts.ingesting.whole import WholeRun, whole_run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from compositor.runlease import RunLease

CHUNK = 4


@pytest.fixture
async def whole(tmp_path: Path, either_database: str) -> AsyncIterator[WholeRun]:
    feed = tmp_path / "source"
    feed.write_text("<rss/>")
    async with whole_run(tmp_path, either_database, feed) as run:
        yield run


async def leased(whole: WholeRun) -> RunLease:
    lease = await whole.kit.leases.claim_ingest(whole.run.id)
    assert lease is not None
    return lease


async def write(whole: WholeRun, ids: list[str | None], faulty: tuple[int, ...] = ()) -> None:
    run_id, count = whole.run.id, len(ids)
    items = [
        (run_id, position, product_id, "https://x.test/1", "{}", state, False, 0, code, None)
        for position, product_id in enumerate(ids)
        for state, code in [("skipped", "missing_image") if position in faulty else ("waiting", None)]
    ]
    chunks = [
        (run_id, first, first, min(CHUNK, count - first), "waiting", 0, 0, 0, 0, 0, 0)
        for first in range(0, count, CHUNK)
    ]
    async with whole.db.write() as session:
        await insert_many(session, "run_items", ITEM_COLUMNS, items)
        await insert_many(session, "run_chunks", CHUNK_COLUMNS, chunks)


async def codes(whole: WholeRun) -> list[str | None]:
    async with whole.db.read() as session:
        query = select(RunItem.code).where(RunItem.run_id == whole.run.id).order_by(RunItem.position)
        return list(await session.scalars(query))


async def skipped(whole: WholeRun) -> list[tuple[int, str]]:
    async with whole.db.read() as session:
        query = select(RunChunk.skipped, RunChunk.state).where(RunChunk.run_id == whole.run.id)
        return [(number, state) for number, state in await session.execute(query.order_by(RunChunk.number))]


@pytest.mark.parametrize("at_once", [1, 2, 200])
async def test_an_id_is_framed_once_wherever_it_comes_again(
    whole: WholeRun, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(duplicates, "CHUNKS_AT_ONCE", at_once)
    await write(whole, ["a", "b", None, None, *"abab", *"cad", "e", "f", *"aa"], faulty=(11,))
    await mark_duplicates(whole.db, whole.kit.leases, await leased(whole))
    again = "duplicate_id"
    expected = [*[None] * 4, *[again] * 4, None, again, None, "missing_image", None, again, again]
    assert await codes(whole) == expected
    assert await skipped(whole) == [(0, "waiting"), (4, "done"), (2, "waiting"), (2, "waiting")]


async def test_an_entry_at_fault_itself_still_was_the_first_with_its_id(whole: WholeRun) -> None:
    await write(whole, ["a", "a"], faulty=(0,))
    await mark_duplicates(whole.db, whole.kit.leases, await leased(whole))
    assert await codes(whole) == ["missing_image", "duplicate_id"]
    assert await skipped(whole) == [(2, "done")]


async def test_doing_it_again_changes_nothing(whole: WholeRun) -> None:
    await write(whole, list("abcabc"))
    lease = await leased(whole)
    await mark_duplicates(whole.db, whole.kit.leases, lease)
    before = await codes(whole), await skipped(whole)
    await mark_duplicates(whole.db, whole.kit.leases, lease)
    assert (await codes(whole), await skipped(whole)) == before
    assert before[1] == [(1, "waiting"), (2, "done")]


async def test_nothing_is_written_where_nothing_is_skipped(whole: WholeRun) -> None:
    await write(whole, list("abcdef"))
    lease = await leased(whole)
    async with whole.db.write() as session:
        await session.execute(update(Run).values(fence=99))  # whoever writes now finds the lease lost
    await mark_duplicates(whole.db, whole.kit.leases, lease)
    assert await skipped(whole) == [(0, "waiting"), (0, "waiting")]


async def test_a_lost_lease_marks_nothing(whole: WholeRun) -> None:
    await write(whole, list("aa"))
    lease = await leased(whole)
    async with whole.db.write() as session:
        await session.execute(update(Run).values(fence=99))
    with pytest.raises(LeaseLostError):
        await mark_duplicates(whole.db, whole.kit.leases, lease)
    assert await codes(whole) == [None, None]
