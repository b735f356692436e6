from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from models.db import Database
from models.migrations import upgrade
from models.store import ObjectStore, open_store
from tests.support.postgres import database_url  # noqa: F401 - a fixture
from tests.support.s3 import ACCESS_ID, ACCESS_SECRET, S3Server
from tests.support.tls import certificate, server_tls  # noqa: F401 - fixtures

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:  # noqa: F811 - the fixture above
    """A database with its tables, on SQLite and on PostgreSQL."""
    database = Database(database_url)
    await upgrade(database)
    yield database
    await database.close()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "local":
        return open_store(f"file://{tmp_path}/pictures")
    server: S3Server = request.getfixturevalue("s3_server")
    url = server.store_url(prefix=tmp_path.name.replace("[", "-").replace("]", "-"))
    return open_store(url, access_key_id=ACCESS_ID, secret_access_key=ACCESS_SECRET)
