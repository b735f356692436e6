from __future__ import annotations

import asyncio
import multiprocessing
from typing import TYPE_CHECKING, Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text

from models.db import Database
from models.migrations import SchemaError, check_schema, downgrade, upgrade
from models.tables import Base

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    await database.close()


async def inside(db: Database, function: Any) -> Any:
    async with db.writer.connect() as connection:
        return await connection.run_sync(function)


async def test_upgrade_gives_exactly_the_tables_of_the_models(db: Database) -> None:
    await upgrade(db)
    difference = await inside(
        db,
        lambda connection: compare_metadata(
            MigrationContext.configure(connection, opts={"compare_type": True}), Base.metadata
        ),
    )
    assert difference == []


@pytest.mark.parametrize("table", ["frames", "runs"])
async def test_the_number_of_a_deleted_row_never_comes_again(db: Database, table: str) -> None:
    await upgrade(db)
    if not db.is_sqlite:
        return  # PostgreSQL's sequences only go up
    made = await inside(
        db,
        lambda connection: connection.scalar(text(f"SELECT sql FROM sqlite_master WHERE name = '{table}'")),
    )
    assert "INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT" in made


async def test_up_down_up_leaves_nothing_behind(db: Database) -> None:
    await upgrade(db)
    await downgrade(db)
    assert await inside(db, lambda connection: inspect(connection).get_table_names()) == ["alembic_version"]
    await upgrade(db)
    tables = await inside(db, lambda connection: inspect(connection).get_table_names())
    assert set(tables) == {*Base.metadata.tables, "alembic_version"}


def migrate(url: str) -> None:
    async def work() -> None:
        database = Database(url)
        await upgrade(database)
        await database.close()

    asyncio.run(work())


async def test_two_processes_may_migrate_at_once(db: Database, database_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=migrate, args=(database_url,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        await asyncio.to_thread(worker.join, 60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    await check_schema(db)


async def test_check_schema_names_the_command_that_helps(db: Database) -> None:
    with pytest.raises(SchemaError, match="has no tables yet: run `python -m gateway migrate`"):
        await check_schema(db)
    await upgrade(db)
    await check_schema(db)


async def test_every_resource_has_an_owner() -> None:
    for name in ("api_keys", "generations", "pictures", "request_log"):
        assert "owner_id" in Base.metadata.tables[name].columns
