from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Never

import numpy as np
import pytest

from inference.engine.types import EngineError
from inference.errors import GenerationFailedError, QueueFullError, UploadFailedError
from inference.handler import PictureHandler
from inference.pictures import PictureEncoder
from inference.plan import Bounds
from models.errors import InvalidInputError
from models.wire import JobInput
from tests.support.fake_engine import FakeEngine, colour_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inference.handler import Drawing
    from models.wire import Progress

BOUNDS = Bounds(64, 1024, 1024 * 1024, 150, 16)


class RecordingObserver:
    def __init__(self) -> None:
        self.seen = []

    def started(self) -> None:
        self.seen.append("started")

    def progressed(self, progress: Progress) -> None:
        self.seen.append(progress)

    def picture(self, index: int, seed: int, image: str) -> None:
        self.seen.append(("picture", index, seed))


class SlowFirstDelivery:
    """The first picture is stored last."""

    async def deliver(self, job_id: str, index: int, png: bytes) -> str:
        await asyncio.sleep(0.1 if index == 0 else 0)
        return f"{job_id}/{index}"


class FailingDelivery:
    async def deliver(self, job_id: str, index: int, png: bytes) -> Never:
        raise UploadFailedError("the bucket is gone")


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    made = FakeEngine(max_waiting=8, failures={"broken": EngineError("it broke")})
    yield made
    made.close()


@pytest.fixture
def handler(engine: FakeEngine) -> Iterator[PictureHandler]:
    encoder = PictureEncoder()
    yield PictureHandler(engine, encoder, BOUNDS)
    encoder.close()


def submit(handler: PictureHandler, job_id: str = "j", **fields: Any) -> Drawing:
    return handler.submit(handler.plan(job_id, JobInput(**{"prompt": "x", **fields})))


async def test_events_become_progress_pictures_and_an_output(
    handler: PictureHandler, decode: Callable[[str], Any]
) -> None:
    observer = RecordingObserver()
    output = await handler.finish(submit(handler, seed=5, num_images=3), observer, handler.inline)
    assert observer.seen[0] == "started"
    assert {item for item in observer.seen if isinstance(item, tuple)} == {("picture", i, 5 + i) for i in range(3)}
    assert [decode(image).getpixel((0, 0)) for image in output.images] == [colour_of(5 + i) for i in range(3)]
    assert output.receipt.buckets == [1, 1, 1]
    assert set(output.timings) == {"queue_s", "run_s", "encode_s", "deliver_s", "total_s"}


async def test_pictures_keep_their_order_whoever_is_stored_first(handler: PictureHandler) -> None:
    output = await handler.finish(submit(handler, num_images=3), RecordingObserver(), SlowFirstDelivery())
    assert output.images == ["j/0", "j/1", "j/2"]


async def test_cancelling_the_task_stops_the_engine_at_a_step(handler: PictureHandler, engine: FakeEngine) -> None:
    task = asyncio.create_task(
        handler.finish(submit(handler, num_inference_steps=150), RecordingObserver(), handler.inline)
    )
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(2):
        while engine.cancelled != ["j"]:
            await asyncio.sleep(0.005)
    assert engine.drawn == []


async def test_the_engines_failure_keeps_its_code_and_message(handler: PictureHandler) -> None:
    with pytest.raises(GenerationFailedError) as caught:
        await handler.finish(submit(handler, prompt="broken"), RecordingObserver(), handler.inline)
    assert caught.value.as_plain_string() == "engine_error: it broke"


async def test_a_failed_upload_ends_the_job(handler: PictureHandler) -> None:
    with pytest.raises(UploadFailedError, match="the bucket is gone"):
        await handler.finish(submit(handler, num_images=2), RecordingObserver(), FailingDelivery())


async def test_a_full_queue_is_refused_with_the_predicted_wait(handler: PictureHandler, engine: FakeEngine) -> None:
    engine.hold()
    submit(handler, "a", num_images=8)
    with pytest.raises(QueueFullError) as caught:
        submit(handler, "b")
    assert caught.value.retry_after_s == 3  # 2.4 predicted, whole seconds


async def test_an_unknown_scheduler_names_the_known_ones(handler: PictureHandler) -> None:
    with pytest.raises(InvalidInputError) as caught:
        submit(handler, scheduler="heun")
    assert caught.value.details[0].field == "scheduler"
    assert "euler_a" in caught.value.message
    submit(handler, scheduler="K_EULER")  # an alias is the engine's to know


async def test_a_closed_engine_is_an_error_not_a_hang(handler: PictureHandler, engine: FakeEngine) -> None:
    drawing = submit(handler, num_inference_steps=150)
    await asyncio.to_thread(engine.close)
    with pytest.raises(GenerationFailedError, match="shutting down"):
        await handler.finish(drawing, RecordingObserver(), handler.inline)
    with pytest.raises(GenerationFailedError, match="shutting down"):
        submit(handler, "later")


async def test_unread_progress_is_replaced_not_piled_up(handler: PictureHandler) -> None:
    drawing = submit(handler, num_inference_steps=150)
    await asyncio.sleep(0.5)
    assert len(drawing._events) < 8
    output = await handler.finish(drawing, RecordingObserver(), handler.inline)
    assert np.isfinite(output.timings["run_s"])
