from __future__ import annotations

import asyncio
import multiprocessing
import sqlite3
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError

from models.db import Database, DatabaseError, async_url
from models.migrations import upgrade
from models.tables import ApiKey, User

if TYPE_CHECKING:
    from pathlib import Path

MOMENT = datetime(2026, 11, 21, 12, 30, tzinfo=timezone(timedelta(hours=2)))


async def add_user(db: Database, name: str) -> None:
    async with db.write() as session:
        session.add(User(id=f"usr_{name}", name=name, created_at=MOMENT))


async def names(db: Database) -> list[str]:
    async with db.read() as session:
        return list(await session.scalars(select(User.name).order_by(User.name)))


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("sqlite:///var/igen.db", "sqlite+aiosqlite"),
        ("sqlite+aiosqlite:////srv/igen.db", "sqlite+aiosqlite"),
        ("postgres://u:p@db/igen", "postgresql+psycopg"),
        ("postgresql://u:p@db/igen", "postgresql+psycopg"),
        ("postgresql+psycopg://u:p@db/igen", "postgresql+psycopg"),
    ],
)
def test_spellings_of_an_address(given: str, driver: str) -> None:
    assert async_url(given).drivername == driver


@pytest.mark.parametrize("given", ["sqlite://", "sqlite:///:memory:", "mysql://u:hunter2@db/x", "hunter2"])
def test_an_unusable_address_is_refused_without_repeating_it(given: str) -> None:
    with pytest.raises(ValueError, match=r"SQLite|supported|address") as problem:
        async_url(given)
    assert "hunter2" not in str(problem.value)


async def test_what_is_written_is_read_and_moments_come_back_in_utc(db: Database) -> None:
    await add_user(db, "ada")
    async with db.read() as session:
        user = await session.scalar(select(User))
    assert user is not None
    assert user.created_at == MOMENT
    assert user.created_at.tzinfo is UTC


async def test_a_moment_without_zone_is_refused(db: Database) -> None:
    with pytest.raises(Exception, match="needs a time zone"):
        async with db.write() as session:
            await session.execute(insert(User).values(id="u", name="n", created_at=datetime(2026, 1, 1)))  # noqa: DTZ001


async def test_an_exception_undoes_the_whole_write(db: Database) -> None:
    async def half() -> None:
        async with db.write() as session:
            session.add(User(id="usr_x", name="x", created_at=MOMENT))
            await session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await half()
    assert await names(db) == []


async def test_foreign_keys_hold_on_both(db: Database) -> None:
    with pytest.raises(IntegrityError):
        async with db.write() as session:
            session.add(ApiKey(id="k", owner_id="nobody", name="n", secret_sha256="0" * 64, created_at=MOMENT))


async def test_many_writers_of_one_process_all_succeed(db: Database) -> None:
    await asyncio.gather(*(add_user(db, f"n{number:03}") for number in range(60)))
    assert len(await names(db)) == 60


async def test_a_reader_sees_no_half_write_and_is_not_blocked_by_it(db: Database) -> None:
    async with db.write() as session:
        session.add(User(id="usr_x", name="x", created_at=MOMENT))
        await session.flush()
        assert await asyncio.wait_for(names(db), 2) == []
    assert await names(db) == ["x"]


async def test_a_cancelled_write_gives_its_connection_back(db: Database) -> None:
    async def stuck() -> None:
        async with db.write() as session:
            await session.execute(text("SELECT 1"))
            await asyncio.sleep(60)

    for _ in range(10):
        task = asyncio.create_task(stuck())
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await asyncio.wait_for(add_user(db, "after"), 5)


def read_then_write(url: str, rounds: int, failures: multiprocessing.Queue[int]) -> None:
    """The pattern that a plain BEGIN breaks: a snapshot is read, then an upgrade to a write is refused at once."""

    async def work() -> int:
        db = Database(url)
        failed = 0
        for _ in range(rounds):
            try:
                async with db.write() as session:
                    user = await session.scalar(select(User).with_for_update())
                    assert user is not None
                    user.name = str(int(user.name) + 1)
            except DatabaseError:
                failed += 1
        await db.close()
        return failed

    failures.put(asyncio.run(work()))


async def test_processes_that_read_then_write_lose_no_update(db: Database, database_url: str) -> None:
    await add_user(db, "0")
    context = multiprocessing.get_context("spawn")
    failures = context.Queue()
    workers = [context.Process(target=read_then_write, args=(database_url, 25, failures)) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert [await asyncio.to_thread(failures.get, timeout=60) for _ in workers] == [0, 0, 0]
    for worker in workers:
        worker.join()
    assert await names(db) == ["75"]


async def test_sqlite_runs_with_wal_full_sync_and_foreign_keys(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path}/deep/er/igen.db")
    for engine in (db.write, db.read):
        async with engine() as session:
            found = [
                await session.scalar(text(f"PRAGMA {name}"))
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            ]
        assert found == ["wal", 2, 1, 10_000]
    await db.close()


async def test_a_database_locked_by_another_process_is_503_with_retry_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.db.BUSY_TIMEOUT_MS", 200)
    path = tmp_path / "igen.db"
    db = Database(f"sqlite:///{path}")
    await upgrade(db)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    with pytest.raises(DatabaseError) as problem:
        await add_user(db, "x")
    assert time.monotonic() - began < 5
    assert problem.value.status == 503
    assert problem.value.headers == {"Retry-After": "2"}
    other.execute("ROLLBACK")
    other.close()
    await add_user(db, "x")
    await db.close()


async def test_an_unreachable_server_is_a_database_error() -> None:
    db = Database("postgresql://u:p@127.0.0.1:1/none")
    with pytest.raises(DatabaseError) as problem:
        await db.check()
    assert "127.0.0.1" not in problem.value.message
    await db.close()
