"""Workers, their jobs, their composing processes and Redis killed with -9: every product ends once, none is lost."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from compositor.queue import enqueue_compose
from tests.support.compositor_rig import Rig

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator

    from tests.support.compositor_rig import RedisProcess, Shop

RECOVERY_S = 60
"""Lease of 2 s, reconciling every 5 s, a worker's start; the rest is for a busy machine."""


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found.append(int(entry.name))
    return found


def is_composer(pid: int) -> bool:
    try:
        return b"compositor.compose.child" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def jobs_of(worker: subprocess.Popen[bytes]) -> list[int]:
    return [pid for pid in children(worker.pid) if not is_composer(pid)]


def composers_of(worker: subprocess.Popen[bytes]) -> list[int]:
    """The processes that decode, and not the one that makes them."""
    return [pid for server in children(worker.pid) if is_composer(server) for pid in children(server)]


@pytest.fixture
async def either_rig(tmp_path: Path, either_database: str, shop: Shop, redis: RedisProcess) -> AsyncIterator[Rig]:
    running = Rig(tmp_path, either_database, shop, redis)
    yield running
    await running.close()


@pytest.mark.timeout(600)
async def test_kills_at_random_and_two_of_redis_lose_and_double_nothing(either_rig: Rig, shop: Shop) -> None:
    """Thirty on SQLite, twelve on PostgreSQL, where what differs is how locks and connections of the dead end."""
    rig = either_rig
    # enough products that no machine is through before the last kill
    wanted, total = (30, 400) if rig.db.is_sqlite else (12, 160)
    shop.stock(total, broken=False)
    shop.delay_s = 0.6
    workers = [rig.spawn("worker"), rig.spawn("worker")]
    rig.spawn("reconcile")
    run = await rig.start(await rig.frame())
    await rig.until(run.id, lambda row: row.state == "composing")
    draw = random.Random(7)
    kills = {"job": 0, "composer": 0, "worker": 0}
    redis_kills = 0
    ends = time.monotonic() + 300
    while sum(kills.values()) < wanted and time.monotonic() < ends and (await rig.run(run.id)).state == "composing":
        await asyncio.sleep(draw.uniform(0.05, 0.4))
        place = draw.randrange(2)
        kind = draw.choices(["job", "composer", "worker"], [6, 4, 1])[0]
        victims = {"job": jobs_of, "composer": composers_of, "worker": lambda w: [*jobs_of(w), w.pid]}[kind](
            workers[place]
        )
        if not victims:
            continue
        killed = [kill(pid) for pid in victims]
        kills[kind] += any(killed)
        if kind == "worker":
            workers[place].wait()
            workers[place] = rig.spawn("worker")
        if redis_kills < min(sum(kills.values()) // (wanted // 3), 2):
            redis_kills += 1
            rig.redis.kill()
            await asyncio.sleep(0.5)
            await rig.redis.start()
        await rig.check(run.id)
    assert redis_kills == 2, kills
    assert sum(kills.values()) >= wanted, kills
    shop.delay_s = 0
    began = time.monotonic()
    ended = await rig.until_over(run.id, RECOVERY_S)
    print(f"killed {kills}, Redis {redis_kills} times; over {time.monotonic() - began:.1f} s after the last")
    found = await rig.check(run.id)
    assert (ended.state, found.completed, found.total) == ("completed", total, total), rig.logs()
    outputs = await rig.outputs(run.id)
    assert len(outputs) == len({output.position for output in outputs}) == total
    assert len({output.name for output in outputs}) == total
    stored = [key async for key in rig.store.list("outputs")]
    assert sorted(stored) == sorted(output.object_key for output in outputs)
    feed = (await rig.store.get(str(ended.output_feed_key))).decode()
    assert feed.count("/media/outputs/") == total


async def test_a_worker_killed_alone_leaves_a_job_that_ends_once(rig: Rig, shop: Shop) -> None:
    shop.stock(30, broken=False)
    shop.delay_s = 0.5
    worker = rig.spawn("worker")
    run = await rig.start(await rig.frame())
    await rig.until(run.id, lambda row: row.state == "composing")
    async with asyncio.timeout(20):
        while not shop.asked:
            await asyncio.sleep(0.02)
    kill(worker.pid)
    worker.wait()
    rig.spawn("worker")
    rig.spawn("reconcile")
    ended = await rig.until_over(run.id, RECOVERY_S)
    assert (ended.state, (await rig.check(run.id)).completed) == ("completed", 30), rig.logs()
    assert len(await rig.outputs(run.id)) == 30


async def test_redis_that_forgot_everything_is_filled_again_from_rows(rig: Rig, shop: Shop) -> None:
    shop.stock(30, broken=False)
    run = await rig.start(await rig.frame())
    rig.redis.kill()
    for file in (rig.home / "redis").rglob("*"):
        if file.is_file() and file.name != "redis.conf":
            file.unlink()
    await rig.redis.start()
    rig.spawn("worker")
    rig.spawn("reconcile")
    assert (await rig.until_over(run.id, RECOVERY_S)).state == "completed", rig.logs()


async def test_a_run_started_without_redis_begins_when_redis_is_back(rig: Rig, shop: Shop) -> None:
    shop.stock(5, broken=False)
    rig.redis.kill()
    run = await rig.start(await rig.frame())
    rig.spawn("worker")
    rig.spawn("reconcile")
    await asyncio.sleep(2)
    assert (await rig.run(run.id)).state == "queued"
    await rig.redis.start()
    assert (await rig.until_over(run.id, RECOVERY_S)).state == "completed", rig.logs()


async def test_sigterm_ends_a_worker_soon_and_its_work_goes_on_elsewhere(rig: Rig, shop: Shop) -> None:
    shop.stock(60, broken=False)
    shop.delay_s = 0.3
    worker = rig.spawn("worker")
    run = await rig.start(await rig.frame())
    await rig.until(run.id, lambda row: row.state == "composing")
    async with asyncio.timeout(20):
        while not shop.asked:
            await asyncio.sleep(0.02)
    worker.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(worker.wait, 10) == 0
    assert (await rig.check(run.id)).waiting
    shop.delay_s = 0
    rig.spawn("worker")
    await enqueue_compose(rig.redis.url, run.id, 6)
    assert (await rig.until_over(run.id, RECOVERY_S)).state == "completed", rig.logs()
