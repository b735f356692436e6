"""Fixtures of everything that works on rows: quick logs, and a fresh migrated SQLite database for each test."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

import pytest
import structlog

from models.db import Database
from models.migrations import upgrade

if TYPE_CHECKING:
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
    """A fresh database. Modules that must hold on both kinds override this with `database_url`."""
    shutil.copy(migrated_sqlite, tmp_path / "igen.db")
    return f"sqlite:///{tmp_path}/igen.db"
