from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from redis import Redis
from sqlalchemy import select, update

from models.tables import Frame, Run, RunChunk
from tests.gateway.conftest import until
from tests.support.seeded_run import seed_run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.gateway.conftest import RunningGateway
    from tests.support.compositor_rig import RedisProcess

ORIGIN = "http://pictures.example"


async def seeded(gateway: RunningGateway) -> tuple[int, int]:
    """A frame with a run under way: 3 of 10 done."""
    frame = await gateway.frame(feed_url="http://feeds.example.com/feed.xml")
    run = await seed_run(
        gateway.services.db,
        gateway.services.store,
        frame["id"],
        completed=10,
        failed=0,
        skipped=0,
        state="composing",
        finished_at=None,
    )
    await advance(gateway, run.id, 3)
    return frame["id"], run.id


async def advance(gateway: RunningGateway, run_id: int, completed: int, state: str = "composing") -> None:
    async with gateway.services.db.write() as session:
        await session.execute(update(RunChunk).where(RunChunk.run_id == run_id).values(completed=completed))
        await session.execute(update(Run).where(Run.id == run_id).values(state=state))


def connect(gateway: RunningGateway, path: str, **headers: str) -> Any:
    return gateway.http.ws_connect(gateway.url + path, headers=headers)


def bearer(gateway: RunningGateway, key: str = "") -> dict[str, str]:
    return {"Authorization": f"Bearer {key or gateway.key}"}


async def test_two_sockets_see_a_snapshot_then_changes(queueing: RunningGateway) -> None:
    frame, run = await seeded(queueing)
    path = f"/ws/progress/{frame}/"
    async with connect(queueing, path, **bearer(queueing)) as one, connect(queueing, path, **bearer(queueing)) as two:
        for socket in (one, two):
            first = await socket.receive_json(timeout=5)
            assert (first["type"], first["processed"], first["total"]) == ("snapshot", 3, 10)
            assert {"failed", "skipped", "state", "rate", "eta", "seq", "product_id"} <= set(first)
        await advance(queueing, run, 8)
        message = json.dumps({**first, "processed": 8, "completed": 8, "product_id": "sku-7", "seq": [1, 1]})
        with Redis.from_url(queueing.settings.redis_url.get_secret_value()) as client:
            assert client.publish(f"igen:frame:{frame}", message) == 1  # one follower for both
        for socket in (one, two):
            seen = await socket.receive_json(timeout=5)
            assert (seen["type"], seen["processed"]) == ("progress", 8)
    async with connect(queueing, path, **bearer(queueing)) as again:
        assert (await again.receive_json(timeout=5))["processed"] == 8
    await until(lambda: not queueing.services.hub._followers)


async def test_without_redis_the_rows_are_looked_at(framing: RunningGateway) -> None:
    frame, run = await seeded(framing)
    async with connect(framing, f"/ws/progress/{frame}", **bearer(framing)) as socket:
        assert (await socket.receive_json(timeout=5))["processed"] == 3
        await advance(framing, run, 10, "completed")
        seen = await socket.receive_json(timeout=5)
        assert (seen["processed"], seen["state"]) == (10, "completed")


async def test_a_killed_redis_does_not_end_a_watch(queueing: RunningGateway, redis: RedisProcess) -> None:
    frame, run = await seeded(queueing)
    async with connect(queueing, f"/ws/progress/{frame}/", **bearer(queueing)) as socket:
        assert (await socket.receive_json(timeout=5))["processed"] == 3
        redis.kill()
        await advance(queueing, run, 6)
        assert (await socket.receive_json(timeout=10))["processed"] == 6
        await redis.start()
        await advance(queueing, run, 9)
        assert (await socket.receive_json(timeout=10))["processed"] == 9


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://pictures.example.evil.example"])
async def test_a_foreign_origin_is_refused_before_the_socket_opens(framing: RunningGateway, origin: str) -> None:
    frame, _ = await seeded(framing)
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await connect(framing, f"/ws/progress/{frame}/", **bearer(framing), Origin=origin)
    assert refused.value.status == 403
    async with connect(framing, f"/ws/progress/{frame}/", **bearer(framing), Origin=ORIGIN) as socket:
        assert (await socket.receive_json(timeout=5))["type"] == "snapshot"


async def test_strangers_are_refused_before_the_socket_opens(framing: RunningGateway, other_key: str) -> None:
    frame, _ = await seeded(framing)
    cases = [({}, 401), ({"Authorization": "Bearer x"}, 401), (bearer(framing, other_key), 404)]
    for headers, status in cases:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await connect(framing, f"/ws/progress/{frame}/", **headers)
        assert refused.value.status == status
    for odd in ("0", "x", "99999999999"):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await connect(framing, f"/ws/progress/{odd}/", **bearer(framing))
        assert refused.value.status == 404
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await connect(framing, f"/ws/progress/{frame}/", **bearer(framing), Host="evil.example")
    assert refused.value.status == 400


async def test_a_ticket_opens_one_socket_of_its_frame(
    queueing: RunningGateway, other_key: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "uvicorn.error")
    frame, _ = await seeded(queueing)
    other, _ = await seeded(queueing)
    assert (await queueing.request("POST", f"/api/frames/{frame}/ws-ticket", key=other_key)).status == 404
    issued = await queueing.request("POST", f"/api/frames/{frame}/ws-ticket")
    assert (issued.status, issued.json["expires_in"]) == (201, 30)
    ticket = issued.json["ticket"]
    path = f"/ws/progress/{frame}/?ticket={ticket}"
    async with connect(queueing, path, Origin=ORIGIN) as socket:
        assert (await socket.receive_json(timeout=5))["type"] == "snapshot"
    for used in (path, f"/ws/progress/{frame}/?ticket=", f"/ws/progress/{frame}/?ticket={'a' * 26}"):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await connect(queueing, used, Origin=ORIGIN)
        assert refused.value.status == 401
    for_one = (await queueing.request("POST", f"/api/frames/{frame}/ws-ticket")).json["ticket"]
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await connect(queueing, f"/ws/progress/{other}/?ticket={for_one}")
    assert refused.value.status == 401
    rows = await queueing.log(8)
    assert not any(ticket in row.query + row.path for row in rows)
    assert "[accepted]" in caplog.text  # the server's own line about the socket
    assert ticket not in caplog.text


