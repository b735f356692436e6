"""A shop, a Redis and a database for the compositor's processes."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

import pytest
import structlog

from models.db import Database
from models.migrations import upgrade
from tests.support.compositor_rig import RedisProcess, Rig, Shop
from tests.support.postgres import database_url  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture(scope="session", autouse=True)
def plain_logs() -> None:
    """structlog's own default draws coloured tracebacks with every local, which takes seconds."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    )


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "igen.db"

    async def make() -> None:
        db = Database(f"sqlite:///{path}")
        await upgrade(db)
        await db.close()

    asyncio.run(make())
    return path


@pytest.fixture
def database(tmp_path: Path, migrated_sqlite: Path) -> str:
    """A fresh SQLite database."""
    shutil.copy(migrated_sqlite, tmp_path / "igen.db")
    return f"sqlite:///{tmp_path}/igen.db"


@pytest.fixture
async def either_database(database_url: str) -> str:  # noqa: F811 - the fixture
    """A fresh database on SQLite, then on PostgreSQL."""
    db = Database(database_url)
    await upgrade(db)
    await db.close()
    return database_url


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisProcess]:
    server = RedisProcess(tmp_path)
    await server.start()
    yield server
    server.close()


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    async with Shop() as running:
        yield running


@pytest.fixture
async def rig(tmp_path: Path, database: str, shop: Shop, redis: RedisProcess) -> AsyncIterator[Rig]:
    running = Rig(tmp_path, database, shop, redis)
    yield running
    await running.close()
