"""Runs that use again what earlier ones left, while everything that may go is swept all the time."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from compositor.feed.errors import FeedLimits
from gateway import orphans as orphans_module
from gateway.orphans import Orphans
from gateway.outputtable import delete_outputs
from gateway.republishing import Republisher
from gateway.retention import Retention
from gateway.sweeper import Sweeper
from models.db import utc_now
from tests.support.compositor_rig import Rig, Shop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from models.tables import Frame, Run
    from tests.support.compositor_rig import RedisProcess

PRODUCTS = 30
ROUNDS = 4


class Later:
    """A clock two days ahead: all that lies there now is old."""

    def __call__(self) -> datetime:
        return utc_now() + timedelta(days=2)


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    async with Shop() as running:
        yield running


@pytest.fixture
async def rig(tmp_path: Path, either_database: str, shop: Shop, redis: RedisProcess) -> AsyncIterator[Rig]:
    running = Rig(tmp_path, either_database, shop, redis)
    yield running
    await running.close()


async def still_ours() -> bool:
    return True


async def sweep_for_ever(rig: Rig, swept: list[int]) -> None:
    base = "http://pictures.example"
    republisher = Republisher(rig.db, rig.store, folder=rig.home / "feeds", public_base=base, limits=FeedLimits())
    sweeper = Sweeper(rig.db, rig.store, republisher)
    retention = Retention(rig.db, rig.store, keep_runs=1, keep_days=1, clock=Later())
    orphans = Orphans(rig.db, rig.store, clock=Later())
    while True:
        await sweeper.sweep()
        await retention.sweep(still_ours)
        swept.append(await orphans.sweep(still_ours))
        await asyncio.sleep(0.01)


async def run_once(rig: Rig, frame: Frame) -> Run:
    """A whole run, at whose end every row has its file."""
    run = await rig.start(frame)
    ended = await rig.until_over(run.id)
    assert ended.state == "completed", rig.logs()
    outputs = await rig.outputs(run.id)
    assert len(outputs) == PRODUCTS
    lost = [each.position for each in outputs if not await rig.store.exists(each.object_key)]
    assert lost == [], "rows without their files"
    sources = [str(item.source_key) for item in (await rig.items(run.id)).values()]
    assert [key for key in sources if not await rig.store.exists(key)] == []
    return run


async def test_no_row_is_left_without_its_file(rig: Rig, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    # of the others only age says whether somebody is about to name them, and this clock is not to be believed
    monkeypatch.setattr(orphans_module, "FOLDERS", ("outputs", "sources"))
    shop.stock(PRODUCTS, broken=False)
    rig.spawn("worker")
    rig.spawn("reconcile")
    frame = await rig.frame()
    swept: list[int] = []
    sweeping = asyncio.create_task(sweep_for_ever(rig, swept))
    for number in range(ROUNDS):
        run = await run_once(rig, frame)
        # half of them are on their way out when the next run looks for them
        await delete_outputs(rig.db, run, range(number % 2, PRODUCTS, 2), None, everywhere=True)
    sweeps = len(swept)
    async with asyncio.timeout(30):
        while len([key async for key in rig.store.list("outputs")]) > PRODUCTS // 2 or len(swept) < sweeps + 2:
            assert not sweeping.done() or sweeping.result() is None
            await asyncio.sleep(0.05)
    sweeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sweeping
    assert {output.run_id for output in await rig.outputs(run.id)} == {run.id}
