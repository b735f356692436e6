"""Deleted outputs and the published feed: no link in it leads nowhere, whoever dies or is late."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, update

from compositor.publish import republish
from compositor.snapshot import take_snapshot
from gateway import republishing
from models.db import utc_now
from models.store import StoreError
from models.tables import Frame, Output, Run
from tests.support.seeded_run import seed_run

if TYPE_CHECKING:
    from tests.gateway.conftest import RunningGateway

PRODUCTS = 3
PLAIN = {"Accept-Encoding": "identity"}
ENTRY = "<entry><id>{0}</id><price>{0} EUR</price><image_link>http://shop.example/{0}.jpg</image_link></entry>"
SOURCE = f'<feed xmlns="http://www.w3.org/2005/Atom">{"".join(map(ENTRY.format, range(PRODUCTS)))}</feed>'


class Published:
    """A frame with a published run of three products, and its feed as anybody fetches it."""

    def __init__(self, gateway: RunningGateway, frame: dict[str, str], run: Run) -> None:
        self.gateway = gateway
        self.address = f"/api/frames/{frame['id']}"
        self.feed = frame["output_feed"]["xml"].removeprefix("http://pictures.example")  # type: ignore[index]
        self.frame_id = int(frame["id"])
        self.run = run

    async def links(self) -> list[bool]:
        """Of each product, whether the feed links a framed picture; all other elements must be as they were."""
        text = (await self.gateway.request("GET", self.feed, key=None, headers=PLAIN)).body.decode()
        csv = await self.gateway.request("GET", self.feed.replace(".xml", ".csv"), key=None, headers=PLAIN)
        originals = [f"http://shop.example/{number}.jpg" in text for number in range(PRODUCTS)]
        assert [f"http://shop.example/{number}.jpg" in csv.body.decode() for number in range(PRODUCTS)] == originals
        assert all(f"<id>{number}</id><price>{number} EUR</price>" in text for number in range(PRODUCTS))
        assert text.count("/media/outputs/") == originals.count(False)
        return [not original for original in originals]

    async def delete(self, *positions: int) -> None:
        done = await self.gateway.request(
            "POST", f"{self.address}/outputs/delete", json={"positions": list(positions)}
        )
        assert done.json == {"deleted": len(positions)}

    async def hide(self, position: int) -> None:
        """What a gateway has written when it is killed right after it answered, or before."""
        gone = update(Output).where(Output.run_id == self.run.id, Output.position == position)
        async with self.gateway.services.db.write() as session:
            await session.execute(gone.values(deleted_at=utc_now()))


async def finished_run(gateway: RunningGateway, frame_id: int, **how: object) -> Run:
    services = gateway.services
    run = await seed_run(services.db, services.store, frame_id, completed=PRODUCTS, failed=0, skipped=0, **how)  # type: ignore[arg-type]
    key = f"runs/{run.id}/feed"
    await services.store.put(key, SOURCE.encode(), media_type="application/xml")
    async with services.db.write() as session:
        frame = await session.get_one(Frame, frame_id)
        values = {"feed_key": key, "snapshot": (await take_snapshot(session, frame)).to_row()}
        await session.execute(update(Run).where(Run.id == run.id).values(**values))
    return run


@pytest.fixture
async def published(framing: RunningGateway) -> Published:
    frame = await framing.frame(feed_url="http://feeds.example.com/feed.xml")
    links = SOURCE.replace("http://shop.example", "http://pictures.example/media/outputs")
    return Published(framing, frame, await finished_run(framing, frame["id"], publish=links.encode()))


async def test_a_deleted_output_leaves_the_feed_before_the_answer_comes(published: Published) -> None:
    etag = (await published.gateway.request("GET", published.feed, key=None, headers=PLAIN)).headers["ETag"]
    await published.delete(1)
    assert await published.links() == [True, False, True]
    fresh = await published.gateway.request("GET", published.feed, key=None, headers={**PLAIN, "If-None-Match": etag})
    assert fresh.status == 200
    await published.delete(0)
    assert await published.links() == [False, False, True]
    assert (await published.gateway.request("DELETE", f"{published.address}/outputs/2")).status == 200
    assert await published.links() == [False] * 3


async def test_readers_that_ask_by_date_hear_of_it(published: Published) -> None:
    """The feed is of the store's time, not of its run's end, which was weeks ago."""
    await published.delete(1)
    since = {**PLAIN, "If-Modified-Since": "Mon, 02 Nov 2026 00:00:00 GMT"}
    assert (await published.gateway.request("GET", published.feed, key=None, headers=since)).status == 200


async def test_a_feed_that_could_not_be_made_is_made_by_the_sweeper(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = published.gateway.services
    await services.sweeper.stop()

    async def refuse(*_: object, **__: object) -> None:
        raise StoreError

    with monkeypatch.context() as broken:
        broken.setattr(services.store, "put_file", refuse)
        await published.delete(1)
        with pytest.raises(StoreError):
            await services.sweeper.sweep()
    async with services.db.read() as session:
        left = await session.scalar(select(Output.position).where(Output.deleted_at.is_not(None)))
    assert left == 1, "the row says that the feed is still to be made"
    await services.sweeper.sweep()
    assert await published.links() == [True, False, True]
    async with services.db.read() as session:
        assert await session.scalar(select(Output).where(Output.deleted_at.is_not(None))) is None


async def test_what_a_killed_gateway_left_is_done_by_the_next(published: Published) -> None:
    services = published.gateway.services
    await services.sweeper.stop()
    await published.hide(2)
    await services.sweeper.sweep()
    assert await published.links() == [True, True, False]


async def test_a_deletion_while_the_feed_is_made_gets_another_feed(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = published.gateway.services
    await services.sweeper.stop()
    await published.hide(0)
    real, made = republish, []

    async def slow(*press_and_run: object) -> object:
        key = await real(*press_and_run)  # type: ignore[arg-type]
        made.append(key)
        if len(made) == 1:
            await published.hide(1)
        return key

    monkeypatch.setattr(republishing, "republish", slow)
    await services.republisher.bring_up(published.frame_id)
    assert len(made) == 2
    assert await published.links() == [False, False, True]


async def test_two_at_once_make_one_feed(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    services = published.gateway.services
    await services.sweeper.stop()
    await published.hide(0)
    real, made = republish, []

    async def counted(*press_and_run: object) -> object:
        made.append(await real(*press_and_run))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(republishing, "republish", counted)
    await asyncio.gather(*(services.republisher.bring_up(published.frame_id) for _ in range(3)))
    assert len(made) == 1


async def test_a_run_without_its_feed_keeps_the_old_one_and_its_outputs_still_go(published: Published) -> None:
    services = published.gateway.services
    await services.store.delete(f"runs/{published.run.id}/feed")
    await published.delete(1)
    await services.sweeper.sweep()
    async with services.db.read() as session:
        assert await session.scalar(select(Output).where(Output.deleted_at.is_not(None))) is None
    assert await published.links() == [True] * 3


async def test_a_deleted_picture_goes_from_earlier_runs_too(published: Published) -> None:
    later = await finished_run(published.gateway, published.frame_id)  # seeded with the same pictures
    page = (await published.gateway.request("GET", f"{published.address}/outputs")).json
    assert page["run_id"] == later.id
    link = page["outputs"][1]["outputs"][0]["url"].removeprefix("http://pictures.example")
    assert (await published.gateway.request("DELETE", f"{published.address}/outputs/1")).json == {"deleted": 1}
    assert (await published.gateway.request("GET", link, key=None)).status == 404
    assert await published.links() == [True, False, True], "the published run is the earlier one"


async def test_of_a_named_run_only_its_own_output_goes(published: Published) -> None:
    later = await finished_run(published.gateway, published.frame_id)
    address = f"{published.address}/outputs/1?run_id={later.id}"
    link = (await published.gateway.request("GET", address)).json["outputs"][0]["url"]
    assert (await published.gateway.request("DELETE", address)).json == {"deleted": 1}
    served = await published.gateway.request("GET", link.removeprefix("http://pictures.example"), key=None)
    assert served.status == 200
    assert await published.links() == [True] * 3


async def test_a_picture_that_another_product_shares_stays(published: Published) -> None:
    """Variants of a product often have one picture, and then one output."""
    later = await finished_run(published.gateway, published.frame_id)
    db = published.gateway.services.db
    first = select(Output.name).where(Output.run_id == later.id, Output.position == 0).scalar_subquery()
    async with db.write() as session:
        same = update(Output).where(Output.frame_id == published.frame_id, Output.position == 1)
        await session.execute(same.values(name=first))
    await published.delete(1)
    assert await published.links() == [True] * 3
    await published.delete(0)
    assert await published.links() == [False, False, True]
