"""A real gateway on a real port, before a fake backend, over a fresh database."""

from __future__ import annotations

import asyncio
import io
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from sqlalchemy import select

from gateway.app import create_app
from gateway.firstkey import initialise
from gateway.keys import Keys
from gateway.server import GatewayServer
from gateway.settings import GatewaySettings
from models.db import Database
from models.tables import Generation, RequestLog
from tests.fakes_composer import FakeComposer
from tests.support.compositor_rig import RedisProcess
from tests.support.database import (  # noqa: F401 - fixtures
    database,
    either_database,
    migrated_postgresql,
    migrated_sqlite,
    plain_logs,
)
from tests.support.fake_backend import FakeBackend, png
from tests.support.inference_rig import KEY, Rig, open_rig

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.composer import Composer
    from gateway.services import Services

PROMPT = {"prompt": "A futuristic cityscape at sunset"}


@dataclass
class Reply:
    """An answer, read whole."""

    status: int
    headers: Any
    body: bytes
    json: Any

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])


class RunningGateway:
    """One gateway and a client of it."""

    def __init__(
        self, settings: GatewaySettings, key: str, http: aiohttp.ClientSession, composer: Composer | None = None
    ) -> None:
        self.settings = settings
        self.key = key
        self.http = http
        self.app = create_app(settings, composer=composer)
        self.server = GatewayServer(settings, self.app)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        self._task: asyncio.Task[None] | None = None

    @property
    def services(self) -> Services:
        return self.app.state.services

    async def start(self) -> None:
        # without uvicorn's signal handlers, which are the process's
        self._task = asyncio.create_task(self.server._serve([self.listening]))
        while not self.server.started:
            await asyncio.sleep(0.01)
            if self._task.done():
                await self._task

    async def stop(self) -> None:
        self.server.should_exit = True
        if self._task is not None:
            await self._task

    async def crash(self) -> None:
        """As near to kill -9 as one process comes: every task dies at once and nothing is written any more."""
        runner, db = self.services.runner, self.services.db
        db.write = _dead  # type: ignore[method-assign]
        db.read = _dead  # type: ignore[method-assign]
        await runner.stop()

    async def request(self, method: str, path: str, *, key: str | None = "", **options: Any) -> Reply:
        headers = {**options.pop("headers", {})}
        if key is not None:
            headers.setdefault("Authorization", f"Bearer {key or self.key}")
        async with self.http.request(
            method, self.url + path, headers=headers, allow_redirects=False, **options
        ) as answer:
            body = await answer.read()
            is_json = answer.content_type == "application/json" and body
            return Reply(answer.status, answer.headers, body, await answer.json() if is_json else None)

    async def generate(self, body: Any = None, *, idempotency_key: str | None = None, **options: Any) -> Reply:
        headers = {**options.pop("headers", {})}
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        headers["Content-Type"] = "application/json"
        data = io.BytesIO(json.dumps(PROMPT if body is None else body).encode())  # aiohttp warns of long bodies
        return await self.request("POST", "/api/generate/", data=data, headers=headers, **options)

    async def frame(self, name: str = "Autumn", *, key: str = "", **fields: Any) -> dict[str, Any]:
        """A new frame, by default with a picture of 200 by 100 pixels."""
        if "prompt" not in fields:
            fields.setdefault("picture", png(200, 100))
        reply = await self.request("POST", "/api/frames", key=key, data=form(name=name, **fields))
        assert reply.status == 201, reply.body
        told: dict[str, Any] = reply.json
        return told

    async def rows(self) -> list[Generation]:
        async with self.services.db.read() as session:
            return list(await session.scalars(select(Generation).order_by(Generation.id)))

    async def row(self) -> Generation:
        (row,) = await self.rows()
        return row

    async def log(self, count: int = 1) -> list[RequestLog]:
        """The request log, once it has `count` rows."""
        for _ in range(100):
            async with self.services.db.read() as session:
                found = list(await session.scalars(select(RequestLog).order_by(RequestLog.id)))
            if len(found) >= count:
                return found
            await asyncio.sleep(0.05)
        raise AssertionError(f"{len(found)} rows in the request log, not {count}")


def form(**parts: Any) -> aiohttp.FormData:
    """A multipart body: bytes are files, all else fields; what is no text is sent as JSON."""
    data = aiohttp.FormData(default_to_multipart=True)
    for name, value in parts.items():
        if isinstance(value, bytes):
            data.add_field(name, io.BytesIO(value), filename=f"{name}.bin", content_type="application/octet-stream")
        else:
            data.add_field(name, value if isinstance(value, str) else json.dumps(value))
    return data


class _dead:  # noqa: N801 - stands for a method
    async def __aenter__(self) -> None:
        raise asyncio.CancelledError

    async def __aexit__(self, *_: object) -> None:
        return None


async def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    """Wait for something that happens elsewhere; the condition may be a plain or an async call.

    `seconds` is when to give up on a busy machine, and no expectation.
    """
    async with asyncio.timeout(seconds):
        while True:
            found = condition()
            if isinstance(found, Awaitable):
                found = await found
            if found:
                return
            await asyncio.sleep(0.02)


@pytest.fixture
async def backend() -> AsyncIterator[FakeBackend]:
    fake = FakeBackend()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def key(database: str, tmp_path: Path) -> str:  # noqa: F811 - the fixture
    db = Database(database)
    path = await initialise(db, tmp_path)
    await db.close()
    return path.read_text().strip()


@pytest.fixture
async def other_key(database: str, key: str) -> str:  # noqa: F811 - the fixture
    """A key of another owner."""
    db = Database(database)
    keys = Keys(db)
    made = await keys.create(await keys.user("somebody else"), "other")
    await db.close()
    return made.text


StartGateway = Callable[..., Awaitable[RunningGateway]]


@pytest.fixture
async def start_gateway(database: str, key: str, backend: FakeBackend, tmp_path: Path) -> AsyncIterator[StartGateway]:  # noqa: F811 - the fixture
    """Starts gateways over the one database; keyword arguments override settings."""
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))

        async def start(*, composer: Composer | None = None, **settings: Any) -> RunningGateway:
            values = {
                "home": tmp_path,
                "database_url": database,
                "backend_url": backend.url,
                "backend_key": backend.key,
                "public_url": "http://pictures.example",
                "lease_seconds": 1,
                "drain_seconds": 1,
                **settings,
            }
            running = RunningGateway(GatewaySettings(**values), key, http, composer)
            await running.start()
            stack.push_async_callback(running.stop)
            return running

        yield start


@pytest.fixture
async def gateway(start_gateway: StartGateway) -> RunningGateway:
    return await start_gateway()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """A real inference server with a fake engine."""
    async with open_rig(tmp_path / "inference") as made:
        yield made


@pytest.fixture
async def drawing(start_gateway: StartGateway, rig: Rig) -> RunningGateway:
    """A gateway in front of it."""
    return await start_gateway(backend_url=rig.queue, backend_key=KEY)


@pytest.fixture
def composer() -> FakeComposer:
    return FakeComposer()


@pytest.fixture
async def framing(start_gateway: StartGateway, composer: FakeComposer) -> RunningGateway:
    """A gateway whose pictures are looked into by a fake."""
    return await start_gateway(composer=composer)


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisProcess]:
    """A real Redis, which ends with the test."""
    process = RedisProcess(tmp_path)
    await process.start()
    yield process
    process.close()


@pytest.fixture
async def queueing(start_gateway: StartGateway, composer: FakeComposer, redis: RedisProcess) -> RunningGateway:
    """A gateway with a Redis, for runs and progress."""
    return await start_gateway(composer=composer, redis_url=redis.url)
