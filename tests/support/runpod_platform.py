"""A stand-in for RunPod's side of the worker wire: job-take, job-take-batch, job-stop, job-done, job-stream, ping.

It hands out jobs, keeps every post in the order of arrival, and can be slow or refuse. Real HTTP on a free port.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KEY = "worker-key"
WORKER_ID = "worker-1"


@dataclass(frozen=True)
class Post:
    """One body that the worker posted for a job. `answered` is when it was processed, in the platform's order."""

    job_id: str
    body: dict[str, Any]
    arrived: int
    handled: int

    @property
    def is_progress(self) -> bool:
        return self.body.get("status") == "IN_PROGRESS"


@dataclass
class RunpodPlatform:
    """What the platform knows. `progress_delay_s` makes it slow to take progress; `max_result_bytes` refuses more."""

    progress_delay_s: float = 0.0
    max_result_bytes: int = 20_000_000
    base: str = ""
    posts: list[Post] = field(default_factory=list)
    pings: list[dict[str, str]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    batch_sizes: list[int] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    _jobs: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    _stops: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _arrivals: int = 0
    _handled: int = 0

    # ---- what a test does

    def offer(self, job_id: str, job_input: object, **more: Any) -> None:
        """Put one job into the endpoint's queue."""
        self._jobs.put_nowait({"id": job_id, "input": job_input, **more})

    def stop(self, job_id: str) -> None:
        """Tell the worker to stop a job: a cancel or a timeout."""
        self._stops.put_nowait(job_id)

    def results(self, job_id: str) -> list[dict[str, Any]]:
        """Final bodies of a job; more than one would be a fault."""
        return [post.body for post in self.posts if post.job_id == job_id and not post.is_progress]

    def progress(self, job_id: str) -> list[Post]:
        """Progress updates of a job."""
        return [post for post in self.posts if post.job_id == job_id and post.is_progress]

    async def result(self, job_id: str, timeout_s: float = 30) -> dict[str, Any]:
        """Wait for a job's result."""
        async with asyncio.timeout(timeout_s):
            while not self.results(job_id):
                await self._next_post()
        return self.results(job_id)[0]

    async def first_progress(self, job_id: str, timeout_s: float = 30) -> Post:
        """Wait for a job's first progress update."""
        async with asyncio.timeout(timeout_s):
            while not self.progress(job_id):
                await self._next_post()
        return self.progress(job_id)[0]

    def environment(self) -> dict[str, str]:
        """What RunPod sets in a worker's container."""
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{self.base}/v2/ep/job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{self.base}/v2/ep/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{self.base}/v2/ep/job-stream/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_PING": f"{self.base}/v2/ep/ping/$RUNPOD_POD_ID?gpu=none",
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_POD_ID": WORKER_ID,
            "RUNPOD_AI_API_KEY": KEY,
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    # ---- the wire

    async def _take(self, request: web.Request) -> web.Response:
        self._note_key(request)
        job = await self._wait(self._jobs)
        return web.Response(status=204) if job is None else web.json_response(job)

    async def _take_batch(self, request: web.Request) -> web.Response:
        self._note_key(request)
        wanted = int(request.query["batch_size"])
        self.batch_sizes.append(wanted)
        first = await self._wait(self._jobs)
        if first is None:
            return web.Response(status=204)
        jobs = [first]
        while len(jobs) < wanted and not self._jobs.empty():
            jobs.append(self._jobs.get_nowait())
        return web.json_response(jobs)

    async def _stop(self, request: web.Request) -> web.Response:
        self._note_key(request)
        job_id = await self._wait(self._stops)
        return web.Response(status=204) if job_id is None else web.json_response({"jobsToStop": [job_id]})

    async def _done(self, request: web.Request) -> web.Response:
        self._note_key(request)
        assert request.match_info["worker"] == WORKER_ID
        job_id = request.match_info["job"]
        raw = await request.read()
        self._arrivals += 1
        arrived = self._arrivals
        if len(raw) > self.max_result_bytes:
            self.refused.append(job_id)
            return web.Response(status=400)
        body = json.loads(raw)
        if body.get("status") == "IN_PROGRESS":
            await asyncio.sleep(self.progress_delay_s)
        self._handled += 1
        self.posts.append(Post(job_id, body, arrived, self._handled))
        self._changed.set()
        return web.json_response({"ok": True})

    async def _ping(self, request: web.Request) -> web.Response:
        self._note_key(request)
        self.pings.append(dict(request.query))
        return web.json_response({})

    def _note_key(self, request: web.Request) -> None:
        self.keys.add(request.headers.get("Authorization"))

    async def _next_post(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    @staticmethod
    async def _wait(queue: asyncio.Queue[Any]) -> Any:
        """A long poll, shortened so that a worker told to stop ends quickly."""
        try:
            async with asyncio.timeout(1.0):
                return await queue.get()
        except TimeoutError:
            return None

    def application(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=200_000_000)
        app.router.add_get("/v2/ep/job-take/{worker}", self._take)
        app.router.add_get("/v2/ep/job-take-batch/{worker}", self._take_batch)
        app.router.add_get("/v2/ep/job-stop/{worker}", self._stop)
        app.router.add_post("/v2/ep/job-done/{worker}/{job}", self._done)
        app.router.add_post("/v2/ep/job-stream/{worker}/{job}", self._done)
        app.router.add_get("/v2/ep/ping/{worker}", self._ping)
        return app


@asynccontextmanager
async def running_platform(**options: Any) -> AsyncIterator[RunpodPlatform]:
    """A platform that listens on a free loopback port."""
    platform = RunpodPlatform(**options)
    runner = web.AppRunner(platform.application(), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    platform.base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield platform
    finally:
        await runner.cleanup()
