"""Requests on their way, many at a time: send under the kept key, wait as told, fetch, write whole, settle."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any

from scripts.calling.folder import disk_words, write_whole
from scripts.calling.gateway import Reply, UnreachableError
from scripts.calling.working import work_together
from scripts.generating.manifest import Ended

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from scripts.calling.gateway import Gateway
    from scripts.generating.manifest import Job, Manifest

OK, BAD_REQUEST, UNAUTHORIZED, FORBIDDEN, NOT_FOUND, NOT_ALLOWED = 200, 400, 401, 403, 404, 405
SERVER_FAULTS = 500
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
MOST_PICTURE_BYTES = 256 * 1024**2
SLUG_CHARS = 40
SUFFIXES = ("png", "jpg", "jpeg", "webp")
MAGIC = {"png": b"\x89PNG\r\n\x1a\n", "jpg": b"\xff\xd8\xff", "jpeg": b"\xff\xd8\xff", "webp": b"RIFF"}
ENDS_EVERYTHING = ("backend_auth",)
"""Failures that every further request would meet too."""


class GatewayRefusedError(Exception):
    """The gateway does not answer, or answers nobody with this key: no request can go on."""


class DiskError(Exception):
    """Pictures cannot be written here."""


class Patience:
    """How long everything waits together: until the moment that an answer named, and no longer than `limit_s`
    without any progress.
    """

    def __init__(self, limit_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s = limit_s
        self._clock = clock
        self._until = 0.0
        self._progress_at = clock()

    def progressed(self) -> None:
        """A request ended."""
        self._progress_at = self._clock()

    def spent(self) -> bool:
        """Whether nothing has moved for too long."""
        return self._clock() - self._progress_at >= self._limit_s

    def hold(self, seconds: float) -> None:
        """Nobody sends anything for so long."""
        self._until = max(self._until, self._clock() + seconds)

    async def wait(self) -> None:
        """Until sending is welcome again."""
        while (left := self._until - self._clock()) > 0:  # noqa: ASYNC110 - the moment may move while it waits
            await asyncio.sleep(left)


class Drawing:
    """Takes requests from the manifest and settles each."""

    def __init__(
        self,
        gateway: Gateway,
        manifest: Manifest,
        folder: Path,
        patience: Patience,
        *,
        settled: Callable[[Ended], None],
        waiting: Callable[[str], None],
    ) -> None:
        self._gateway = gateway
        self._manifest = manifest
        self._folder = folder
        self._patience = patience
        self._settled = settled
        self._waiting = waiting

    async def run(self, at_once: int) -> None:
        """Settle every open request, `at_once` of them at a time.

        Raises:
            GatewayRefusedError, DiskError: nothing more can be done; requests under way stay open.

        """
        jobs = self._manifest.open_jobs()
        await work_together(at_once, lambda: self._work(jobs))

    async def _work(self, jobs: Iterator[Job]) -> None:
        for job in jobs:  # shared by all tasks; each takes the next
            ended = await self._draw(job)
            self._manifest.settle(ended)
            self._patience.progressed()
            self._settled(ended)
            if ended.code in ENDS_EVERYTHING:
                raise GatewayRefusedError(f"{ended.reason} ({ended.code})")

    async def _draw(self, job: Job) -> Ended:
        self._manifest.mark_sent(job.number)
        reply = await self._insist(lambda: self._send(job))
        self._refuse_nonsense(reply)
        told = reply.body if isinstance(reply.body, dict) else {}
        generation = str(told.get("id") or "") or None
        if reply.status != OK:
            return Ended(job.number, generation, code=reply.code, reason=reply.reason)
        images = told.get("images")
        if not isinstance(images, list) or not images or generation is None:
            return Ended(job.number, generation, code="bad_answer", reason="the answer names no pictures")
        try:
            files = [await self._keep(job, image, index, len(images)) for index, image in enumerate(images)]
        except _PictureError as problem:
            return Ended(job.number, generation, code=problem.code, reason=problem.reason)
        seeds = tuple(image.get("seed") for image in images)
        return Ended(job.number, generation, files=tuple(files), seeds=seeds)

    def _refuse_nonsense(self, reply: Reply) -> None:
        """An answer that speaks of the address and not of this request: every other would get it too."""
        if reply.status != OK and (not reply.error or reply.status in (BAD_REQUEST, NOT_FOUND, NOT_ALLOWED)):
            raise GatewayRefusedError(f"--url: {self._gateway.access.url} is no gateway of IGen: {reply.reason}")

    async def _send(self, job: Job) -> Reply:
        headers = {"Idempotency-Key": job.key}
        return await self._gateway.request("POST", "/api/generate/", body=job.input, headers=headers)

    async def _keep(self, job: Job, image: dict[str, Any], index: int, count: int) -> str:
        """Fetch one picture and write it; its file's name."""
        path = self._gateway.path_of(str(image.get("url", "")))
        name = file_name(job, path, index, count)
        reply = await self._insist(lambda: self._fetch(path, image, name))
        if reply.status == NOT_FOUND:
            raise _PictureError("picture_gone", "the picture was drawn and has been deleted at the gateway since")
        if reply.status != OK:
            raise _PictureError(reply.code, f"the picture cannot be fetched: {reply.reason}")
        try:
            await asyncio.to_thread(write_whole, self._folder / name, reply.raw)
        except OSError as problem:
            raise DiskError(disk_words(problem, self._folder)) from None
        return name

    async def _fetch(self, path: str, image: dict[str, Any], name: str) -> Reply:
        reply = await self._gateway.request("GET", path, most_bytes=MOST_PICTURE_BYTES)
        size = image.get("bytes")
        if reply.status == OK and (
            not reply.raw.startswith(MAGIC[name.rpartition(".")[2]]) or (size is not None and len(reply.raw) != size)
        ):
            raise UnreachableError("the picture arrived damaged")
        return reply

    async def _insist(self, ask: Callable[[], Any]) -> Reply:
        """Ask until there is an answer that stays.

        Raises:
            GatewayRefusedError: none within the patience, or the key is refused.

        """
        pause = FIRST_PAUSE_S
        while True:
            await self._patience.wait()
            try:
                reply: Reply = await ask()
            except UnreachableError as problem:
                reason, wait_s = str(problem), pause
                together = False
            else:
                if reply.status in (UNAUTHORIZED, FORBIDDEN):
                    raise GatewayRefusedError(f"The gateway refuses the key: {reply.reason}")
                if not is_passing(reply):
                    return reply
                reason, wait_s = f"{reply.reason} ({reply.code})", reply.retry_after_s or pause
                together = reply.retry_after_s is not None
            if self._patience.spent():
                raise GatewayRefusedError(f"Nothing has moved for too long; the last word was: {reason}")
            self._waiting(reason)
            pause = min(2 * pause, LONGEST_PAUSE_S)
            if together:
                self._patience.hold(wait_s)
            else:
                await asyncio.sleep(wait_s)


class _PictureError(Exception):
    def __init__(self, code: str, reason: str) -> None:
        self.code = code
        self.reason = reason
        super().__init__(reason)


def is_passing(reply: Reply) -> bool:
    """Whether the same request, under the same key, may get another answer later.

    The gateway says so itself. An answer without its envelope is a proxy's; a fault without a generation's id was
    met before anything was saved, so that the key is still good.
    """
    if "retryable" in reply.error:
        faulty = reply.status >= SERVER_FAULTS and not reply.body.get("id") and "X-Generation-ID" not in reply.headers
        return bool(reply.error["retryable"]) or faulty
    return reply.status >= SERVER_FAULTS or reply.status in (408, 425, 429)


def file_name(job: Job, link: str, index: int, count: int) -> str:
    """`000012-a-red-circle.png`; `000012-a-red-circle-2.png` for the second of several."""
    suffix = link.rpartition(".")[2].lower()
    words = re.sub(r"[^a-z0-9]+", "-", str(job.input.get("prompt", "")).lower())[:SLUG_CHARS].strip("-")
    stem = f"{job.number:06d}" + (f"-{words}" if words else "")
    return f"{stem}{f'-{index + 1}' if count > 1 else ''}.{suffix if suffix in SUFFIXES else 'png'}"
