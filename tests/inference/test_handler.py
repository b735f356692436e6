from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Never

import numpy as np
import pytest

from inference.bounds import Bounds
from inference.engine.types import EngineError, LoraError
from inference.errors import DeadlineUnreachableError, GenerationFailedError, QueueFullError, UploadFailedError
from inference.handler import PictureHandler
from inference.hooks import Hooks
from inference.pictures import PictureEncoder
from inference.plan import plan_job
from models.errors import InvalidInputError
from models.wire import JobInput
from tests.support.fake_engine import FakeEngine, colour_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inference.delivery import Preview
    from inference.drawing import Drawing
    from inference.pictures import PictureFile
    from models.wire import Progress

BOUNDS = Bounds(64, 1024, 1024 * 1024, 150, 16)


class RecordingObserver:
    def __init__(self) -> None:
        self.seen = []

    def started(self) -> None:
        self.seen.append("started")

    def progressed(self, progress: Progress) -> None:
        self.seen.append(progress)

    def previewed(self, preview: Preview) -> None:
        self.seen.append(preview)

    def picture(self, index: int, seed: int, image: str) -> None:
        self.seen.append(("picture", index, seed))


class SlowFirstDelivery:
    """The first picture is stored last."""

    async def deliver(self, job_id: str, index: int, picture: PictureFile) -> str:
        await asyncio.sleep(0.1 if index == 0 else 0)
        return f"{job_id}/{index}"


class FailingDelivery:
    async def deliver(self, job_id: str, index: int, picture: PictureFile) -> Never:
        raise UploadFailedError("the bucket is gone")


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    made = FakeEngine(max_waiting=8, failures={"broken": EngineError("it broke")})
    yield made
    made.close()


@pytest.fixture
def handler(engine: FakeEngine) -> Iterator[PictureHandler]:
    encoder = PictureEncoder()
    yield PictureHandler(engine, encoder)
    encoder.close()


def submit(handler: PictureHandler, job_id: str = "j", **fields: Any) -> Drawing:
    wanted = JobInput.model_validate({"prompt": "x", **fields})
    plan = plan_job(job_id, wanted, handler.engine, BOUNDS)
    return handler.submit(plan, start_within_s=plan.job.start_within_s)


async def test_events_become_progress_pictures_and_an_output(
    handler: PictureHandler, decode: Callable[[str], Any]
) -> None:
    observer = RecordingObserver()
    output = await handler.finish(submit(handler, seed=5, num_images=3), observer, handler.inline)
    assert observer.seen[0] == "started"
    assert {item for item in observer.seen if isinstance(item, tuple)} == {("picture", i, 5 + i) for i in range(3)}
    assert [decode(image).getpixel((0, 0)) for image in output.images] == [colour_of(5 + i) for i in range(3)]
    assert output.receipt.buckets == [1, 1, 1]
    assert set(output.timings) == {
        *("queue_s", "run_s", "device_s", "predicted_run_s"),  # nothing was predicted of the queue
        *("encode_s", "deliver_s", "total_s"),
    }


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


# ---- previews


async def test_previews_arrive_with_their_number_and_in_the_progress(
    handler: PictureHandler, decode: Callable[[str], Any]
) -> None:
    observer = RecordingObserver()
    drawing = submit(handler, num_inference_steps=150, preview_every=25, seed=300)
    await handler.finish(drawing, observer, handler.inline)
    previews = [item for item in observer.seen if hasattr(item, "seq")]
    assert previews
    assert [preview.seq for preview in previews] == sorted({preview.seq for preview in previews})
    assert all(preview.step == 25 * preview.seq and preview.steps == 150 for preview in previews)
    assert decode(previews[0].image).size == (8, 8)
    assert decode(previews[0].image).getpixel((4, 4)) == pytest.approx(colour_of(300), abs=3)
    numbers = [item.preview_seq for item in observer.seen if hasattr(item, "preview_seq")]
    assert numbers == sorted(numbers)
    assert max(numbers) == previews[-1].seq


