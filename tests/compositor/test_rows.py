from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
from sqlalchemy import Table, select, update

from compositor.rows import changed, insert_many, upsert
from models.db import Database, utc_now
from models.tables import Source, User

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SOURCES = cast("Table", Source.__table__)
USERS = ("id", "name", "created_at")


@pytest.fixture
async def db(either_database: str) -> AsyncIterator[Database]:
    database = Database(either_database)
    yield database
    await database.close()


async def names(db: Database) -> list[str]:
    async with db.read() as session:
        return list(await session.scalars(select(User.name).order_by(User.id)))


async def test_many_rows_come_out_as_they_went_in(db: Database) -> None:
    odd = ["plain", "tab\tline\nreturn\rend", "back\\slash \\N \\.", "'quoted' \"twice\"", "Größe 東京 🙂", "", " "]
    async with db.write() as session:
        await insert_many(
            session, "users", USERS, [(f"u{number}", name, "2026-11-01 12:00:00") for number, name in enumerate(odd)]
        )
    assert await names(db) == odd


async def test_rows_of_a_transaction_that_fails_are_gone(db: Database) -> None:
    async def fails() -> None:
        async with db.write() as session:
            await insert_many(session, "users", USERS, [("u", "x", "2026-11-01 12:00:00")])
            raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await fails()
    assert await names(db) == []


async def test_no_rows_are_no_rows(db: Database) -> None:
    async with db.write() as session:
        await insert_many(session, "users", USERS, [])
    await db.write_at_once(lambda connection: upsert(connection, SOURCES, []))
    assert await names(db) == []


async def test_an_upsert_overwrites_what_has_its_key_and_leaves_the_rest(db: Database) -> None:
    now = utc_now()
    fixed = {"url": "https://x.test/1", "sha256": "1", "object_key": "k", "checked_at": now}
    rows = [{"owner_id": "u", "url_sha256": key * 64, "bytes": 1, **fixed} for key in "ab"]
    async with db.write() as session:
        session.add(User(id="u", name="x", created_at=now))
    await db.write_at_once(lambda connection: upsert(connection, SOURCES, rows))
    await db.write_at_once(lambda connection: upsert(connection, SOURCES, [{**rows[0], "bytes": 2}]))
    async with db.read() as session:
        query = select(Source.bytes).order_by(Source.url_sha256)
        assert list(await session.scalars(query)) == [2, 1]


async def test_changed_counts_the_rows_of_a_statement(db: Database) -> None:
    async with db.write() as session:
        session.add_all(User(id=name, name=name, created_at=utc_now()) for name in "ab")
        await session.flush()
        assert changed(await session.execute(update(User).values(disabled_at=utc_now()))) == 2
        assert changed(await session.execute(update(User).where(User.name == "c").values(name="z"))) == 0
