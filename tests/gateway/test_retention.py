from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select, update

from gateway.retention import REPLIES_KEPT, Retention
from models.db import Database, utc_now
from models.store import ObjectStore, StoreError, open_store
from models.tables import Frame, Output, Reply, Run, RunChunk, RunItem, Source
from tests.support.s3 import ACCESS_ID, ACCESS_SECRET, S3Server
from tests.support.seeded_frame import OWNER, seed_frame, seed_open_run
from tests.support.seeded_run import seed_run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

LONG_AGO = utc_now() - timedelta(days=100)


@pytest.fixture
async def db(either_database: str) -> AsyncIterator[Database]:
    database = Database(either_database)
    yield database
    await database.close()


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path}/store")


async def still_ours() -> bool:
    return True


def retention(db: Database, store: ObjectStore, keep_runs: int = 2, keep_days: float = 30) -> Retention:
    return Retention(db, store, keep_runs=keep_runs, keep_days=keep_days)


async def run_ids(db: Database) -> dict[str, set[int]]:
    columns = (Run.id, RunChunk.run_id, RunItem.run_id, Output.run_id)
    async with db.read() as session:
        return {str(column): set(await session.scalars(select(column).distinct())) for column in columns}


async def old_run(db: Database, store: ObjectStore, frame: Frame, completed: int = 3, **values: object) -> Run:
    return await seed_run(
        db,
        store,
        frame.id,
        completed,
        publish=b"<feed/>",
        finished_at=LONG_AGO,
        **values,  # type: ignore[arg-type]
    )


async def test_newest_young_and_published_runs_stay(db: Database, store: ObjectStore) -> None:
    frame, other = await seed_frame(db, store), await seed_frame(db, store, name="other")
    published = await old_run(db, store, frame)
    goes = [await old_run(db, store, frame, completed=5 + number) for number in range(2)]
    young = await seed_run(db, store, frame.id, finished_at=utc_now() - timedelta(days=29))
    newest = [await old_run(db, store, frame) for _ in range(2)]
    others = await old_run(db, store, other)
    async with db.write() as session:
        await session.execute(update(Frame).where(Frame.id == frame.id).values(published_run_id=published.id))
    await retention(db, store).sweep(still_ours)
    stays = {published.id, young.id, *(run.id for run in newest), others.id}
    assert await run_ids(db) == dict.fromkeys(await run_ids(db), stays)
    async with db.read() as session:
        wanted = set(await session.scalars(select(Output.object_key).distinct()))
    assert {key async for key in store.list("outputs")} == wanted
    folders = {int(key.split("/")[1]) async for key in store.list("runs")}
    assert folders.isdisjoint(run.id for run in goes)
    assert published.id in folders
    assert await store.exists(frame.picture_key)


async def test_it_is_the_same_on_s3(db: Database, s3_server: S3Server, tmp_path: Path) -> None:
    url = s3_server.store_url(prefix=tmp_path.name.replace("[", "-").replace("]", "-"))
    bucket = open_store(url, access_key_id=ACCESS_ID, secret_access_key=ACCESS_SECRET)
    await test_newest_young_and_published_runs_stay(db, bucket)


async def test_a_run_goes_when_its_frame_is_at_rest(db: Database, store: ObjectStore) -> None:
    frame = await seed_frame(db, store)
    old = await old_run(db, store, frame)
    await old_run(db, store, frame, completed=0)
    under_way = await seed_open_run(db, frame)
    await retention(db, store, keep_runs=1).sweep(still_ours)
    assert old.id in (await run_ids(db))["Run.id"]
    assert len([key async for key in store.list("outputs")]) == 3
    async with db.write() as session:
        ended = {"state": "completed", "finished_at": utc_now()}
        await session.execute(update(Run).where(Run.id == under_way.id).values(**ended))
    await retention(db, store, keep_runs=1).sweep(still_ours)
    assert [key async for key in store.list("outputs")] == []
    assert old.id not in set().union(*(await run_ids(db)).values())


