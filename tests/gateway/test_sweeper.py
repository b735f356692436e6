from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select

from gateway.sweeper import Sweeper
from models.store import StoreError
from models.tables import Asset, Frame, Output, Run, RunChunk, RunItem
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
    again = Sweeper(framing.services.db, store)
    again.begin()
    again.kick()

    async def gone() -> bool:
        return await rows(framing) == [0] * 6

    await until(gone)
    await again.stop()


async def test_two_sweepers_do_not_disturb_each_other(framing: RunningGateway) -> None:
    await framing.services.sweeper.stop()
    for _ in range(3):
        await deleted_frame(framing)
    pair = [Sweeper(framing.services.db, framing.services.store) for _ in range(2)]
    await asyncio.gather(*(each.sweep() for each in pair))
    assert await rows(framing) == [0] * 6
