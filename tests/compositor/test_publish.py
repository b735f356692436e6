"""The end of a run: what is published is complete, stored before it is named, and never another worker's."""

from __future__ import annotations

import asyncio
import csv
import dataclasses
import gzip
import io
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text, update

from compositor import publish as publishing
from compositor.errors import LeaseLostError, RunFailedError
from compositor.feed.errors import FeedLimits
from compositor.ingest import ingest
from compositor.publish import Press, publish, republish
from models.db import utc_now
from models.tables import Frame, Output, Run, RunState
from scripts.ingesting.whole import DONE, WholeRun, whole_run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from compositor.runlease import RunLease

ENTRY = "<item><g:id>{0}</g:id><g:title>Größe {0} &amp; mehr</g:title><g:image_link>https://x.test/{0}</g:image_link></item>"
FEED = '<rss xmlns:g="http://base.google.com/ns/1.0"><channel>{}</channel></rss>'.format(
    "".join(map(ENTRY.format, range(4)))
)


@pytest.fixture
async def whole(tmp_path: Path, either_database: str) -> AsyncIterator[WholeRun]:
    """A run of four entries whose feed has been read."""
    source = tmp_path / "source"
    source.write_text(FEED)
    async with whole_run(tmp_path, either_database, source) as run:
        lease = await run.kit.leases.claim_ingest(run.run.id)
        assert lease is not None
        assert await ingest(run.kit, lease) == 1
        yield run


async def framed(whole: WholeRun, *positions: int, deleted: tuple[int, ...] = (), failed: int = 0) -> RunLease:
    """Outputs for these entries; all chunks done, the run taken to be published."""
    async with whole.db.write() as session:
        session.add_all(
            Output(
                run_id=whole.run.id,
                position=position,
                size="original",
                frame_id=whole.run.frame_id,
                owner_id=whole.run.owner_id,
                name=f"name{position}",
                suffix="jpg",
                object_key=f"key{position}",
                width=1,
                height=1,
                bytes=1,
                created_at=utc_now(),
                deleted_at=utc_now() if position in deleted else None,
            )
            for position in positions
        )
        await session.execute(text(DONE), {"run": whole.run.id})
        counted = text("UPDATE run_chunks SET completed = size - :failed, failed = :failed")
        await session.execute(counted, {"failed": failed})
    lease = await whole.kit.leases.claim_publish(whole.run.id)
    assert lease is not None
    return lease


async def stored(whole: WholeRun) -> dict[str, bytes]:
    async with whole.db.read() as session:
        run = await session.get_one(Run, whole.run.id)
        frame = await session.get_one(Frame, whole.run.frame_id)
    assert frame.published_run_id == run.id
    assert run.output_feed_key
    assert run.output_csv_key
    found = {}
    for kind, key in (("xml", run.output_feed_key), ("csv", run.output_csv_key)):
        found[kind] = await whole.kit.store.get(key)
        assert gzip.decompress(await whole.kit.store.get(f"{key}.gz")) == found[kind]
    return found


async def test_framed_entries_get_their_link_and_the_others_stay(whole: WholeRun) -> None:
    lease = await framed(whole, 0, 1, 3, deleted=(1,))
    assert await publish(whole.kit, lease) is RunState.COMPLETED
    found = await stored(whole)
    expected = FEED
    for position in (0, 3):
        link = f"http://pictures.example/media/outputs/name{position}.jpg"
        expected = expected.replace(f"https://x.test/{position}", link)
    assert found["xml"].decode() == expected
    rows = list(csv.DictReader(io.StringIO(found["csv"].decode())))
    assert [row["image_link"].rpartition("/")[2] for row in rows] == ["name0.jpg", "1", "2", "name3.jpg"]
    assert {row["title"] for row in rows} == {f"Größe {number} & mehr" for number in range(4)}


