"""What a RunPod serverless worker has to stand: cold start, five jobs, a cancel, a result too large, SIGTERM.

The same trial for the image's command on the checkout (tests/deploy/test_image_worker.py) and in a root that
tests/deploy/run_steps.py built. The worker is to be started with `VARIABLES`.
"""

from __future__ import annotations

import asyncio
import base64
import io
import time
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from tests.support.runpod_platform import RunpodPlatform

JOBS = 5
RESULT_BYTES = 30_000
"""More than twice a result of one picture, half of one of eight."""
VARIABLES = {
    "IGEN_MAX_BATCH": "2",
    "IGEN_WORKER_RESULT_MB": str(RESULT_BYTES / 1e6),
    "IGEN_WORKER_PROGRESS_S": "0.1",
    "IGEN_THREADS": "1",
}
WANTED = {"prompt": "a red circle on a white background", "num_inference_steps": 4}
MOST_IMAGES = 8
COLD_S, JOB_S = 300, 120


class Started(Protocol):
    """A worker's process."""

    def terminate(self) -> object:
        """SIGTERM, as RunPod sends it when it scales down."""

    async def wait(self) -> int:
        """Its exit code."""


async def try_worker(
    platform: RunpodPlatform, start: Callable[[], AbstractAsyncContextManager[Started]]
) -> dict[str, float]:
    """Start it and put it through everything; the seconds from its start to the fifth result."""
    for number in range(JOBS):
        platform.offer(f"job-{number}", {**WANTED, "seed": number})
    begun = time.monotonic()
    async with start() as worker:
        ended = asyncio.create_task(worker.wait())
        five = asyncio.gather(*(platform.result(f"job-{number}", COLD_S) for number in range(JOBS)))
        first: list[asyncio.Future[Any]] = [five, ended]
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        assert not ended.done(), f"the worker ended with {ended.result()} before its first jobs were done"
        await five
        told = {"first_five_s": round(time.monotonic() - begun, 1)}
        _check_five(platform)
        await _cancel_one(platform)
        await _ask_too_much(platform)
        await _drain(platform, worker, ended)
    assert platform.refused == [], "RunPod would have dropped these results"
    assert not [ping for ping in platform.pings if ping.get("status") == "unhealthy"]
    return told


def picture_of(result: dict[str, Any]) -> Image.Image:
    """A result's first picture, decoded."""
    data = base64.b64decode(result["output"]["images"][0].partition(",")[2])
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        return picture.convert("RGB")


def _check_five(platform: RunpodPlatform) -> None:
    """None is lost, none comes twice, and each is its own."""
    results = [platform.results(f"job-{number}") for number in range(JOBS)]
    assert [len(each) for each in results] == [1] * JOBS
    pictures = [picture_of(result) for (result,) in results]
    assert {picture.size for picture in pictures} == {(128, 128)}
    assert len({picture.tobytes() for picture in pictures}) == JOBS
    assert [result["output"]["seed"] for (result,) in results] == list(range(JOBS))


async def _cancel_one(platform: RunpodPlatform) -> None:
    """The engine's two slots have enough to do for the next job to come to its turn only when they are let go."""
    platform.offer("cancelled", {**WANTED, "num_inference_steps": 150, "num_images": MOST_IMAGES})
    await _under_way(platform, "cancelled")
    platform.stop("cancelled")
    platform.offer("after", {**WANTED, "seed": 7})
    assert "output" in await platform.result("after", JOB_S)
    assert platform.results("cancelled") == []


async def _under_way(platform: RunpodPlatform, name: str) -> None:
    try:
        await platform.first_progress(name, JOB_S)
    except TimeoutError:
        raise AssertionError(f"{name}: no progress, but {platform.results(name)}") from None


async def _ask_too_much(platform: RunpodPlatform) -> None:
    platform.offer("large", {**WANTED, "num_images": MOST_IMAGES})
    error = (await platform.result("large", JOB_S))["error"]
    assert error.startswith("result_too_large: The result has "), error


async def _drain(platform: RunpodPlatform, worker: Started, ended: asyncio.Task[int]) -> None:
    """What was taken is sent back, what was not is left for another worker."""
    for name in ("first", "second"):
        platform.offer(name, {**WANTED, "num_inference_steps": 60})
        await _under_way(platform, name)
    worker.terminate()
    platform.offer("third", WANTED)
    for name in ("first", "second"):
        assert "output" in await platform.result(name, JOB_S)
    async with asyncio.timeout(JOB_S):
        assert await ended == 0
    assert [post for post in platform.posts if post.job_id == "third"] == []