async def test_unread_previews_are_replaced_not_piled_up(handler: PictureHandler) -> None:
    drawing = submit(handler, num_images=4, num_inference_steps=150, preview_every=1)
    await asyncio.sleep(0.5)
    assert len(drawing._events) < 16
    await handler.finish(drawing, RecordingObserver(), handler.inline)


async def test_a_safety_hook_shuts_previews_off_and_the_output_says_so(engine: FakeEngine) -> None:
    encoder = PictureEncoder()
    handler = PictureHandler(engine, encoder, Hooks(safety=lambda pixels, context: "allow"))
    observer = RecordingObserver()
    output = await handler.finish(submit(handler, preview_every=1), observer, handler.inline)
    assert not [item for item in observer.seen if hasattr(item, "seq")]
    assert "no previews" in output.notes[0]
    encoder.close()


# ---- names, deadlines, receipts


async def test_a_job_that_cannot_begin_in_time_is_refused_with_the_predicted_wait(engine: FakeEngine) -> None:
    encoder = PictureEncoder()
    handler = PictureHandler(engine, encoder)
    engine.wait_s = 42.0
    with pytest.raises(DeadlineUnreachableError, match="in about 42 s") as caught:
        submit(handler, deadline_s=10)
    assert (caught.value.status, caught.value.retry_after_s) == (429, 32)
    output = await handler.finish(submit(handler, deadline_s=60), RecordingObserver(), handler.inline)
    assert output.timings["predicted_queue_s"] == 42.0
    encoder.close()


async def test_a_job_that_was_not_begun_in_time_ends_so(handler: PictureHandler, engine: FakeEngine) -> None:
    engine.hold()
    with pytest.raises(GenerationFailedError) as caught:
        await handler.finish(submit(handler, deadline_s=0.05), RecordingObserver(), handler.inline)
    assert caught.value.engine_code == "deadline_missed"


@pytest.mark.parametrize("error", [LoraError("it is for another architecture")])
async def test_what_the_engine_refuses_of_a_request_is_a_wrong_field(
    handler: PictureHandler, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, error: EngineError
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(engine, "submit", refuse)
    with pytest.raises(InvalidInputError) as caught:
        submit(handler)
    assert [problem.field for problem in caught.value.details] == ["loras"]


async def test_files_name_the_loras_and_the_receipt_their_hashes(
    handler: PictureHandler, decode: Callable[[str], Any]
) -> None:
    drawing = submit(handler, loras=[{"name": "red", "scale": 0.5}], num_images=2)
    output = await handler.finish(drawing, RecordingObserver(), handler.inline)
    for image in output.images:
        text = decode(image).info["parameters"]
        assert "<lora:red:0.5>" in text
        assert "Lora hashes: " in text
    assert output.receipt.loras[0].model_dump() == {"name": "red", "scale": 0.5, "sha256": "a" * 64}


async def test_a_checkpoint_that_was_not_loaded_is_named_by_its_hash(
    handler: PictureHandler, decode: Callable[[str], Any]
) -> None:
    drawing = submit(handler, checkpoint="other", refiner="fake-refiner")
    output = await handler.finish(drawing, RecordingObserver(), handler.inline)
    assert (output.receipt.checkpoint, output.receipt.checkpoint_sha256) == ("other", "1" * 64)
    assert output.receipt.refiner is not None
    assert output.receipt.refiner.sha256 == "2" * 64
    text = decode(output.images[0]).info["parameters"]
    assert "Model hash: 1111111111" in text
    assert "[2222222222]" in text
    assert output.demonstration is False


async def test_the_size_is_that_of_the_file(handler: PictureHandler, decode: Callable[[str], Any]) -> None:
    output = await handler.finish(submit(handler, hires={"scale": 2}), RecordingObserver(), handler.inline)
    assert (output.width, output.height) == decode(output.images[0]).size == (128, 128)
    assert (output.receipt.width, output.receipt.hires) != (128, None)
