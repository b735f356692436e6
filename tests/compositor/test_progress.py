"""Progress: five messages a second at most, numbered; a watcher always ends with the right numbers."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import update

from compositor import progress
from compositor.progress import LEAST_INTERVAL_MS, Reporter, follow, snapshot
from compositor.runs import start_run
from models.tables import Run, RunChunk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from tests.support.compositor_rig import RedisProcess, Rig


@pytest.fixture
async def client(redis: RedisProcess) -> AsyncIterator[Redis]:
    made = progress.connect(redis.url)
    yield made
    await made.aclose()


async def chunk(rig: Rig, run: Run, completed: int) -> None:
    numbers = dict.fromkeys(("reused", "failed", "skipped", "fence", "attempts"), 0)
    async with rig.db.write() as session:
        await session.merge(
            RunChunk(run_id=run.id, number=0, first=0, size=10, state="running", completed=completed, **numbers)
        )


async def test_a_frame_without_runs_is_idle(rig: Rig, client: Redis) -> None:
    frame = await rig.frame()
    found = await snapshot(rig.db, frame.id, client)
    assert (found["state"], found["processed"], found["total"], found["seq"]) == ("idle", 0, 0, None)


async def test_messages_are_numbered_and_no_more_than_five_a_second(rig: Rig, client: Redis) -> None:
    frame = await rig.frame()
    run = await start_run(rig.db, frame)
    await chunk(rig, run, 4)
    reporter = Reporter(rig.db, client)
    async with client.pubsub(ignore_subscribe_messages=True) as listening:
        await listening.subscribe(progress.channel(frame.id))
        await listening.get_message(timeout=1)
        for number in range(50):
            await reporter.report(frame.id, run.id, f"id{number}")
        messages = [m async for m in drain(listening)]
    assert len(messages) <= 2
    assert (await snapshot(rig.db, frame.id, client))["seq"][1] == len(messages)


async def drain(listening: Any) -> AsyncIterator[Any]:
    while (message := await listening.get_message(timeout=0.3)) is not None:
        yield message


async def next_of(watching: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    async with asyncio.timeout(8):
        return await anext(watching)


async def test_a_watcher_gets_a_snapshot_then_changes_and_again_after_redis_forgot(
    rig: Rig, client: Redis, redis: RedisProcess
) -> None:
    frame = await rig.frame()
    run = await start_run(rig.db, frame)
    await chunk(rig, run, 1)
    reporter = Reporter(rig.db, client)
    watching = follow(rig.db, client, frame.id)
    assert (await next_of(watching))["processed"] == 1
    await chunk(rig, run, 2)
    await reporter.report(frame.id, run.id, "id2", force=True)
    message = await next_of(watching)
    assert (message["processed"], message["total"], message["product_id"]) == (2, 10, "id2")
    epoch = message["seq"][0]
    await client.flushall()
    await chunk(rig, run, 3)
    await asyncio.sleep(0.01)
    await reporter.report(frame.id, run.id, "id3", force=True)
    while (message := await next_of(watching))["processed"] != 3:
        pass
    assert message["seq"][0] != epoch


async def test_numbers_that_were_overtaken_are_not_told(rig: Rig, client: Redis) -> None:
    """Two workers read the rows in one order and got their numbers in the other."""
    frame = await rig.frame()
    run = await start_run(rig.db, frame)
    await chunk(rig, run, 2)
    await Reporter(rig.db, client).report(frame.id, run.id, "id", force=True)
    watching = follow(rig.db, client, frame.id)
    seen = await next_of(watching)
    epoch, first = seen["seq"]
    for later, processed in enumerate((5, 4, 6), first + 1):
        message = {**seen, "processed": processed, "seq": [epoch, later]}
        await client.publish(progress.channel(frame.id), json.dumps(message))
    told = [(await next_of(watching))["processed"] for _ in range(2)]
    assert told == [5, 6]


def test_fewer_than_before_is_news_only_of_a_run_that_had_ended() -> None:
    now = {"run_id": 1, "processed": 4, "state": "composing"}
    assert progress.is_stale(now, {**now, "processed": 5})
    assert not progress.is_stale(now, {**now, "processed": 5, "state": "completed"})
    assert not progress.is_stale(now, {**now, "processed": 5, "run_id": 2})
    assert not progress.is_stale(now, now)


class CountingRedis:
    """A client that counts how often it is asked whether it is time for a message."""

    def __init__(self, real: Redis) -> None:
        self._real = real
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def set(self, *arguments: Any, **options: Any) -> Any:
        self.asked += 1
        return await self._real.set(*arguments, **options)


async def test_redis_is_asked_no_oftener_than_there_are_messages(rig: Rig, client: Redis) -> None:
    run = await start_run(rig.db, await rig.frame())
    counting: Any = CountingRedis(client)
    reporter = Reporter(rig.db, counting)
    started = time.monotonic()
    while counting.asked < 3:
        await reporter.report(run.frame_id, run.id, None)
        await asyncio.sleep(0)
    assert time.monotonic() - started >= 2 * LEAST_INTERVAL_MS / 1000


async def test_without_redis_the_rows_are_looked_at(rig: Rig, client: Redis, redis: RedisProcess) -> None:
    frame = await rig.frame()
    run = await start_run(rig.db, frame)
    await chunk(rig, run, 1)
    redis.kill()
    await Reporter(rig.db, client).report(frame.id, run.id, None, force=True)
    watching = follow(rig.db, client, frame.id)
    assert (await next_of(watching))["processed"] == 1
    await chunk(rig, run, 7)
    assert (await next_of(watching))["processed"] == 7
    async with rig.db.write() as session:
        await session.execute(update(Run).values(state="cancelled"))
    assert (await next_of(watching))["state"] == "cancelled"
