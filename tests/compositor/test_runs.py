"""Runs as callers see them: owned, one at a time, cancelled, tried again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import update

from compositor.errors import NoFeedError, RunActiveError, RunFinishedError, RunSupersededError
from compositor.runs import cancel_run, counts, counts_of, get_run, list_runs, retry_failed, start_run
from models.db import utc_now
from models.errors import NotFoundError
from models.tables import Frame, Run
from tests.support.compositor_rig import OWNER, Rig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.compositor_rig import RedisProcess, Shop


@pytest.fixture
async def rig(tmp_path: Path, either_database: str, shop: Shop, redis: RedisProcess) -> AsyncIterator[Rig]:
    running = Rig(tmp_path, either_database, shop, redis)
    yield running
    await running.close()


async def end(rig: Rig, run: Run, **values: Any) -> None:
    async with rig.db.write() as session:
        await session.execute(update(Run).where(Run.id == run.id).values(**values))


async def test_of_many_starts_one_is_taken(rig: Rig) -> None:
    frame = await rig.frame()
    started = await asyncio.gather(*(start_run(rig.db, frame) for _ in range(8)), return_exceptions=True)
    runs = [run for run in started if isinstance(run, Run)]
    assert len(runs) == 1
    assert all(isinstance(other, RunActiveError) for other in started if other is not runs[0])
    assert [run.id for run in await list_runs(rig.db, frame.id)] == [runs[0].id]


async def test_a_run_keeps_what_the_frame_was(rig: Rig) -> None:
    frame = await rig.frame(design={"placement": {"fit": "cover"}}, webhook_url="http://hook.example/")
    run = await start_run(rig.db, frame)
    async with rig.db.write() as session:
        await session.execute(update(Frame).values(design={}, feed_url="http://elsewhere.example/"))
    kept = await get_run(rig.db, OWNER, run.id)
    assert kept.snapshot["design"]["placement"]["fit"] == "cover"
    assert kept.feed_url == rig.shop.url("/feed.xml")
    assert kept.snapshot["webhook_url"] == "http://hook.example/"


async def test_no_run_of_a_frame_without_feed_or_of_a_deleted_one(rig: Rig) -> None:
    with pytest.raises(NoFeedError):
        await start_run(rig.db, await rig.frame(feed_url=None))
    with pytest.raises(NotFoundError):
        await start_run(rig.db, await rig.frame(deleted_at=utc_now()))


async def test_anothers_run_is_not_found(rig: Rig) -> None:
    run = await start_run(rig.db, await rig.frame())
    for call in (get_run, cancel_run, retry_failed):
        with pytest.raises(NotFoundError):
            await call(rig.db, "usr_another", run.id)
        with pytest.raises(NotFoundError):
            await call(rig.db, OWNER, run.id + 1)
    assert (await get_run(rig.db, OWNER, run.id)).state == "queued"


async def test_a_run_is_cancelled_once(rig: Rig) -> None:
    run = await start_run(rig.db, await rig.frame())
    cancelled = await cancel_run(rig.db, OWNER, run.id)
    assert (cancelled.state, cancelled.fence) == ("cancelled", run.fence + 1)
    assert cancelled.finished_at is not None
    with pytest.raises(RunFinishedError):
        await cancel_run(rig.db, OWNER, run.id)
    assert (await counts(rig.db, run.id)).total == 0


async def test_only_the_latest_run_is_tried_again(rig: Rig) -> None:
    frame = await rig.frame()
    first = await start_run(rig.db, frame)
    await end(rig, first, state="failed", error_code="feed_truncated", error="cut", finished_at=utc_now())
    second = await start_run(rig.db, frame)
    with pytest.raises(RunActiveError):
        await retry_failed(rig.db, OWNER, first.id)
    await end(rig, second, state="failed", error_code="feed_truncated", error="cut", finished_at=utc_now())
    with pytest.raises(RunSupersededError):
        await retry_failed(rig.db, OWNER, first.id)
    again = await retry_failed(rig.db, OWNER, second.id)
    assert (again.state, again.error_code, again.finished_at) == ("queued", None, None)
    assert set(await counts_of(rig.db, [first.id, second.id])) == {first.id, second.id}