async def test_links_are_found_page_by_page(whole: WholeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compositor.publish.PAGE", 2)
    await publish(whole.kit, await framed(whole, 1, 2))
    found = await stored(whole)
    assert [f"name{number}.jpg" in found["xml"].decode() for number in range(4)] == [False, True, True, False]


async def test_a_run_with_failures_ends_as_such_and_is_published(whole: WholeRun) -> None:
    assert await publish(whole.kit, await framed(whole, 0, failed=1)) is RunState.COMPLETED_WITH_FAILURES
    assert b"name0.jpg" in (await stored(whole))["xml"]


async def test_a_run_whose_feed_is_gone_names_its_reason(whole: WholeRun) -> None:
    lease = await framed(whole, 0)
    await whole.kit.store.delete(str(lease.run.feed_key))
    with pytest.raises(RunFailedError) as failed:
        await publish(whole.kit, lease)
    assert failed.value.code == "feed_missing"


async def test_a_worker_that_lost_the_run_publishes_nothing(whole: WholeRun) -> None:
    lease = await framed(whole, 0)
    async with whole.db.write() as session:
        await session.execute(update(Run).values(fence=Run.fence + 1))
    with pytest.raises(LeaseLostError):
        await publish(whole.kit, lease)
    async with whole.db.read() as session:
        assert (await session.get_one(Frame, whole.run.frame_id)).published_run_id is None
        assert (await session.get_one(Run, whole.run.id)).state == RunState.PUBLISHING.value


async def test_a_feed_is_made_under_the_limit_it_was_read_under(whole: WholeRun) -> None:
    lease = await framed(whole, 0)
    tight = dataclasses.replace(whole.kit, settings=whole.kit.settings.model_copy(update={"feed_max_bytes": 100}))
    with pytest.raises(RunFailedError) as failed:
        await publish(tight, lease)
    assert failed.value.code == "feed_too_large"


def press_of(whole: WholeRun) -> Press:
    kit = whole.kit
    return Press(kit.db, kit.store, kit.folder, kit.settings.public_base, FeedLimits())


async def test_a_published_feed_is_made_anew_in_place(whole: WholeRun) -> None:
    await publish(whole.kit, await framed(whole, 0, 1))
    async with whole.db.write() as session:
        await session.execute(update(Output).where(Output.position == 0).values(deleted_at=utc_now()))
    async with whole.db.read() as session:
        run = await session.get_one(Run, whole.run.id)
    key = await republish(press_of(whole), run)
    assert key not in (None, run.output_feed_key)
    assert await republish(press_of(whole), run) is None, "it was read before somebody made another"
    found = await stored(whole)
    assert [f"name{number}.jpg" in found["xml"].decode() for number in range(2)] == [False, True]
    assert b"https://x.test/0" in found["csv"]
    async with whole.db.read() as session:
        assert (await session.get_one(Run, whole.run.id)).output_feed_key == key


async def test_nobody_waits_for_a_thread_that_makes_a_feed_for_nobody(
    whole: WholeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop that ends with it under way would leave its process waiting for an answer that cannot come."""
    monkeypatch.setattr("compositor.publish.PAGE", 1)
    monkeypatch.setattr("compositor.publish.LOOK_S", 0.01)
    lease = await framed(whole, 0, 1)
    reading, ended = asyncio.Event(), threading.Event()
    real = publishing.rewrite_feed

    async def never(_links: object) -> dict[int, list[str]]:
        reading.set()
        await asyncio.Event().wait()
        raise AssertionError

    def rewritten(*how: Any) -> None:
        try:
            real(*how)
        finally:
            ended.set()

    monkeypatch.setattr(publishing._Links, "_read", never)
    monkeypatch.setattr(publishing, "rewrite_feed", rewritten)
    making = asyncio.create_task(press_of(whole).make(lease.run))
    await reading.wait()
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert await asyncio.to_thread(ended.wait, 10)
    assert list(whole.kit.folder.glob("*.part")) == []