async def test_a_long_message_closes_the_socket(framing: RunningGateway) -> None:
    frame, _ = await seeded(framing)
    async with connect(framing, f"/ws/progress/{frame}/", **bearer(framing)) as socket:
        await socket.receive_json(timeout=5)
        await socket.send_str("x" * 100_000)
        closed = await socket.receive(timeout=5)
        assert (closed.type, socket.close_code) == (aiohttp.WSMsgType.CLOSE, 1009)


async def test_a_revoked_key_and_a_deleted_frame_end_a_watch(
    framing: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.progress.RECHECK_S", 0.1)
    frame, _ = await seeded(framing)
    async with connect(framing, f"/ws/progress/{frame}/", **bearer(framing)) as socket:
        await socket.receive_json(timeout=5)
        await framing.request("DELETE", f"/api/frames/{frame}")
        while (await socket.receive(timeout=5)).type is aiohttp.WSMsgType.TEXT:
            continue
        assert socket.close_code == 4404
    second, _ = await seeded(framing)
    async with connect(framing, f"/ws/progress/{second}/", **bearer(framing)) as socket:
        await socket.receive_json(timeout=5)
        await framing.services.keys.revoke(framing.key.split("_")[1])
        while (await socket.receive(timeout=5)).type is aiohttp.WSMsgType.TEXT:
            continue
        assert socket.close_code == 4401


async def test_a_run_that_begins_under_the_number_of_a_deleted_frame_is_not_shown(
    framing: RunningGateway, other_key: str
) -> None:
    """Whoever watched a frame that was deleted hears nothing of another owner's that got its number."""
    stranger = (await framing.frame(key=other_key))["id"]
    frame, run = await seeded(framing)
    async with connect(framing, f"/ws/progress/{frame}/", **bearer(framing)) as socket:
        await socket.receive_json(timeout=5)
        async with framing.services.db.write() as session:
            owner = select(Frame.owner_id).where(Frame.id == stranger).scalar_subquery()
            await session.execute(update(Frame).where(Frame.id == frame).values(owner_id=owner))
        await advance(framing, run, 3, "ingesting")
        message = await socket.receive(timeout=5)  # well before the frame is looked for anyway
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 4404)


async def test_the_same_as_json_and_as_an_event_stream(framing: RunningGateway, other_key: str) -> None:
    frame, run = await seeded(framing)
    address = f"/api/frames/{frame}/progress"
    plain = (await framing.request("GET", address)).json
    assert (plain["type"], plain["processed"], plain["run_id"]) == ("snapshot", 3, run)
    assert (await framing.request("GET", address, key=other_key)).status == 404
    assert (await framing.request("GET", f"{address}/events", key=None)).status == 401
    ticket = (await framing.request("POST", f"/api/frames/{frame}/ws-ticket")).json["ticket"]
    async with framing.http.get(f"{framing.url}{address}/events?ticket={ticket}") as stream:
        assert stream.content_type == "text/event-stream"
        assert await stream.content.readline() == b"event: snapshot\n"
        await advance(framing, run, 5)
        async with asyncio.timeout(5):
            while (await stream.content.readline()) != b"event: progress\n":
                continue
        data = await stream.content.readline()
        assert json.loads(data.removeprefix(b"data: "))["processed"] == 5


async def test_a_frame_without_a_run_is_idle(framing: RunningGateway) -> None:
    frame = await framing.frame()
    message = (await framing.request("GET", f"/api/frames/{frame['id']}/progress")).json
    assert (message["state"], message["processed"], message["total"]) == ("idle", 0, 0)


async def test_stopping_the_gateway_does_not_wait_for_watchers(framing: RunningGateway) -> None:
    frame, _ = await seeded(framing)
    async with connect(framing, f"/ws/progress/{frame}/", **bearer(framing)) as socket:
        await socket.receive_json(timeout=5)
        async with asyncio.timeout(8):
            await framing.stop()
        assert (await socket.receive(timeout=5)).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)


async def test_a_slow_reader_is_dropped_and_holds_nobody_up(
    framing: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame, run = await seeded(framing)

    async def flood(*_: object) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        while True:
            yield "progress", {"text": "x" * 1_000_000}

    with monkeypatch.context() as patched:
        patched.setattr("gateway.progress._messages", flood)
        patched.setattr("gateway.progress.SEND_S", 0.3)
        _reader, writer = await asyncio.open_connection("127.0.0.1", framing.listening.getsockname()[1], limit=1024)
        lines = [
            f"GET /ws/progress/{frame}/ HTTP/1.1",
            "Host: 127.0.0.1",
            f"Authorization: Bearer {framing.key}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        try:
            await until(lambda: framing.services.hub._followers)
            await until(lambda: not framing.services.hub._followers)
        except BaseException:
            writer.transport.abort()
            raise
    async with connect(framing, f"/ws/progress/{frame}/", **bearer(framing)) as socket:
        assert (await socket.receive_json(timeout=60))["run_id"] == run
    writer.transport.abort()
