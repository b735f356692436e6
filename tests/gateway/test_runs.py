from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from redis import Redis

from tests.support.compositor_rig import BROKEN, SKIPPED, Rig, Shop
from tests.support.seeded_run import seed_run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.gateway.conftest import RunningGateway, StartGateway
    from tests.support.compositor_rig import RedisProcess

GOOD = 12
URL = "http://feeds.example.com/feed.xml"


def queued(redis: RedisProcess, queue: str) -> int:
    with Redis.from_url(redis.url) as client:
        return int(client.llen(f"rq:queue:{queue}"))


async def test_a_run_is_started_looked_at_and_cancelled(queueing: RunningGateway, redis: RedisProcess) -> None:
    frame = await queueing.frame(feed_url=URL)
    address = f"/api/frames/{frame['id']}/runs"
    started = await queueing.request("POST", address)
    assert (started.status, started.json["state"], started.json["total"]) == (202, "queued", 0)
    assert queued(redis, "igen-ingest") == 1
    run = f"{address}/{started.json['id']}"
    assert started.headers["Location"].endswith(run)
    assert (await queueing.request("GET", run)).json == started.json
    assert (await queueing.request("GET", f"{address}/")).json["runs"] == [started.json]
    assert (await queueing.request("GET", f"/api/frames/{frame['id']}")).json["latest_run"]["state"] == "queued"

    second = await queueing.request("POST", address)
    assert (second.status, second.code) == (409, "run_active")
    cancelled = await queueing.request("POST", f"{run}/cancel")
    assert (cancelled.status, cancelled.json["state"], cancelled.json["finished"]) == (200, "cancelled", True)
    assert (await queueing.request("POST", f"{run}/cancel")).code == "run_finished"


async def test_counts_add_up_and_failures_are_tried_again(queueing: RunningGateway, redis: RedisProcess) -> None:
    frame = await queueing.frame(feed_url=URL)
    await seed_run(queueing.services.db, queueing.services.store, frame["id"], completed=3, failed=2, skipped=1)
    (run,) = (await queueing.request("GET", f"/api/frames/{frame['id']}/runs")).json["runs"]
    assert (run["total"], run["completed"], run["failed"], run["skipped"], run["waiting"]) == (6, 3, 2, 1, 0)
    retried = await queueing.request("POST", f"/api/frames/{frame['id']}/runs/{run['id']}/retry")
    assert (retried.status, retried.json["state"]) == (202, "composing")
    assert (retried.json["failed"], retried.json["waiting"]) == (0, 2)
    assert queued(redis, "igen-compose") >= 1


async def test_without_a_feed_or_a_queue_nothing_starts(queueing: RunningGateway, framing: RunningGateway) -> None:
    frame = await queueing.frame()
    reply = await queueing.request("POST", f"/api/frames/{frame['id']}/runs")
    assert (reply.status, reply.code) == (422, "no_feed")
    reply = await framing.request("POST", f"/api/frames/{frame['id']}/runs")
    assert (reply.status, reply.code) == (503, "queue_unavailable")


async def test_a_dead_redis_delays_a_run_and_loses_none(queueing: RunningGateway, redis: RedisProcess) -> None:
    frame = await queueing.frame(feed_url=URL)
    redis.kill()
    reply = await queueing.request("POST", f"/api/frames/{frame['id']}/runs")
    assert (reply.status, reply.json["state"]) == (202, "queued")
    await redis.start()


async def test_nobody_elses_run_is_there(queueing: RunningGateway, other_key: str) -> None:
    frame, other = await queueing.frame(feed_url=URL), await queueing.frame("Other", feed_url=URL)
    run = (await queueing.request("POST", f"/api/frames/{frame['id']}/runs")).json["id"]
    for method, path in (("GET", ""), ("POST", "/cancel"), ("POST", "/retry")):
        address = f"/api/frames/{frame['id']}/runs/{run}{path}"
        assert (await queueing.request(method, address, key=other_key)).status == 404
        wrong_frame = f"/api/frames/{other['id']}/runs/{run}{path}"
        assert (await queueing.request(method, wrong_frame)).status == 404
    assert (await queueing.request("POST", f"/api/frames/{frame['id']}/runs", key=other_key)).status == 404
    for odd in ("0", "x", "99999999999999999999"):
        assert (await queueing.request("GET", f"/api/frames/{frame['id']}/runs/{odd}")).status == 404


async def test_deleting_a_frame_cancels_its_run(queueing: RunningGateway) -> None:
    frame = await queueing.frame(feed_url=URL)
    await queueing.request("POST", f"/api/frames/{frame['id']}/runs")
    assert (await queueing.request("DELETE", f"/api/frames/{frame['id']}")).status == 204
    await queueing.services.sweeper.sweep()
    assert [key async for key in queueing.services.store.list()] == []


async def test_a_whole_run_through_http(
    start_gateway: StartGateway, redis: RedisProcess, database: str, tmp_path: Path
) -> None:
    async with Shop() as shop:
        shop.stock(GOOD)
        gateway = await start_gateway(redis_url=redis.url, fetch_allow_hosts=f"127.0.0.1:{shop.port}")
        rig = Rig(tmp_path, database, shop, redis)
        try:
            rig.spawn("worker")
            rig.spawn("reconcile")
            frame = await gateway.frame(feed_url=shop.url("/feed.xml"))
            address = f"/api/frames/{frame['id']}"
            path = f"{gateway.url}/ws/progress/{frame['id']}/"
            async with gateway.http.ws_connect(path, headers={"Authorization": f"Bearer {gateway.key}"}) as socket:
                run = (await gateway.request("POST", f"{address}/runs")).json
                async with asyncio.timeout(60):
                    while (seen := await socket.receive_json())["state"] != "completed_with_failures":
                        continue
            assert (seen["processed"], seen["total"]) == (GOOD + BROKEN, GOOD + BROKEN)
            run = (await gateway.request("GET", f"{address}/runs/{run['id']}")).json
            assert (run["completed"], run["failed"], run["skipped"]) == (GOOD, BROKEN - SKIPPED, SKIPPED)
            failures = (await gateway.request("GET", f"{address}/failures?limit=50")).json["outputs"]
            assert len(failures) == BROKEN
            assert all(row["code"] and row["reason"] for row in failures)
            for row in (await gateway.request("GET", f"{address}/outputs?limit=50")).json["outputs"]:
                link = row["outputs"][0]["url"].removeprefix("http://pictures.example")
                got = await gateway.request("GET", link, key=None)
                assert (got.status, got.body[:3]) == (200, b"\xff\xd8\xff")
                source = await gateway.request("GET", row["source"].removeprefix("http://pictures.example"))
                assert source.headers["Content-Type"] == "image/jpeg"
            told = (await gateway.request("GET", address)).json["output_feed"]
            feed = await gateway.request("GET", told["xml"].removeprefix("http://pictures.example"), key=None)
            assert feed.body.count(b"http://pictures.example/media/outputs/") == GOOD
            row = (await gateway.request("GET", f"{address}/outputs?limit=1&offset=3")).json["outputs"][0]
            preview = await gateway.request("POST", f"{address}/preview", json={"position": row["position"]})
            link = row["outputs"][0]["url"].removeprefix("http://pictures.example")
            assert preview.body == (await gateway.request("GET", link)).body
        finally:
            await rig.close()
