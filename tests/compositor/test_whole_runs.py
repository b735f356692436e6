"""Whole runs: a feed over loopback, a real Redis, real workers, rows, objects and the feed that comes out."""

from __future__ import annotations

import asyncio
import gzip
import io
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from sqlalchemy import update

from compositor.errors import NothingToRetryError, RunActiveError
from compositor.queue import enqueue_compose
from compositor.runs import cancel_run, retry_failed, start_run
from models.tables import Frame
from tests.support.compositor_rig import BROKEN, OWNER, SKIPPED, Rig, jpeg

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.compositor_rig import RedisProcess, Shop

GOOD = 40


async def test_every_good_product_is_framed_and_every_bad_one_has_its_reason(rig: Rig, shop: Shop) -> None:
    shop.stock(GOOD)
    rig.spawn("worker")
    run = await rig.until_over((await rig.start(await rig.frame())).id)
    assert run.state == "completed_with_failures", rig.logs()
    found = await rig.check(run.id)
    assert (found.total, found.completed, found.skipped) == (GOOD + BROKEN, GOOD, SKIPPED)
    assert found.failed == BROKEN - SKIPPED
    items = await rig.items(run.id)
    codes = {name: item.code for name, item in items.items()}
    assert codes[None] == "missing_id"
    assert codes["no-picture"] == "missing_image"
    assert codes["relative"] == "relative_url"
    assert codes["file"] == "bad_url"
    assert codes["gone"] == "source_not_found"
    assert codes["page"] == "source_not_an_image"
    assert codes["empty"] == "source_not_an_image"
    assert codes["cut"] == "broken_image"
    assert codes["noise"] in ("broken_image", "not_an_image")
    assert codes["metadata"] == "source_blocked"
    assert all(item.reason for item in items.values() if item.code)
    outputs = await rig.outputs(run.id)
    assert len(outputs) == len({output.name for output in outputs}) == GOOD
    picture = await rig.store.get(outputs[0].object_key)
    assert len(picture) == outputs[0].bytes
    assert Image.open(io.BytesIO(picture)).size == (200, 200) == (outputs[0].width, outputs[0].height)


async def test_the_feed_that_comes_out_is_whole(rig: Rig, shop: Shop) -> None:
    shop.stock(GOOD)
    rig.spawn("worker")
    frame = await rig.frame()
    run = await rig.until_over((await rig.start(frame)).id)
    feed = (await rig.store.get(str(run.output_feed_key))).decode()
    assert feed.count("<entry>") == GOOD + BROKEN
    assert feed.count("http://pictures.example/media/outputs/") == GOOD
    assert shop.url("/p/gone.jpg") in feed, "an item without output is kept as it was"
    for output in await rig.outputs(run.id):
        assert f"/media/outputs/{output.name}.jpg" in feed
    packed = await rig.store.get(f"{run.output_feed_key}.gz")
    assert gzip.decompress(packed).decode() == feed
    csv = (await rig.store.get(str(run.output_csv_key))).decode("utf-8-sig")
    assert csv.count("http://pictures.example/media/outputs/") == GOOD
    async with rig.db.read() as session:
        assert (await session.get_one(Frame, frame.id)).published_run_id == run.id


async def test_a_second_run_composes_only_what_changed(rig: Rig, shop: Shop) -> None:
    shop.stock(GOOD, broken=False)
    rig.spawn("worker")
    frame = await rig.frame()
    first = await rig.until_over((await rig.start(frame)).id)
    assert first.state == "completed", rig.logs()
    assert len(shop.sent) == GOOD
    shop.sent.clear()
    second = await rig.until_over((await rig.start(frame)).id)
    assert (await rig.check(second.id)).reused == GOOD
    assert shop.sent == [], "nothing was sent again"
    assert [o.name for o in await rig.outputs(second.id)] == [o.name for o in await rig.outputs(first.id)]
    for number in range(3):
        shop.pictures[f"{number}.jpg"] = jpeg(500 + number)
    third = await rig.until_over((await rig.start(frame)).id)
    found = await rig.check(third.id)
    assert (found.completed, found.reused) == (GOOD, GOOD - 3)
    assert sorted(shop.sent) == ["0.jpg", "1.jpg", "2.jpg"]


async def test_a_changed_design_composes_all_without_fetching_any(rig: Rig, shop: Shop) -> None:
    shop.stock(10, broken=False)
    rig.spawn("worker")
    frame = await rig.frame()
    await rig.until_over((await rig.start(frame)).id)
    shop.sent.clear()
    async with rig.db.write() as session:
        await session.execute(update(Frame).values(design={"placement": {"fit": "cover"}}))
    run = await rig.until_over((await rig.start(frame)).id)
    found = await rig.check(run.id)
    assert (found.completed, found.reused) == (10, 0)
    assert shop.sent == []


async def test_products_that_share_a_picture_are_fetched_and_composed_once(rig: Rig, shop: Shop) -> None:
    shop.stock(1, broken=False)
    entries = [shop.entry(f"v{number}", shop.url("/p/0.jpg")) for number in range(30)]
    shop.feed = shop.feed.replace(b"</feed>", "".join(entries).encode() + b"</feed>")
    rig.spawn("worker")
    run = await rig.until_over((await rig.start(await rig.frame())).id)
    found = await rig.check(run.id)
    assert (found.completed, found.total) == (31, 31)
    assert len({output.name for output in await rig.outputs(run.id)}) == 1
    assert len(shop.sent) <= 2, "at most one for each of the chunks that began together"


