"""A stand-in for a generation backend: a real HTTP server that speaks `models.wire` and fails when told to."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import struct
import zlib
from collections import Counter, deque
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = "backend-key-that-must-never-leak"


class Fault(Enum):
    """What happens to one request instead of its answer."""

    ERROR_500 = auto()
    FULL_429 = auto()
    LOADING_503 = auto()
    INVALID_422 = auto()
    DROP_BEFORE = auto()
    """The connection breaks before the job is taken."""
    DROP_AFTER = auto()
    """The job is taken, then the connection breaks."""
    HANG = auto()
    GARBAGE = auto()
    NOT_AN_ANSWER = auto()
    REDIRECT = auto()


@dataclass
class Job:
    id: str
    input: dict[str, Any]
    headers: dict[str, str]
    policy: dict[str, Any]
    status: str = "IN_QUEUE"
    output: Any = None
    error: str | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def answer(self) -> dict[str, Any]:
        body = {"id": self.id, "status": self.status, "output": self.output, "error": self.error, "workerId": "fake"}
        return {name: value for name, value in body.items() if value is not None}


class FakeBackend:
    """`runpod=False`: our own server's rules (the Idempotency-Key is the job's id); `True`: RunPod's (it is not)."""

    def __init__(self, *, runpod: bool = False) -> None:
        self.runpod = runpod
        self.key = KEY
        self.seconds = 0.0
        self.jobs: dict[str, Job] = {}
        self.submissions: list[str] = []
        self.drawn: Counter[str] = Counter()
        self.cancelled: list[str] = []
        self.submit_faults: deque[Fault] = deque()
        self.status_faults: deque[Fault] = deque()
        self.fail_with: str | None = None
        self.end_as: str | None = None
        self.retry_after: str | None = "7"
        self.change_output: Callable[[dict[str, Any]], Any] = lambda output: output
        self.port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v2/igen"

    async def start(self) -> None:
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/v2/igen/run", self._run)
        app.router.add_post("/v2/igen/runsync", self._runsync)
        app.router.add_get("/v2/igen/status/{id}", self._status)
        app.router.add_post("/v2/igen/cancel/{id}", self._cancel)
        app.router.add_get("/v2/igen/health", self._health)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def kill(self) -> None:
        """As kill -9: every connection breaks, every job is forgotten, nothing listens any more."""
        if self._runner is None:
            return
        for job in self.jobs.values():
            if job.task is not None:
                job.task.cancel()
        self.jobs.clear()
        assert self._runner.server is not None
        for connection in self._runner.server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        await self._runner.cleanup()
        self._runner = None

    stop = kill

    def _authorise(self, request: web.Request) -> None:
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            raise web.HTTPUnauthorized(text='{"error": "unauthorized"}')

    async def _fail(self, request: web.Request, fault: Fault) -> web.StreamResponse:
        if fault in (Fault.DROP_BEFORE, Fault.DROP_AFTER):
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fault is Fault.HANG:
            await asyncio.sleep(60)
        if fault is Fault.INVALID_422:
            error = {"code": "invalid_input", "details": [{"field": "input.width", "reason": "at most 1024 here"}]}
            return web.json_response({"status": "error", "error": error}, status=422)
        if fault is Fault.REDIRECT:
            raise web.HTTPFound("http://127.0.0.1:1/elsewhere")
        if fault in (Fault.GARBAGE, Fault.NOT_AN_ANSWER):
            return web.Response(text="<html>" if fault is Fault.GARBAGE else '{"hello": [1]}')
        status = {Fault.ERROR_500: 500, Fault.FULL_429: 429, Fault.LOADING_503: 503}[fault]
        headers = {} if self.retry_after is None or status == 500 else {"Retry-After": self.retry_after}
        if fault is Fault.LOADING_503:
            return web.json_response({"error": {"code": "loading"}}, status=status, headers=headers)
        return web.Response(status=status, headers=headers, text="Traceback (most recent call last): secret")

    async def _take(self, request: web.Request) -> Job:
        body = await request.json()
        job_id = f"rp-{len(self.submissions)}" if self.runpod else request.headers["Idempotency-Key"]
        self.submissions.append(job_id)
        if job_id not in self.jobs:
            job = Job(job_id, body["input"], dict(request.headers), body.get("policy", {}))
            self.jobs[job_id] = job
            job.task = asyncio.create_task(self._draw(job))
        return self.jobs[job_id]

    async def _draw(self, job: Job) -> None:
        self.drawn[job.id] += 1
        job.status = "IN_PROGRESS"
        job.output = {"progress": {"step": 1, "steps": 4, "eta_s": 1.0, "queue_position": 0, "preview_seq": 0}}
        await asyncio.sleep(self.seconds)
        job.output = None
        if self.fail_with is not None:
            job.status, job.error = "FAILED", self.fail_with
        elif self.end_as is not None:
            job.status = self.end_as
        else:
            job.status, job.output = "COMPLETED", self.change_output(output_of(job.input))
        job.done.set()

    async def _run(self, request: web.Request) -> web.StreamResponse:
        self._authorise(request)
        fault = self.submit_faults.popleft() if self.submit_faults else None
        if fault is not None and fault is not Fault.DROP_AFTER:
            return await self._fail(request, fault)
        job = await self._take(request)
        if fault is Fault.DROP_AFTER:
            return await self._fail(request, fault)
        return web.json_response({"id": job.id, "status": "IN_QUEUE"})

    async def _runsync(self, request: web.Request) -> web.StreamResponse:
        self._authorise(request)
        fault = self.submit_faults.popleft() if self.submit_faults else None
        if fault is not None and fault is not Fault.DROP_AFTER:
            return await self._fail(request, fault)
        job = await self._take(request)
        if fault is Fault.DROP_AFTER:
            return await self._fail(request, fault)
        return await self._wait(request, job)

    async def _status(self, request: web.Request) -> web.StreamResponse:
        self._authorise(request)
        if self.status_faults:
            return await self._fail(request, self.status_faults.popleft())
        job = self.jobs.get(request.match_info["id"])
        if job is None:
            raise web.HTTPNotFound(text='{"error": "unknown job"}')
        return await self._wait(request, job)

    async def _wait(self, request: web.Request, job: Job) -> web.StreamResponse:
        wait_ms = 0 if self.runpod else int(request.query.get("wait", "0"))
        if wait_ms:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(job.done.wait(), wait_ms / 1000)
        return web.json_response(job.answer())

    async def _cancel(self, request: web.Request) -> web.StreamResponse:
        self._authorise(request)
        job_id = request.match_info["id"]
        self.cancelled.append(job_id)
        job = self.jobs.get(job_id)
        if job is not None and job.task is not None:
            job.task.cancel()
            job.status = "CANCELLED"
            job.done.set()
        return web.json_response({"id": job_id, "status": "CANCELLED"})

    async def _health(self, request: web.Request) -> web.StreamResponse:
        self._authorise(request)
        return web.json_response({"jobs": {"inQueue": 0}, "workers": {"idle": 1}})


def output_of(job_input: dict[str, Any]) -> dict[str, Any]:
    """A JobOutput with real PNGs whose colour is their seed."""
    width, height = job_input.get("width", 64), job_input.get("height", 64)
    seeds = [(job_input["seed"] + index) % 2**32 for index in range(job_input.get("num_images", 1))]
    images = [data_uri(png(width, height, seed)) for seed in seeds]
    return {
        "images": images,
        "image_url": images[0],
        "seed": seeds[0],
        "seeds": seeds,
        "width": width,
        "height": height,
        "demonstration": True,
        "ignored": [],
        "receipt": {"checkpoint": "fake", "seeds": seeds, "prompt": job_input["prompt"]},
        "timings": {"queue_s": 0.0, "run_s": 0.1},
    }


def data_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def png(width: int, height: int, seed: int = 0) -> bytes:
    """A real PNG of one colour."""
    row = b"\0" + struct.pack(">I", seed)[1:] * width
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(row * height)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(name, data) for name, data in chunks)


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
