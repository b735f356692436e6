"""Fixtures of everything that works on rows: quick logs, and a fresh migrated database for each test.

Databases are migrated once for all tests of a process and copied: a migration takes longer than most tests.
"""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

import pytest
import structlog

from models.db import Database
from models.migrations import upgrade
from tests.support.postgres import cluster, skip_if_unwanted

if TYPE_CHECKING:
    from collections.abc import Iterator
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


def _migrate(url: str) -> None:
    async def make() -> None:
        db = Database(url)
        await upgrade(db)
        await db.close()

    asyncio.run(make())


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "igen.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def migrated_postgresql() -> str:
    skip_if_unwanted()
    url = cluster().create_database()
    _migrate(url)
    return url


@pytest.fixture
def database(tmp_path: Path, migrated_sqlite: Path) -> str:
    """A fresh database. Modules that must hold on both kinds override this with `either_database`."""
    shutil.copy(migrated_sqlite, tmp_path / "igen.db")
    return f"sqlite:///{tmp_path}/igen.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def either_database(request: pytest.FixtureRequest, tmp_path: Path, migrated_sqlite: Path) -> Iterator[str]:
    """A fresh database on SQLite, then on PostgreSQL."""
    if request.param == "sqlite":
        shutil.copy(migrated_sqlite, tmp_path / "test.db")
        yield f"sqlite:///{tmp_path}/test.db"
        return
    url = cluster().create_database(like=request.getfixturevalue("migrated_postgresql"))
    yield url
    cluster().drop_database(url)
