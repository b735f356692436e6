"""A real inference server with a fake engine behind it, on a free loopback port."""

from __future__ import annotations

import asyncio
import base64
import io
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import uvicorn
from PIL import Image

from inference.app import create_app
from inference.settings import InferenceSettings
from tests.support.fake_engine import FakeEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from inference.service import Service

KEY = "test-key"


@dataclass
class FakeClock:
    """Seconds that pass only when a test says so."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Rig:
    """A running server, its engine, and a client with the right key."""

    base: str
    engine: FakeEngine
    service: Service
    http: aiohttp.ClientSession
    clock: FakeClock
    fatal: list[bool] = field(default_factory=list)

    @property
    def queue(self) -> str:
        return f"{self.base}/v2/igen"

    async def call(self, method: str, path: str, **kwargs: Any) -> tuple[int, Any]:
        """Status and JSON of one call to `/v2/igen/...`."""
        async with self.http.request(method, self.queue + path, **kwargs) as answer:
            return answer.status, await answer.json() if answer.content_length else None

    async def run(self, prompt: str = "a red circle", *, headers: dict[str, str] | None = None, **fields: Any) -> Any:
        """Submit to `/run`; `fields` go into the input."""
        status, body = await self.call(
            "POST", "/run", json={"input": {"prompt": prompt, **fields}}, headers=headers or {}
        )
        assert status == 200, body
        return body

    async def until_known(self, job_id: str) -> None:
        """Wait until the server has accepted the job."""
        async with asyncio.timeout(10):
            while self.service.book.find(job_id) is None:
                await asyncio.sleep(0.005)

    async def until(self, job_id: str, *states: str, tries: int = 200) -> Any:
        """Poll until the job is in one of the states."""
        for _ in range(tries):
            status, body = await self.call("GET", f"/status/{job_id}")
            assert status == 200, body
            if body["status"] in states:
                return body
            await asyncio.sleep(0.02)
        raise AssertionError(f"job {job_id} never became {states}: {body}")


def free_socket() -> socket.socket:
    """A listening socket on a free loopback port; passed on, so that nobody takes the port in between."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener


def settings_for(home: Path, **changes: Any) -> InferenceSettings:
    """Settings for a test, independent of the environment."""
    return InferenceSettings(home=home, **changes)


@asynccontextmanager
async def running_server(
    settings: InferenceSettings,
    open_engine: Callable[[], Any],
    *,
    clock: Callable[[], float],
    fatal: list[bool],
) -> AsyncIterator[tuple[str, Service]]:
    """Serve the application over HTTP on this event loop."""
    app = create_app(settings, KEY, open_engine, on_fatal=lambda: fatal.append(True), clock=clock)
    listener = free_socket()
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve([listener]))
    try:
        async with asyncio.timeout(10):
            while not server.started:
                await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", app.state.service
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def open_rig(home: Path, engine: FakeEngine | None = None, **changes: Any) -> AsyncIterator[Rig]:
    """A ready server around `engine`; `changes` are settings."""
    engine = engine or FakeEngine()
    clock, fatal = FakeClock(), []
    settings = settings_for(home, drain_s=0.2, **changes)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with (
        running_server(settings, lambda: engine, clock=clock, fatal=fatal) as (base, service),
        aiohttp.ClientSession(headers=headers) as http,
    ):
        rig = Rig(base, engine, service, http, clock, fatal)
        async with asyncio.timeout(10):
            while service.dispatcher is None:
                await asyncio.sleep(0.005)
        try:
            yield rig
        finally:
            engine.release()


def picture_of(data_url: str) -> Image.Image:
    """Decode one entry of `images`; its kind must be what its head says."""
    head, _, payload = data_url.partition(",")
    picture = Image.open(io.BytesIO(base64.b64decode(payload, validate=True)))
    assert head == f"data:image/{str(picture.format).lower()};base64"
    return picture


def base64_of(picture: Image.Image, kind: str = "PNG", **options: Any) -> str:
    """A picture as a request may hold it."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return base64.b64encode(buffer.getvalue()).decode()