async def test_one_that_breaks_off_is_taken_up_again(
    db: Database, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = await seed_frame(db, store)
    old = await old_run(db, store, frame, completed=50)
    await old_run(db, store, frame, completed=0)
    real, count = store.delete, 0

    async def sometimes(key: str) -> None:
        nonlocal count
        count += 1
        if count > 40:
            raise StoreError
        await real(key)

    with monkeypatch.context() as broken:
        broken.setattr(store, "delete", sometimes)
        with pytest.raises(StoreError):
            await retention(db, store, keep_runs=1).sweep(still_ours)
    async with db.read() as session:
        rows = select(func.count()).select_from(RunItem).where(RunItem.run_id == old.id)
        assert await session.scalar(rows) == 52
    await retention(db, store, keep_runs=1).sweep(still_ours)
    assert [key async for key in store.list("outputs")] == []
    assert old.id not in set().union(*(await run_ids(db)).values())


async def test_who_loses_the_lease_stops(db: Database, store: ObjectStore) -> None:
    frame = await seed_frame(db, store)
    for _ in range(4):
        await old_run(db, store, frame)
    asked = 0

    async def ours() -> bool:
        nonlocal asked
        asked += 1
        return asked < 2

    await retention(db, store, keep_runs=1).sweep(ours)
    async with db.read() as session:
        assert await session.scalar(select(func.count()).select_from(Run)) == 3


async def add_source(db: Database, store: ObjectStore, number: int, key: str, checked_days_ago: float) -> None:
    await store.put(key, b"picture", media_type="application/octet-stream")
    async with db.write() as session:
        session.add(
            Source(
                owner_id=OWNER,
                url_sha256=f"{number:064x}",
                url=f"http://shop.example/{number}.jpg",
                sha256="0" * 64,
                object_key=key,
                bytes=7,
                checked_at=utc_now() - timedelta(days=checked_days_ago),
            )
        )


async def sources(db: Database) -> set[int]:
    async with db.read() as session:
        return {int(text, 16) for text in await session.scalars(select(Source.url_sha256))}


async def test_sources_that_nothing_kept_uses_go(db: Database, store: ObjectStore) -> None:
    frame = await seed_frame(db, store)
    await seed_run(db, store, frame.id, completed=1)
    used, free, shared, young = (f"sources/{OWNER}/{name}.bin" for name in (f"{0:064x}", "free", "shared", "young"))
    for number, (key, days) in enumerate([(used, 99), (free, 99), (shared, 99), (shared, 1), (young, 1)]):
        await add_source(db, store, number, key, days)
    under_way = await seed_open_run(db, frame)
    await retention(db, store).sweep(still_ours)
    assert await sources(db) == {0, 1, 2, 3, 4}, "a run of the owner may be about to use them"
    async with db.write() as session:
        ended = {"state": "completed", "finished_at": utc_now()}
        await session.execute(update(Run).where(Run.id == under_way.id).values(**ended))
    await retention(db, store).sweep(still_ours)
    assert await sources(db) == {0, 3, 4}
    assert [await store.exists(key) for key in (used, free, shared, young)] == [True, False, True, True]


async def test_more_sources_than_are_looked_at_at_once(db: Database, store: ObjectStore) -> None:
    await seed_frame(db, store)
    for number in range(210):
        await add_source(db, store, number, f"sources/{OWNER}/{number}.bin", 99 if number % 10 == 0 else 1)
    await retention(db, store).sweep(still_ours)
    assert await sources(db) == {number for number in range(210) if number % 10}
    assert len([key async for key in store.list("sources")]) == 189


async def test_answers_are_forgotten_after_a_week(db: Database, store: ObjectStore) -> None:
    await seed_frame(db, store)
    async with db.write() as session:
        for key, age in (("old", REPLIES_KEPT + timedelta(hours=1)), ("new", REPLIES_KEPT - timedelta(hours=1))):
            session.add(
                Reply(
                    owner_id=OWNER,
                    idempotency_key=key,
                    request_hash="0" * 64,
                    status=201,
                    body={},
                    created_at=utc_now() - age,
                )
            )
    await retention(db, store).sweep(still_ours)
    async with db.read() as session:
        assert list(await session.scalars(select(Reply.idempotency_key))) == ["new"]
