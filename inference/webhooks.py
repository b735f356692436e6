"""Webhook delivery: a job's answer is posted to its caller's address, three times at most, bounded in number."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from models.fetch import FetchBlockedError, FetchError
from models.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference.settings import InferenceSettings
    from models.fetch import SafeFetcher

log = get_logger(__name__)

TRIES = 3  # RunPod's: one and two retries
EXPECTED_STATUS = 200
ANSWER_BYTES = 1_000_000  # what the receiver answers is not used


class Webhooks:
    """Delivers answers in the background. A delivery that waits for its retry holds no connection."""

    def __init__(
        self,
        fetcher: SafeFetcher,
        settings: InferenceSettings,
        on_end: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Take collaborators; `on_end` hears `delivered`, `failed`, `blocked` or `dropped` for each webhook."""
        self._fetcher = fetcher
        self._room = asyncio.Semaphore(settings.webhook_concurrency)
        self._queue = settings.webhook_queue
        self._retry_s = settings.webhook_retry_s
        self._timeout_s = settings.webhook_timeout_s
        self._on_end = on_end
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def pending(self) -> int:
        """Deliveries not over yet."""
        return len(self._tasks)

    def send(self, job_id: str, url: str, body: Callable[[], bytes], on_delivered: Callable[[], None]) -> None:
        """Deliver JSON in the background; dropped with a word in the log when too many wait already.

        `body` is called at each try, so that what waits for its turn holds no copy of a result.
        """
        if len(self._tasks) >= self._queue:
            log.warning("webhook_dropped", job_id=job_id, waiting=len(self._tasks))
            self._on_end("dropped")
            return
        task = asyncio.create_task(self._deliver(job_id, url, body, on_delivered))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give up what is pending, and say which."""
        if self._tasks:
            log.warning("webhooks_lost", count=len(self._tasks))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _deliver(
        self, job_id: str, url: str, body: Callable[[], bytes], on_delivered: Callable[[], None]
    ) -> None:
        for attempt in range(1, TRIES + 1):
            if attempt > 1:
                await asyncio.sleep(self._retry_s)
            outcome = await self._try(url, body)
            if outcome == "delivered":
                log.info("webhook_delivered", job_id=job_id, attempt=attempt)
                self._on_end("delivered")
                on_delivered()
                return
            log.warning("webhook_attempt_failed", job_id=job_id, attempt=attempt, reason=outcome)
            if outcome == FetchBlockedError.code:  # it will not become public
                self._on_end("blocked")
                return
        self._on_end("failed")

    async def _try(self, url: str, body: Callable[[], bytes]) -> str:
        """`delivered`, or why not."""
        headers = {"Content-Type": "application/json"}
        async with self._room:
            try:
                answer = await self._fetcher.request(
                    "POST",
                    url,
                    headers=headers,
                    body=body(),
                    total_timeout_s=self._timeout_s,
                    max_wire_bytes=ANSWER_BYTES,
                    max_decoded_bytes=ANSWER_BYTES,
                )
            except FetchError as problem:
                return problem.code
        return "delivered" if answer.status == EXPECTED_STATUS else f"status {answer.status}"
