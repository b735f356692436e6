from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, update

from gateway.housekeeping import Housekeeper
from gateway.orphans import Orphans
from gateway.retention import Retention
from models.db import Database, utc_now
from models.store import ObjectStore, open_store
from models.tables import Lease, Run
from tests.support.seeded_frame import seed_frame
from tests.support.seeded_run import seed_run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def db(either_database: str) -> AsyncIterator[Database]:
    database = Database(either_database)
    yield database
    await database.close()


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path}/store")


def keeper(db: Database, store: ObjectStore) -> Housekeeper:
    return Housekeeper(db, Retention(db, store, keep_runs=1, keep_days=1), Orphans(db, store))


async def test_of_several_processes_one_does_each_chore_and_it_is_due_again_later(
    db: Database, store: ObjectStore
) -> None:
    keepers = [keeper(db, store) for _ in range(4)]
    done = await asyncio.gather(*(each.keep() for each in keepers))
    assert sorted(chore for each in done for chore in each) == ["orphans", "retention"]
    assert await keepers[0].keep() == []
    async with db.write() as session:
        hour_on = Lease.expires_at <= utc_now() + timedelta(hours=1)
        await session.execute(update(Lease).where(hour_on).values(expires_at=utc_now()))
    assert await keepers[3].keep() == ["retention"]


async def test_a_chore_that_broke_off_is_taken_over(
    db: Database, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = await seed_frame(db, store)
    for _ in range(2):
        await seed_run(db, store, frame.id)
    first = keeper(db, store)
    with monkeypatch.context() as broken:
        broken.setattr(store, "list", None)
        with pytest.raises(TypeError):
            await first.keep()
    other = keeper(db, store)
    assert await other.keep() == ["orphans"], "the lease of the broken-off one has not run out"
    async with db.write() as session:
        await session.execute(update(Lease).where(Lease.name == "retention").values(expires_at=utc_now()))
    assert await other.keep() == ["retention"]
    async with db.read() as session:
        assert len(list(await session.scalars(select(Run.id)))) == 1
