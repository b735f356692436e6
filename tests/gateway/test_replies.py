from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import func, select

from gateway.replies import hash_of
from models.tables import Frame, Generation, Run
from tests.gateway.conftest import form
from tests.support.fake_backend import png

if TYPE_CHECKING:
    from tests.gateway.conftest import Reply, RunningGateway, StartGateway
    from tests.support.compositor_rig import RedisProcess
    from tests.support.fake_backend import FakeBackend

FEED = "http://feeds.example.com/feed.xml"


@pytest.fixture
def database(either_database: str) -> str:
    return either_database


async def make(gateway: RunningGateway, idempotency_key: str | None = "k", **parts: Any) -> Reply:
    headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
    parts = {"name": "Autumn", "picture": png(200, 100), "feed_url": FEED, **parts}
    parts = {name: part for name, part in parts.items() if part is not None}
    return await gateway.request("POST", "/api/frames", data=form(**parts), headers=headers)


async def begin(gateway: RunningGateway, frame_id: int, idempotency_key: str = "r") -> Reply:
    return await gateway.request("POST", f"/api/frames/{frame_id}/runs", headers={"Idempotency-Key": idempotency_key})


async def count(gateway: RunningGateway, table: type[Frame | Run | Generation]) -> int:
    async with gateway.services.db.read() as session:
        return await session.scalar(select(func.count()).select_from(table)) or 0


def test_the_order_of_fields_does_not_matter() -> None:
    assert hash_of({"a": 1, "b": {"c": 2, "d": 3}}) == hash_of({"b": {"d": 3, "c": 2}, "a": 1})
    assert hash_of({"a": 1}) != hash_of({"a": 2})


async def test_the_same_frame_again_is_the_first_answer_again(framing: RunningGateway) -> None:
    first = await make(framing)
    again = await make(framing)
    assert (first.status, again.status, again.json) == (201, 201, first.json)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.headers["Location"] == first.headers["Location"]
    assert "Idempotency-Replayed" not in first.headers
    assert await count(framing, Frame) == 1
    changed = await framing.request("PATCH", f"/api/frames/{first.json['id']}", json={"name": "Winter"})
    assert changed.status == 200
    assert (await make(framing)).json == first.json, "word for word, whatever happened since"


@pytest.mark.parametrize(
    "other", [{"name": "Winter"}, {"picture": png(100, 200)}, {"feed_mode": "additional"}, {"feed_url": None}]
)
async def test_another_frame_under_the_same_key_is_422(framing: RunningGateway, other: dict[str, Any]) -> None:
    await make(framing)
    reply = await make(framing, **other)
    assert (reply.status, reply.code) == (422, "idempotency_conflict")
    assert await count(framing, Frame) == 1


async def test_a_key_belongs_to_one_owner_and_a_refusal_uses_none_up(framing: RunningGateway, other_key: str) -> None:
    assert (await make(framing, feed_mode="nonsense")).status == 422
    first = await make(framing)
    assert first.status == 201
    mine = await framing.request(
        "POST",
        "/api/frames",
        key=other_key,
        data=form(name="Autumn", picture=png(200, 100), feed_url=FEED),
        headers={"Idempotency-Key": "k"},
    )
    assert mine.status == 201
    assert mine.json["id"] != first.json["id"]


async def test_without_a_key_each_request_makes_a_frame(framing: RunningGateway) -> None:
    await make(framing, None)
    await make(framing, None)
    assert await count(framing, Frame) == 2


@pytest.mark.parametrize("bad", ["", " ", "x" * 256, "ü"])
async def test_a_bad_key_is_400(framing: RunningGateway, bad: str) -> None:
    reply = await make(framing, bad)
    assert reply.status == 400
    assert await count(framing, Frame) == 0


async def test_ten_at_two_gateways_make_one_frame_and_leave_one_feed(
    start_gateway: StartGateway, composer: Any
) -> None:
    gateways = [await start_gateway(composer=composer, max_uploads=10) for _ in range(2)]
    feed = b'<feed xmlns="http://www.w3.org/2005/Atom"><entry><id>1</id></entry></feed>'
    replies = await asyncio.gather(*(make(gateways[n % 2], feed=feed, feed_url=None) for n in range(10)))
    assert [reply.status for reply in replies] == [201] * 10, [reply.body for reply in replies]
    assert len({reply.body for reply in replies}) == 1
    assert await count(gateways[0], Frame) == 1
    for gateway in gateways:
        await gateway.services.sweeper.sweep()
    assert len([key async for key in gateways[0].services.store.list("feeds")]) == 1


async def test_a_drawn_frame_is_drawn_once(framing: RunningGateway, backend: FakeBackend) -> None:
    backend.seconds = 0.3
    body = {"name": "Drawn", "prompt": "an autumn backdrop"}

    async def one() -> Reply:
        return await framing.request("POST", "/api/frames", json=body, headers={"Idempotency-Key": "k"})

    replies = await asyncio.gather(*(one() for _ in range(4)))
    assert [reply.status for reply in replies] == [201] * 4, [reply.body for reply in replies]
    assert len({reply.body for reply in replies}) == 1
    assert (await count(framing, Frame), await count(framing, Generation)) == (1, 1)
    assert len(backend.submissions) == 1


async def test_the_same_run_again_is_the_first_answer_again(queueing: RunningGateway) -> None:
    frame = (await make(queueing)).json
    first = await begin(queueing, frame["id"])
    again = await begin(queueing, frame["id"])
    assert (first.status, again.status, again.json) == (202, 202, first.json)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert (await begin(queueing, frame["id"], "another")).code == "run_active"
    await queueing.request("POST", f"/api/frames/{frame['id']}/runs/{first.json['id']}/cancel")
    assert (await begin(queueing, frame["id"])).json == first.json, "its end does not begin another"
    assert (await begin(queueing, frame["id"], "another")).status == 202
    other = (await make(queueing, "k2")).json
    assert (await begin(queueing, other["id"])).code == "idempotency_conflict"
    assert await count(queueing, Run) == 2


async def test_ten_at_once_begin_one_run(start_gateway: StartGateway, composer: Any, redis: RedisProcess) -> None:
    gateways = [await start_gateway(composer=composer, redis_url=redis.url) for _ in range(2)]
    frame = (await make(gateways[0])).json
    replies = await asyncio.gather(*(begin(gateways[n % 2], frame["id"]) for n in range(10)))
    assert [reply.status for reply in replies] == [202] * 10, [reply.body for reply in replies]
    assert len({reply.body for reply in replies}) == 1
    assert await count(gateways[0], Run) == 1
