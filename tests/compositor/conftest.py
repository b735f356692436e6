"""A shop, a Redis and a database for the compositor's processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.compositor_rig import RedisProcess, Rig, Shop
from tests.support.database import (  # noqa: F401 - fixtures
    database,
    either_database,
    migrated_postgresql,
    migrated_sqlite,
    plain_logs,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


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
async def rig(tmp_path: Path, database: str, shop: Shop, redis: RedisProcess) -> AsyncIterator[Rig]:  # noqa: F811 - the fixture
    running = Rig(tmp_path, database, shop, redis)
    yield running
    await running.close()
