"""Progress and previews of the RunPod worker's jobs, sent so that none can land after the result."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from models.logs import get_logger

if TYPE_CHECKING:
    from inference.delivery import Preview
    from models.wire import Progress

log = get_logger(__name__)

PROGRESS_ANSWER_S = 15.0  # an update that RunPod has not taken by then is given up, and no more are sent
PREVIEW_MAX_CHARS = 500_000  # RunPod takes 1 MB at once


class Platform(Protocol):
    """Sends one progress update and returns when RunPod has answered."""

    async def update(self, job: dict[str, Any], output: dict[str, Any]) -> None:
        """Tell RunPod how a job stands."""


class SdkPlatform:
    """Sends updates with the SDK's own client, address and key.

    The SDK's `progress_update` starts a thread for each update and waits for none, so one may land after the result
    and leave the job IN_PROGRESS for ever. What it calls underneath can be awaited, and here it is.
    """

    async def update(self, job: dict[str, Any], output: dict[str, Any]) -> None:
        """Post one update; failures are logged by the SDK."""
        from runpod.http_client import AsyncClientSession  # noqa: PLC0415 - the package is optional
        from runpod.serverless.modules.rp_http import send_result  # noqa: PLC0415 - the package is optional

        async with AsyncClientSession() as session:
            await send_result(session, {"status": "IN_PROGRESS", "output": output}, job)


class ProgressReporter:
    """Observes one job and sends its newest progress, one update at a time, never more often than `every_s`."""

    def __init__(self, platform: Platform | None, job: dict[str, Any], every_s: float) -> None:
        """`platform` None: nobody to tell, as in a local test."""
        self._platform = platform
        self._job = job
        self._every_s = every_s
        self._newest: Progress | None = None
        self._preview: Preview | None = None
        self._sending: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()
        if platform is None:
            self._closed.set()

    def started(self) -> None:
        """The first update follows with the first step."""

    def progressed(self, progress: Progress) -> None:
        """Remember the newest; send it when its time has come."""
        self._newest = progress
        if self._sending is None and not self._closed.is_set():
            self._sending = asyncio.create_task(self._send_all())

    def previewed(self, preview: Preview) -> None:
        """Goes with the next progress; one that is too large for an update is left out."""
        self._preview = preview if len(preview.image) <= PREVIEW_MAX_CHARS else None

    def picture(self, index: int, seed: int, image: str) -> None:
        """Pictures travel with the result alone."""

    async def close(self) -> None:
        """Send nothing more, and wait until what is on its way has been answered."""
        self._closed.set()
        if self._sending is not None:
            await self._sending

    async def _send_all(self) -> None:
        """Send and pause until closed; being closed ends the pause at once."""
        while not self._closed.is_set():
            newest, self._newest = self._newest, None
            if newest is not None and not await self._send(newest):
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._closed.wait()

    async def _send(self, progress: Progress) -> bool:
        if self._platform is None:
            return False
        preview, self._preview = self._preview, None
        update: dict[str, Any] = {"progress": progress.model_dump(mode="json")}
        if preview is not None:
            update["preview"] = asdict(preview)
        try:
            async with asyncio.timeout(PROGRESS_ANSWER_S):
                await self._platform.update(self._job, update)
        except TimeoutError:
            log.warning("progress_given_up", job_id=self._job["id"])
            return False
        return True
