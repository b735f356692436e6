from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, update

from gateway.orphans import Orphans
from models.db import Database, utc_now
from models.store import ObjectStore, content_key, open_store
from models.tables import Output, Run
from tests.support.s3 import ACCESS_ID, ACCESS_SECRET, S3Server
from tests.support.seeded_frame import OWNER, seed_frame, seed_open_run
from tests.support.seeded_run import seed_run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from models.tables import Frame


@pytest.fixture
async def db(either_database: str) -> AsyncIterator[Database]:
    database = Database(either_database)
    yield database
    await database.close()


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "local":
        return open_store(f"file://{tmp_path}/store")
    server: S3Server = request.getfixturevalue("s3_server")
    url = server.store_url(prefix=tmp_path.name.replace("[", "-").replace("]", "-"))
    return open_store(url, access_key_id=ACCESS_ID, secret_access_key=ACCESS_SECRET)


async def still_ours() -> bool:
    return True


class Later:
    """A clock two days ahead: all that lies there now is old."""

    def __call__(self) -> datetime:
        return utc_now() + timedelta(days=2)


ORPHANS = (
    content_key("d" * 64, ".png"),
    "feeds/nobodys",
    "runs/1/output-killed.xml",
    "runs/1/output-killed.xml.gz",
    "runs/999/feed-gone",
    "outputs/aa/bb/nobodys.jpg",
    f"sources/{OWNER}/aa/bb/nobodys.bin",
)
"""As a process leaves them that is killed after it stored and before it saved."""


async def seed(db: Database, store: ObjectStore) -> tuple[Frame, set[str]]:
    frame = await seed_frame(db, store)
    await seed_run(db, store, frame.id, publish=b"<feed/>")
    named = {key async for key in store.list()}
    for key in ORPHANS:
        await store.put(key, b"x", media_type="application/octet-stream")
    return frame, named


async def test_what_no_row_names_goes_once_it_is_old(db: Database, store: ObjectStore) -> None:
    _, named = await seed(db, store)
    assert await Orphans(db, store).sweep(still_ours) == 0
    assert {key async for key in store.list()} == named | set(ORPHANS), "somebody may be about to name them"
    assert await Orphans(db, store, clock=Later()).sweep(still_ours) == len(ORPHANS)
    assert {key async for key in store.list()} == named
    assert await Orphans(db, store, clock=Later()).sweep(still_ours) == 0


async def test_what_a_run_may_come_across_stays_until_it_has_ended(db: Database, store: ObjectStore) -> None:
    frame, named = await seed(db, store)
    run = await seed_open_run(db, frame)
    await Orphans(db, store, clock=Later()).sweep(still_ours)
    assert {key async for key in store.list()} == named | set(ORPHANS[-2:])
    async with db.write() as session:
        ended = {"state": "completed", "finished_at": utc_now()}
        await session.execute(update(Run).where(Run.id == run.id).values(**ended))
    await Orphans(db, store, clock=Later()).sweep(still_ours)
    assert {key async for key in store.list()} == named


async def test_one_that_is_named_between_the_two_looks_stays(
    db: Database, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await seed(db, store)
    orphans = Orphans(db, store, clock=Later())
    real = orphans._removal.old
    saved = False

    async def old(keys: list[str], before: datetime) -> list[str]:
        nonlocal saved
        found = await real(keys, before)
        if "outputs/aa/bb/nobodys.jpg" in found and not saved:
            saved = True
            async with db.write() as session:
                some = (await session.scalars(select(Output).limit(1))).one()
                session.expunge(some)
                await session.execute(
                    update(Output)
                    .where(Output.run_id == some.run_id, Output.position == some.position)
                    .values(object_key="outputs/aa/bb/nobodys.jpg")
                )
        return found

    monkeypatch.setattr(orphans._removal, "old", old)
    await orphans.sweep(still_ours)
    assert saved
    assert await store.exists("outputs/aa/bb/nobodys.jpg")


async def test_more_objects_than_are_looked_at_at_once(db: Database, tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store")
    for number in range(450):
        await store.put(f"outputs/aa/{number % 7}/{number}.jpg", b"x", media_type="image/jpeg")
    asked = 0

    async def ours() -> bool:
        nonlocal asked
        asked += 1
        return asked < 2

    assert await Orphans(db, store, clock=Later()).sweep(ours) == 400, "the lease was lost after two looks"
    assert await Orphans(db, store, clock=Later()).sweep(still_ours) == 50