async def test_several_sizes_come_out_in_the_designs_order(rig: Rig, shop: Shop) -> None:
    sizes = [{"name": "square", "width": 120, "height": 120}, {"name": "story", "width": 90, "height": 160}]
    shop.stock(3, broken=False)
    rig.spawn("worker")
    run = await rig.until_over((await rig.start(await rig.frame(design={"sizes": sizes}))).id)
    outputs = await rig.outputs(run.id)
    assert [(o.size, o.width, o.height) for o in outputs if o.position == 0] == [
        ("square", 120, 120),
        ("story", 90, 160),
    ]
    feed = (await rig.store.get(str(run.output_feed_key))).decode()
    for output in outputs:
        tag = "g:image_link" if output.size == "square" else "g:additional_image_link"
        assert f"<{tag}>http://pictures.example/media/outputs/{output.name}.jpg</{tag}>" in feed


async def test_a_feed_cut_off_fails_the_run_and_publishes_nothing(rig: Rig, shop: Shop) -> None:
    shop.stock(GOOD, broken=False)
    rig.spawn("worker")
    frame = await rig.frame()
    good = await rig.until_over((await rig.start(frame)).id)
    shop.feed = shop.feed[: len(shop.feed) // 2]
    bad = await rig.until_over((await rig.start(frame)).id)
    assert (bad.state, bad.error_code) == ("failed", "feed_truncated")
    assert bad.output_feed_key is None
    async with rig.db.read() as session:
        assert (await session.get_one(Frame, frame.id)).published_run_id == good.id
    shop.stock(GOOD, broken=False)
    again = await retry_failed(rig.db, OWNER, bad.id)
    assert again.state == "queued"
    rig.spawn("reconcile")
    assert (await rig.until_over(bad.id)).state == "completed"


async def test_failed_products_are_tried_again_in_the_same_run(rig: Rig, shop: Shop) -> None:
    shop.stock(GOOD, broken=False)
    kept = {f"{number}.jpg": shop.pictures.pop(f"{number}.jpg") for number in range(5)}
    rig.spawn("worker")
    run = await rig.until_over((await rig.start(await rig.frame())).id)
    assert (await rig.check(run.id)).failed == 5
    shop.pictures |= kept
    shop.asked.clear()
    await retry_failed(rig.db, OWNER, run.id)
    with pytest.raises(RunActiveError):
        await retry_failed(rig.db, OWNER, run.id)
    assert (await rig.check(run.id)).waiting == 5
    await enqueue_compose(rig.redis.url, run.id, 5)
    run = await rig.until_over(run.id)
    assert run.state == "completed"
    assert (await rig.check(run.id)).completed == GOOD
    assert sorted(shop.asked) == sorted(kept)
    assert (await rig.store.get(str(run.output_feed_key))).decode().count("pictures.example") == GOOD
    with pytest.raises(NothingToRetryError):
        await retry_failed(rig.db, OWNER, run.id)


async def test_a_cancelled_run_stops_and_goes_on_when_tried_again(rig: Rig, shop: Shop) -> None:
    shop.stock(GOOD, broken=False)
    shop.delay_s = 0.5
    rig.spawn("worker")
    frame = await rig.frame()
    run = await rig.start(frame)
    await rig.until(run.id, lambda row: row.state == "composing")
    await asyncio.sleep(0.7)
    assert (await cancel_run(rig.db, OWNER, run.id)).state == "cancelled"
    await asyncio.sleep(1.5)
    before = await rig.check(run.id)
    assert before.waiting
    await asyncio.sleep(1)
    assert await rig.check(run.id) == before, "nothing is written into a cancelled run"
    async with rig.db.read() as session:
        assert (await session.get_one(Frame, frame.id)).published_run_id is None
    shop.delay_s = 0
    await retry_failed(rig.db, OWNER, run.id)
    await enqueue_compose(rig.redis.url, run.id, 5)
    assert (await rig.until_over(run.id)).state == "completed"


async def test_the_reconciler_starts_refreshes_and_tells_the_webhook(rig: Rig, shop: Shop) -> None:
    shop.stock(3, broken=False)
    rig.spawn("worker")
    frame = await rig.frame(refresh_seconds=3600, webhook_url=shop.url("/hook"))
    async with rig.db.write() as session:
        await session.execute(update(Frame).values(next_refresh_at=frame.created_at))
    rig.spawn("reconcile")
    async with asyncio.timeout(30):
        while not shop.hooks:
            await asyncio.sleep(0.1)
    told = shop.hooks[0]
    assert (told["event"], told["state"], told["processed"], told["total"]) == ("run.finished", "completed", 3, 3)
    async with asyncio.timeout(5):
        while (await rig.run(told["run_id"])).webhook_sent_at is None:
            await asyncio.sleep(0.05)
    run = await rig.run(told["run_id"])
    assert run.trigger == "refresh"
    async with rig.db.read() as session:
        due = (await session.get_one(Frame, frame.id)).next_refresh_at
    assert due is not None
    assert 3500 < (due - run.created_at).total_seconds() < 3700


async def test_on_postgresql_too(tmp_path: Path, either_database: str, shop: Shop, redis: RedisProcess) -> None:
    rig = Rig(tmp_path, either_database, shop, redis)
    try:
        shop.stock(GOOD)
        rig.spawn("worker")
        rig.spawn("worker")
        frame = await rig.frame()
        run = await rig.start(frame)
        with pytest.raises(RunActiveError):
            await start_run(rig.db, frame)
        run = await rig.until_over(run.id)
        found = await rig.check(run.id)
        assert (found.total, found.completed, found.skipped) == (GOOD + BROKEN, GOOD, SKIPPED)
        second = await rig.until_over((await rig.start(frame)).id)
        assert (await rig.check(second.id)).reused == GOOD
    finally:
        await rig.close()
