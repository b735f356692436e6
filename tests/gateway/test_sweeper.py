from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select

from gateway.sweeper import Sweeper
from models.store import StoreError
from models.tables import Asset, Frame, Output, Picture, Run, RunChunk, RunItem
from tests.gateway.conftest import until
from tests.support.seeded_run import seed_run

if TYPE_CHECKING:
    from tests.gateway.conftest import RunningGateway


async def rows(gateway: RunningGateway) -> list[int]:
    async with gateway.services.db.read() as session:
        return [
            await session.scalar(select(func.count()).select_from(table)) or 0
            for table in (Frame, Run, RunChunk, RunItem, Output, Asset)
        ]


async def deleted_frame(gateway: RunningGateway, **how: object) -> None:
    frame = await gateway.frame(feed_url="http://feeds.example.com/feed.xml")
    await seed_run(gateway.services.db, gateway.services.store, frame["id"], publish=b"<feed/>", **how)  # type: ignore[arg-type]
    assert (await gateway.request("DELETE", f"/api/frames/{frame['id']}")).status == 204


async def test_a_deleted_frame_leaves_no_row(framing: RunningGateway) -> None:
    await deleted_frame(framing)

    async def gone() -> bool:
        return await rows(framing) == [0] * 6

    await until(gone)


async def test_a_run_under_way_is_cancelled_and_goes_too(framing: RunningGateway) -> None:
    await deleted_frame(framing, state="composing", finished_at=None)
    await framing.services.sweeper.sweep()
    assert await rows(framing) == [0] * 6


async def test_what_the_store_refuses_goes_next_time(
    framing: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = framing.services.store
    await framing.services.sweeper.stop()

    async def refuse(_key: str) -> None:
        raise StoreError

    with monkeypatch.context() as broken:
        broken.setattr(store, "delete", refuse)
        await deleted_frame(framing)
        with pytest.raises(StoreError):
            await framing.services.sweeper.sweep()
        assert (await rows(framing))[0] == 1
    again = Sweeper(framing.services.db, store, framing.services.republisher)
    again.begin()
    again.kick()

    async def gone() -> bool:
        return await rows(framing) == [0] * 6

    await until(gone)
    await again.stop()


async def test_a_deleted_picture_that_the_store_keeps_is_tried_again(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def left() -> int:
        async with gateway.services.db.read() as session:
            return await session.scalar(select(func.count()).select_from(Picture)) or 0

    store = gateway.services.store
    await gateway.services.sweeper.stop()

    async def refuse(_key: str) -> None:
        raise StoreError

    made = (await gateway.generate({"prompt": "x", "num_images": 3})).json
    with monkeypatch.context() as broken:
        broken.setattr(store, "delete", refuse)
        assert (await gateway.request("DELETE", f"/api/generations/{made['id']}")).status == 204
        with pytest.raises(StoreError):
            await gateway.services.sweeper.sweep()
        assert await left() == 3
    pair = [Sweeper(gateway.services.db, store, gateway.services.republisher) for _ in range(2)]
    await asyncio.gather(*(each.sweep() for each in pair))
    assert await left() == 0
    assert [key async for key in store.list("objects")] == []


async def test_two_sweepers_do_not_disturb_each_other(framing: RunningGateway) -> None:
    await framing.services.sweeper.stop()
    for _ in range(3):
        await deleted_frame(framing)
    pair = [Sweeper(framing.services.db, framing.services.store, framing.services.republisher) for _ in range(2)]
    await asyncio.gather(*(each.sweep() for each in pair))
    assert await rows(framing) == [0] * 6
