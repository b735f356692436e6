"""The queues: JSON alone, short however long the feed, and a Redis that is gone or silent costs a moment."""

from __future__ import annotations

import asyncio
import json
import pickle
import socket
import time
import zlib
from typing import TYPE_CHECKING

import pytest
from rq import Queue
from rq.serializers import JSONSerializer

from compositor.queue import COMPOSE, Queues, connect, enqueue_ingest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.compositor_rig import RedisProcess, Rig, Shop


@pytest.fixture
def queues(redis: RedisProcess) -> Iterator[Queues]:
    connection = connect(redis.url)
    yield Queues(connection)
    connection.close()


async def test_a_runs_tickets_are_no_more_than_there_are_workers(queues: Queues) -> None:
    queues.compose(7, 20_000)
    queues.compose(7, 20_000)
    queues.compose(8, 5)
    queues.publish(7)
    assert queues.asked() == {("compose", 7): 1, ("compose", 8): 1, ("publish", 7): 1}
    queues.connection.sadd("rq:workers", "a", "b", "c")
    queues.compose(7, 20_000)
    queues.compose(8, 2)
    assert queues.asked() == {("compose", 7): 3, ("compose", 8): 2, ("publish", 7): 1}


async def test_jobs_are_json(queues: Queues) -> None:
    queues.ingest(5)
    (job_id,) = queues.connection.lrange("rq:queue:igen-ingest", 0, -1)
    data = queues.connection.hgetall(f"rq:job:{job_id.decode()}")[b"data"]
    assert json.loads(zlib.decompress(data))[0] == "compositor.jobs.ingest"


async def test_redis_gone_or_silent_costs_a_moment_and_no_error(redis: RedisProcess) -> None:
    redis.kill()
    assert not await enqueue_ingest(redis.url, 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and says nothing
        began = time.monotonic()
        assert not await enqueue_ingest(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", 1)
        assert time.monotonic() - began < 8


class Harmful:
    """What a pickle would run on loading."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (self.path, "w")


async def test_a_pickled_job_is_refused_and_the_worker_goes_on(rig: Rig, shop: Shop, queues: Queues) -> None:
    evil = rig.home / "evil"
    job = Queue(COMPOSE, connection=queues.connection, serializer=JSONSerializer).enqueue(
        "compositor.jobs.compose", 1
    )
    queues.connection.hset(f"rq:job:{job.id}", "data", pickle.dumps(("f", None, (Harmful(str(evil)),), {})))
    shop.stock(3, broken=False)
    rig.spawn("worker")
    run = await rig.start(await rig.frame())
    assert (await rig.until_over(run.id)).state == "completed"
    async with asyncio.timeout(10):
        while queues.connection.llen("rq:queue:igen-compose"):
            await asyncio.sleep(0.1)
    assert not evil.exists()
