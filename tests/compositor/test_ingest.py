"""From a feed to rows: resumed where it was killed, duplicates by query, nothing out of a feed that breaks off."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from compositor import ingest as module
from compositor.compose.fields import canonical
from compositor.compose.process import ComposeProcess
from compositor.errors import LeaseLostError, RunFailedError
from compositor.feed.entries import FeedEntry
from compositor.ingest import EntryWriter, ingest
from compositor.kit import open_kit
from compositor.runs import cancel_run, counts, start_run
from compositor.settings import CompositorSettings
from models.tables import RunChunk, RunItem
from tests.support.compositor_rig import OWNER, Rig, feed_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from compositor.kit import Kit
    from tests.support.compositor_rig import RedisProcess, Shop


@pytest.fixture
async def rig(tmp_path: Path, either_database: str, shop: Shop, redis: RedisProcess) -> AsyncIterator[Rig]:
    running = Rig(tmp_path, either_database, shop, redis)
    yield running
    await running.close()


@pytest.fixture
async def kit(rig: Rig, tmp_path: Path) -> AsyncIterator[Kit]:
    values: dict[str, Any] = {name.removeprefix("IGEN_").lower(): text for name, text in rig.environment.items()}
    settings = CompositorSettings(**values)
    async with open_kit(settings, ComposeProcess(tmp_path)) as made:
        yield made


async def test_an_ingest_killed_midway_goes_on_over_the_same_bytes(
    rig: Rig, kit: Kit, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNKS_AT_ONCE", 1)
    shop.stock(35, broken=False)
    run = await start_run(rig.db, await rig.frame())
    lease = await kit.leases.claim_ingest(run.id)
    assert lease is not None
    write, written = module.EntryWriter.write, 0

    async def dies(self: module.EntryWriter, session: Any, rows: list[Any]) -> None:
        nonlocal written
        written += 1
        if written == 3:
            raise ConnectionResetError
        await write(self, session, rows)

    monkeypatch.setattr(module.EntryWriter, "write", dies)
    with pytest.raises(ConnectionResetError):
        await ingest(kit, lease)
    assert (await counts(rig.db, run.id)).total == 20
    await kit.leases.release(lease)
    shop.feed = feed_of([shop.entry("other", shop.url("/p/0.jpg"))])
    again = await kit.leases.claim_ingest(run.id)
    assert again is not None
    assert await ingest(kit, again) == 4
    row = await rig.run(run.id)
    assert (row.state, row.total, row.attempts) == ("composing", 35, 0)
    async with rig.db.read() as session:
        positions = list(await session.scalars(select(RunItem.position).order_by(RunItem.position)))
        sizes = list(await session.scalars(select(RunChunk.size).order_by(RunChunk.number)))
    assert positions == list(range(35))
    assert sizes == [10, 10, 10, 5]


async def test_later_uses_of_an_id_are_skipped_and_counted(rig: Rig, kit: Kit, shop: Shop) -> None:
    entries = [shop.entry(f"id{number % 12}", shop.url(f"/p/{number}.jpg")) for number in range(30)]
    shop.feed = feed_of([*entries, shop.entry(None, None), shop.entry(None, None)])
    run = await start_run(rig.db, await rig.frame())
    lease = await kit.leases.claim_ingest(run.id)
    assert lease is not None
    assert await ingest(kit, lease) == 2, "the chunks of positions 20 to 31 have nothing left to do"
    async with rig.db.read() as session:
        codes = list(await session.scalars(select(RunItem.code).order_by(RunItem.position)))
    assert codes == [None] * 12 + ["duplicate_id"] * 18 + ["missing_id"] * 2
    found = await counts(rig.db, run.id)
    assert (found.total, found.skipped, found.waiting) == (32, 20, 12)


async def test_only_the_fields_that_the_design_looks_at_are_kept(rig: Rig, kit: Kit, shop: Shop) -> None:
    box = {"x": 0, "y": 0, "width": 50, "height": 50}
    shop.feed = feed_of([shop.entry("id", shop.url("/p/0.jpg"), title="Größe 5 & mehr".replace("&", "&amp;"))])
    run = await start_run(rig.db, await rig.frame(design={"texts": [{"text": "{price}", "box": box}]}))
    lease = await kit.leases.claim_ingest(run.id)
    assert lease is not None
    await ingest(kit, lease)
    async with rig.db.read() as session:
        item = await session.get_one(RunItem, (run.id, 0))
    assert item.fields == {"title": "Größe 5 & mehr", "price": "10.00 EUR"}


@given(st.dictionaries(st.sampled_from(["title", "Price", "g:price", "link", "brand"]), st.text(max_size=20)))
@settings(deadline=None)
def test_a_row_has_the_wanted_fields_as_json(fields: dict[str, str]) -> None:
    writer = EntryWriter(10, 7, frozenset({"price"}))
    assert [name for name in ("title", "price", "Price", "link") if writer.keeps(name)] == ["title", "price", "Price"]
    row = writer.row(FeedEntry(3, "id\0", "https://x.test/\ud800", fields, None, None))
    assert row[:4] == (7, 3, "id", "https://x.test/?")
    expected = {
        canonical(name): text.replace("\0", "").encode("utf-8", "replace").decode()
        for name, text in fields.items()
        if text and canonical(name) in ("title", "price")
    }
    assert json.loads(row[4]) == expected
    assert row[5:] == ("waiting", False, 0, None, None)


def test_a_long_field_is_cut_and_a_faulty_entry_has_its_outcome() -> None:
    writer = EntryWriter(10, 7, frozenset())
    row = writer.row(FeedEntry(3, None, None, {"title": "x" * 9000}, "missing_id", "The entry has no id."))
    assert json.loads(row[4]) == {"title": "x" * 2000}
    assert row[5:] == ("skipped", False, 0, "missing_id", "The entry has no id.")


async def test_a_feed_cut_off_leaves_nothing_to_compose(rig: Rig, kit: Kit, shop: Shop) -> None:
    shop.stock(30, broken=False)
    shop.feed = shop.feed[:-200]
    run = await start_run(rig.db, await rig.frame())
    lease = await kit.leases.claim_ingest(run.id)
    assert lease is not None
    with pytest.raises(RunFailedError) as failed:
        await ingest(kit, lease)
    assert failed.value.code == "feed_truncated"
    assert (await rig.run(run.id)).state == "ingesting"


@pytest.mark.parametrize(
    ("feed_url", "code"),
    [("http://10.0.0.1/feed.xml", "feed_blocked"), ("/p/none", "feed_refused"), ("/p/page", "feed_not_a_feed")],
)
async def test_a_feed_that_cannot_be_had_names_its_reason(
    rig: Rig, kit: Kit, shop: Shop, feed_url: str, code: str
) -> None:
    shop.pictures["page"] = b"<html><body>hello</body></html>"
    address = feed_url if feed_url.startswith("http") else shop.url(feed_url)
    run = await start_run(rig.db, await rig.frame(feed_url=address))
    lease = await kit.leases.claim_ingest(run.id)
    assert lease is not None
    with pytest.raises(RunFailedError) as failed:
        await ingest(kit, lease)
    assert failed.value.code == code


@pytest.mark.parametrize(
    "case",
    [([500, 429], 0, None), ([503] * 5, 2, "feed_refused"), ([404, 500], 1, "feed_refused")],
    ids=["for a moment", "for long", "for good"],
)
async def test_a_feed_whose_server_fails_is_asked_again_if_that_may_help(
    rig: Rig, kit: Kit, shop: Shop, monkeypatch: pytest.MonkeyPatch, case: tuple[list[int], int, str | None]
) -> None:
    faults, left, code = case
    monkeypatch.setattr(module, "DOWNLOAD_PAUSES_S", (0.01, 0.01))
    shop.stock(3, broken=False)
    shop.feed_faults = list(faults)
    run = await start_run(rig.db, await rig.frame())
    lease = await kit.leases.claim_ingest(run.id)
    assert lease is not None
    with pytest.raises(RunFailedError) if code else nullcontext() as failed:
        await ingest(kit, lease)
    assert len(shop.feed_faults) == left
    assert (failed.value.code if failed else None) == code


async def test_a_run_cancelled_while_its_feed_is_read_stays_cancelled(
    rig: Rig, kit: Kit, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNKS_AT_ONCE", 1)
    shop.stock(25, broken=False)
    run = await start_run(rig.db, await rig.frame())
    lease = await kit.leases.claim_ingest(run.id)
    assert lease is not None
    write, transaction = module.EntryWriter.write, kit.db.write
    batches: list[int] = []

    async def counted(self: module.EntryWriter, session: Any, rows: list[Any]) -> None:
        await write(self, session, rows)
        batches.append(len(rows))

    @asynccontextmanager
    async def cancelled_after_the_first_batch() -> AsyncIterator[Any]:
        if batches == [10]:
            batches.clear()
            await cancel_run(rig.db, OWNER, run.id)
        async with transaction() as session:
            yield session

    monkeypatch.setattr(module.EntryWriter, "write", counted)
    monkeypatch.setattr(kit.db, "write", cancelled_after_the_first_batch)
    with pytest.raises(LeaseLostError):
        await ingest(kit, lease)
    assert (await rig.run(run.id)).state == "cancelled"
    async with rig.db.read() as session:
        assert await session.scalar(select(func.count()).select_from(RunItem)) == 10
