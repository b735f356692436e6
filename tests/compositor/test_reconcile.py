"""The reconciler: one at a time, and it asks for exactly what the rows want done."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import update

from compositor.queue import Queues, connect
from compositor.reconcile import LEASE_S, Reconciler
from compositor.runs import start_run
from models.db import utc_now
from models.tables import Frame, Run, RunChunk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.compositor_rig import RedisProcess, Rig


@pytest.fixture
def queues(redis: RedisProcess) -> Iterator[Queues]:
    connection = connect(redis.url)
    yield Queues(connection)
    connection.close()


class Clock:
    """A clock that runs ahead of this machine's."""

    def __init__(self) -> None:
        self.ahead = 10.0

    def __call__(self) -> datetime:
        return utc_now() + timedelta(seconds=self.ahead)


async def set_run(rig: Rig, run: Run, **values: Any) -> None:
    async with rig.db.write() as session:
        await session.execute(update(Run).where(Run.id == run.id).values(**values))


async def add_chunk(rig: Rig, run: Run, state: str, **values: Any) -> None:
    zero = dict.fromkeys(("completed", "reused", "failed", "skipped", "fence", "attempts"), 0)
    async with rig.db.write() as session:
        await session.merge(RunChunk(run_id=run.id, number=0, first=0, size=1, state=state, **{**zero, **values}))


async def test_one_of_two_works_and_the_other_takes_over_when_it_falls_silent(rig: Rig, queues: Queues) -> None:
    clock = Clock()
    one, other = Reconciler(rig.db, queues, clock=clock), Reconciler(rig.db, queues, clock=clock)
    assert await one.reconcile()
    assert not await other.reconcile()
    assert await one.reconcile()
    clock.ahead += LEASE_S + 1
    assert await other.reconcile()
    assert not await one.reconcile()


async def test_it_asks_once_for_each_step_that_nobody_is_at(rig: Rig, queues: Queues) -> None:
    clock = Clock()
    reconciler = Reconciler(rig.db, queues, clock=clock)
    run = await start_run(rig.db, await rig.frame())

    async def asked() -> dict[tuple[str, int], int]:
        await reconciler.reconcile()
        await reconciler.reconcile()
        found = queues.asked()
        queues.connection.flushall()
        return found

    assert await asked() == {("ingest", run.id): 1}
    later, before = clock() + timedelta(seconds=60), clock() - timedelta(seconds=1)
    await set_run(rig, run, state="ingesting", lease_expires_at=later)
    assert await asked() == {}
    await set_run(rig, run, lease_expires_at=before)
    assert await asked() == {("ingest", run.id): 1}
    await set_run(rig, run, state="composing", lease_expires_at=None)
    await add_chunk(rig, run, "waiting")
    assert await asked() == {("compose", run.id): 1}
    await add_chunk(rig, run, "running", lease_expires_at=later)
    assert await asked() == {}
    await add_chunk(rig, run, "running", lease_expires_at=before)
    assert await asked() == {("compose", run.id): 1}
    await add_chunk(rig, run, "done")
    assert await asked() == {("publish", run.id): 1}
    await set_run(rig, run, state="publishing", lease_expires_at=later)
    assert await asked() == {}
    await set_run(rig, run, lease_expires_at=before)
    assert await asked() == {("publish", run.id): 1}
    await set_run(rig, run, state="completed", finished_at=clock())
    assert await asked() == {}


async def test_a_refresh_is_started_once_and_not_beside_a_run(rig: Rig, queues: Queues) -> None:
    clock = Clock()
    one, other = Reconciler(rig.db, queues, clock=clock), Reconciler(rig.db, queues, clock=clock)
    frame = await rig.frame(refresh_seconds=3600, next_refresh_at=utc_now())
    await one._start_refreshes()
    await other._start_refreshes()
    assert sum(queues.asked().values()) == 1
    async with rig.db.write() as session:
        await session.execute(update(Frame).where(Frame.id == frame.id).values(next_refresh_at=utc_now()))
    await one._start_refreshes()
    assert sum(queues.asked().values()) == 1, "its run is under way"
    async with rig.db.read() as session:
        due = (await session.get_one(Frame, frame.id)).next_refresh_at
    assert due is not None
    assert due > utc_now() + timedelta(seconds=3000)


async def test_webhooks_are_asked_for_when_due_and_until_they_are_over(rig: Rig, queues: Queues) -> None:
    clock = Clock()
    reconciler = Reconciler(rig.db, queues, clock=clock)
    run = await start_run(rig.db, await rig.frame(webhook_url="http://hook.example/"))
    silent = await start_run(rig.db, await rig.frame())
    now = clock()

    async def asked(**values: Any) -> dict[tuple[str, int], int]:
        ended = {"state": "completed", "finished_at": now - timedelta(seconds=90), **values}
        for each in (run, silent):
            await set_run(rig, each, **ended)
        await reconciler.reconcile()
        await reconciler.reconcile()
        found = queues.asked()
        queues.connection.flushall()
        return found

    once = {("webhook", run.id): 1}
    assert await asked(finished_at=now - timedelta(seconds=30)) == {}, "whoever ended it asks for the first"
    assert await asked() == once, "that was lost"
    assert await asked(finished_at=now - timedelta(hours=7)) == {}, "nobody wants to hear of it any more"
    assert await asked(webhook_attempts=1, webhook_next_at=now + timedelta(seconds=30)) == {}
    assert await asked(webhook_next_at=now - timedelta(seconds=1)) == once
    assert await asked(finished_at=now - timedelta(hours=7)) == once, "tries that have begun go to their end"
    assert await asked(webhook_sent_at=now, webhook_next_at=None) == {}
