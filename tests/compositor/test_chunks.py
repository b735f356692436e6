"""Chunk leases: one taker at a time, a late writer refused, counts that are those of the items."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from compositor.chunks import FAILED_TAKING, Chunks, Outcome, Results
from compositor.errors import LeaseLostError
from compositor.runlease import RunLeases
from compositor.runs import cancel_run, counts
from models.db import Database, utc_now
from models.tables import Frame, ItemState, Run, RunChunk, RunItem, User

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

OWNER = "usr_x"


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = utc_now()

    def __call__(self) -> Any:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
async def db(either_database: str) -> AsyncIterator[Database]:
    database = Database(either_database)
    yield database
    await database.close()


@pytest.fixture
async def run(db: Database) -> Run:
    """A run of two chunks of three items that is being composed."""
    now = utc_now()
    async with db.write() as session:
        session.add(User(id=OWNER, name="x", created_at=now))
        await session.flush()
        picture = {"picture_key": "k", "picture_sha256": "0" * 64, "width": 9, "height": 9, "transparent": False}
        frame = Frame(
            owner_id=OWNER,
            name="f",
            revision=1,
            secret="s",
            design={},
            feed_url="http://shop.example/feed",
            feed_mode="replace",
            created_at=now,
            updated_at=now,
            **picture,
        )
        session.add(frame)
        await session.flush()
        row = Run(
            frame_id=frame.id,
            owner_id=OWNER,
            state="composing",
            trigger="manual",
            snapshot={},
            partial=False,
            fence=1,
            attempts=0,
            total=6,
            created_at=now,
        )
        session.add(row)
        await session.flush()
        zero = dict.fromkeys(("completed", "reused", "failed", "skipped", "fence", "attempts"), 0)
        session.add_all(
            RunChunk(run_id=row.id, number=first, first=first, size=3, state="waiting", **zero) for first in (0, 3)
        )
        session.add_all(
            RunItem(
                run_id=row.id, position=at, product_id=str(at), fields={}, state="waiting", reused=False, attempts=0
            )
            for at in range(6)
        )
    return row


def done(position: int, **values: Any) -> Outcome:
    return Outcome(position, str(position), ItemState.COMPLETED, **values)


async def test_each_chunk_is_taken_once(db: Database, run: Run) -> None:
    workers = [Chunks(db, lease_seconds=30) for _ in range(4)]
    taken = [lease for lease in await asyncio.gather(*(worker.claim(run.id) for worker in workers)) if lease]
    assert sorted(lease.number for lease in taken) == [0, 3]
    assert await workers[0].claim(run.id) is None


async def test_a_late_writer_is_refused_and_changes_nothing(db: Database, run: Run) -> None:
    clock = Clock()
    late, next_one = Chunks(db, lease_seconds=30, clock=clock), Chunks(db, lease_seconds=30, clock=clock)
    old = await late.claim(run.id)
    assert old is not None
    clock.pass_by(31)
    new = await next_one.claim(run.id)
    assert new is not None
    assert (new.number, new.fence, new.attempts) == (old.number, old.fence + 1, 2)
    with pytest.raises(LeaseLostError):
        await late.save(old, Results(outcomes=[done(0)], tries=[1]))
    with pytest.raises(LeaseLostError):
        await late.renew(old)
    await late.release(old)
    async with db.read() as session:
        item = await session.get_one(RunItem, (run.id, 0))
        chunk = await session.get_one(RunChunk, (run.id, 0))
    assert (item.state, item.attempts) == ("waiting", 0)
    assert (chunk.state, chunk.lease_owner) == ("running", next_one.owner)
    await next_one.save(new, Results(outcomes=[done(0)]))


async def test_a_renewed_lease_is_not_taken_over(db: Database, run: Run) -> None:
    clock = Clock()
    one, other = Chunks(db, lease_seconds=30, clock=clock), Chunks(db, lease_seconds=30, clock=clock)
    first, second = await one.claim(run.id), await one.claim(run.id)
    assert first is not None
    assert second is not None
    clock.pass_by(20)
    await one.renew(first)
    clock.pass_by(20)
    taken = await other.claim(run.id)
    assert taken is not None
    assert taken.number == second.number
    assert await other.claim(run.id) is None


async def test_counts_are_rewritten_with_each_result_and_always_add_up(db: Database, run: Run) -> None:
    chunks = Chunks(db, lease_seconds=30)
    lease = await chunks.claim(run.id)
    assert lease is not None
    failed = Outcome(1, "1", ItemState.FAILED, code="source_not_found", reason="x" * 1000)
    await chunks.save(lease, Results(outcomes=[done(0, reused=True), failed]))
    found = await counts(db, run.id)
    assert (found.total, found.completed, found.reused, found.failed, found.waiting) == (6, 1, 1, 1, 4)
    await chunks.save(lease, Results(outcomes=[done(2)]), done=True)
    with pytest.raises(LeaseLostError):
        await chunks.renew(lease)
    async with db.read() as session:
        chunk = await session.get_one(RunChunk, (run.id, lease.number))
    assert (chunk.state, chunk.completed, chunk.failed) == ("done", 2, 1)


async def test_results_say_whether_they_were_saved(db: Database, run: Run) -> None:
    clock = Clock()
    chunks = Chunks(db, lease_seconds=30, clock=clock)
    lease = await chunks.claim(run.id)
    assert lease is not None
    kept, cut_short, late = (Results(tries=[at]) for at in range(3))
    await chunks.save(lease, kept)
    saving = asyncio.create_task(chunks.save(lease, cut_short))
    await asyncio.sleep(0)
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    clock.pass_by(31)
    await Chunks(db, lease_seconds=30, clock=clock).claim(run.id)
    with pytest.raises(LeaseLostError):
        await chunks.save(lease, late)
    async with db.read() as session:
        attempts = list(await session.scalars(select(RunItem.attempts).order_by(RunItem.position)))
    assert attempts[:3] == [kept.saved, cut_short.saved, late.saved] == [1, cut_short.saved, 0]


async def test_a_chunk_ended_with_items_left_is_not_done(db: Database, run: Run) -> None:
    chunks = Chunks(db, lease_seconds=30)
    lease = await chunks.claim(run.id)
    assert lease is not None
    await chunks.save(lease, Results(outcomes=[done(0)]), done=True)
    async with db.read() as session:
        assert (await session.get_one(RunChunk, (run.id, 0))).state == "waiting"


async def test_attempts_are_committed_and_progress_makes_a_chunk_young_again(db: Database, run: Run) -> None:
    chunks = Chunks(db, lease_seconds=30)
    for _ in range(3):
        lease = await chunks.claim(run.id)
        assert lease is not None
        await chunks.release(lease)
    lease = await chunks.claim(run.id)
    assert lease is not None
    assert lease.attempts == 3 * FAILED_TAKING + 1
    await chunks.save(lease, Results(tries=[0, 1]))
    async with db.read() as session:
        attempts = list(await session.scalars(select(RunItem.attempts).order_by(RunItem.position)))
        assert (await session.get_one(RunChunk, (run.id, 0))).attempts == lease.attempts
    assert attempts == [1, 1, 0, 0, 0, 0]
    await chunks.save(lease, Results(outcomes=[done(0)]))
    async with db.read() as session:
        assert (await session.get_one(RunChunk, (run.id, 0))).attempts == 0


async def test_a_taking_that_ended_with_its_worker_counts_less(db: Database, run: Run) -> None:
    chunks = Chunks(db, lease_seconds=30)
    for deaths in range(5):
        lease = await chunks.claim(run.id)
        assert lease is not None
        assert (lease.number, lease.attempts) == (0, deaths + 1)
        await chunks.release_all_of(chunks.owner.rpartition(":")[0])


async def test_a_cancelled_run_refuses_its_workers(db: Database, run: Run) -> None:
    chunks = Chunks(db, lease_seconds=30)
    lease = await chunks.claim(run.id)
    assert lease is not None
    await cancel_run(db, OWNER, run.id)
    with pytest.raises(LeaseLostError):
        await chunks.save(lease, Results(outcomes=[done(0)]))
    assert await chunks.claim(run.id) is None
    assert (await counts(db, run.id)).completed == 0


async def test_what_a_dead_process_held_is_free_at_once(db: Database, run: Run) -> None:
    chunks = Chunks(db, lease_seconds=30)
    lease = await chunks.claim(run.id)
    assert lease is not None
    assert await chunks.release_all_of("another-host:1") == 0
    assert await chunks.release_all_of(chunks.owner.rpartition(":")[0]) == 1
    again = await Chunks(db, lease_seconds=30).claim(run.id)
    assert again is not None
    assert again.number == lease.number
    with pytest.raises(LeaseLostError):
        await chunks.renew(lease)


async def test_of_two_publishers_one_has_the_run(db: Database, run: Run) -> None:
    clock = Clock()
    one, other = RunLeases(db, lease_seconds=30, clock=clock), RunLeases(db, lease_seconds=30, clock=clock)
    assert await one.claim_publish(run.id) is None, "chunks are not done"
    chunks = Chunks(db, lease_seconds=30)
    while (lease := await chunks.claim(run.id)) is not None:
        await chunks.save(
            lease, Results(outcomes=[done(at) for at in range(lease.first, lease.first + 3)]), done=True
        )
    taken = await asyncio.gather(one.claim_publish(run.id), other.claim_publish(run.id))
    assert sorted(lease is None for lease in taken) == [False, True]
    (late,) = [lease for lease in taken if lease]
    clock.pass_by(31)
    new = await other.claim_publish(run.id)
    assert new is not None
    with pytest.raises(LeaseLostError):
        await one.change(late, state="completed")
    await other.change(new, state="completed")
