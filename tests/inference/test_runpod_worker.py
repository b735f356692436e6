"""RunPod's own worker loop, in a process of its own, running our handler against a stand-in for the platform."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from inference.delivery import Preview
from inference.errors import ResultTooLargeError
from inference.runpod_progress import ProgressReporter
from inference.runpod_worker import Worker, check_size
from inference.settings import InferenceSettings
from models.wire import Progress
from tests.support.fake_engine import FakeEngine, colour_of
from tests.support.inference_rig import base64_of
from tests.support.origin import Origin, answer_with
from tests.support.runpod_platform import KEY, RunpodPlatform, running_platform

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

ROOT = Path(__file__).parents[2]
TINY = ROOT / "inference" / "checkpoints" / "tiny"
FAKE_WORKER = ("-m", "tests.support.fake_process", "worker")
REAL_WORKER = ("-m", "inference.runpod_worker")


@dataclass
class Running:
    process: asyncio.subprocess.Process
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text()


@asynccontextmanager
async def working(
    platform: RunpodPlatform, home: Path, script: dict[str, Any], command: tuple[str, ...] = FAKE_WORKER, **more: str
) -> AsyncIterator[Running]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("IGEN_", "BUCKET_"))},
        **platform.environment(),
        "IGEN_HOME": str(home),
        "IGEN_WORKER_PROGRESS_S": "0.1",
        "FAKE_ENGINE": json.dumps(script),
        **more,
    }
    log_file = home / "log"
    with log_file.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, cwd=ROOT, env=environment, stdout=log, stderr=log
        )
    try:
        yield Running(process, log_file)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(20):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def test_a_job_is_taken_drawn_and_sent_back(tmp_path: Path, decode: Callable[[str], Any]) -> None:
    async with running_platform() as platform, working(platform, tmp_path, {"step_s": 0.05}) as worker:
        platform.offer("job-1-e1", {"prompt": "x", "seed": 300, "num_inference_steps": 20, "num_images": 2})
        result = await platform.result("job-1-e1", 90)
        assert set(result) == {"output"}
        assert [decode(image).getpixel((0, 0)) for image in result["output"]["images"]] == [
            colour_of(300),
            colour_of(301),
        ]
        assert result["output"]["receipt"]["checkpoint"] == "fake"
        updates = platform.progress("job-1-e1")
        assert updates
        steps = [post.body["output"]["progress"]["step"] for post in updates]
        assert steps == sorted(set(steps))
        assert platform.keys == {KEY}
        assert "base64" not in worker.log


async def test_progress_never_lands_after_the_result(tmp_path: Path) -> None:
    """The platform takes its time for every update; the result must wait for the last one."""
    async with running_platform(progress_delay_s=0.4) as platform, working(platform, tmp_path, {"step_s": 0.02}):
        ids = [f"job-{number}" for number in range(12)]
        for number, job_id in enumerate(ids):
            platform.offer(job_id, {"prompt": "x", "num_inference_steps": 10 + 7 * number})
        for job_id in ids:
            await platform.result(job_id, 120)
        await asyncio.sleep(1.0)
        for job_id in ids:
            posts = [post for post in platform.posts if post.job_id == job_id]
            assert not posts[-1].is_progress, job_id
            assert len(platform.results(job_id)) == 1
            assert max(post.arrived for post in posts if not post.is_progress) == max(post.arrived for post in posts)
        assert sum(len(platform.progress(job_id)) for job_id in ids) >= 6


async def test_many_jobs_run_at_once_and_a_stop_ends_one(tmp_path: Path) -> None:
    async with running_platform() as platform, working(platform, tmp_path, {"step_s": 0.02, "capacity": 6}):
        endless = {"prompt": "x", "num_inference_steps": 150}
        platform.offer("stop-me", endless)
        await platform.first_progress("stop-me", 90)
        for number in range(12):
            platform.offer(f"job-{number}", {"prompt": "x", "seed": number, "num_inference_steps": 5 + number})
        platform.stop("stop-me")
        for number in range(12):
            result = await platform.result(f"job-{number}", 90)
            assert result["output"]["seed"] == number
        assert platform.results("stop-me") == []
        assert max(platform.batch_sizes) == 6


async def test_a_stop_frees_the_engine(tmp_path: Path) -> None:
    """One slot: the second job can only run once the first has left the engine."""
    async with running_platform() as platform, working(platform, tmp_path, {"step_s": 0.1, "capacity": 1}):
        platform.offer("first", {"prompt": "x", "num_inference_steps": 150})
        await platform.first_progress("first", 90)
        platform.offer("second", {"prompt": "x", "num_inference_steps": 1})
        platform.stop("first")
        await platform.result("second", 12)
        assert platform.results("first") == []


@pytest.mark.parametrize(
    ("job_input", "error"),
    [
        ({"prompt": "x", "width": 100}, "invalid_input: width: must be a multiple of 8; 96 and 104 are nearest"),
        (
            {"prompt": "x", "image_url": "http://a.example/b.png"},
            "invalid_input: image: The address must begin with https://.",
        ),
        ({}, "invalid_input: prompt: Field required"),
        ("text", "invalid_input: input: must be an object"),
        ({"prompt": "bad"}, "engine_error: it broke"),
    ],
)
async def test_errors_are_one_plain_string(job_input: object, error: str) -> None:
    from inference.engine.types import EngineError

    engine = FakeEngine(failures={"bad": EngineError("it broke")})
    worker = Worker(engine, InferenceSettings(), None)
    assert await worker.handle({"id": "j", "input": job_input}) == {"error": error}
    engine.close()


async def test_a_picture_is_fetched_and_drawn_upon(decode: Callable[[str], Any]) -> None:
    png = base64.b64decode(base64_of(Image.new("RGB", (72, 64), "red")))
    engine = FakeEngine()
    async with Origin({"/a": answer_with(png)}) as origin:
        worker = Worker(engine, InferenceSettings(fetch_allow_hosts=f"127.0.0.1:{origin.port}"), None)
        wanted = {"prompt": "x", "image_url": origin.url("/a"), "output_format": "webp", "seed": 5}
        output = await worker.handle({"id": "j", "input": wanted})
        picture = decode(output["images"][0]).convert("RGB")
        assert picture.size == (72, 64)
        assert picture.getpixel((2, 2)) == pytest.approx((255, 0, 0), abs=12)
        gone = await worker.handle({"id": "j", "input": {**wanted, "image_url": origin.url("/b")}})
        assert gone == {"error": "invalid_input: image: cannot be fetched: the address answers 404"}
    engine.close()


async def test_an_unforeseen_fault_shows_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine()
    worker = Worker(engine, InferenceSettings(), None)
    monkeypatch.setattr(worker._handler, "submit", lambda *_, **__: 1 / 0)
    answer = await worker.handle({"id": "j", "input": {"prompt": "x"}})
    assert set(answer) == {"error"}
    assert answer["error"].startswith("internal_error: ")
    assert "division" not in answer["error"]
    engine.close()


async def test_errors_reach_the_platform_as_one_string(tmp_path: Path) -> None:
    async with running_platform() as platform, working(platform, tmp_path, {"failures": {"bad": "it broke"}}):
        platform.offer("a", {"prompt": "x", "colour": "red"})
        platform.offer("b", {"prompt": "bad"})
        platform.offer("c", {"prompt": "x"}, s3Config={"accessId": "x", "endpointUrl": "http://10.0.0.1"})
        platform.offer(
            "d",
            {"prompt": "x"},
            s3Config={
                "accessId": "x",
                "accessSecret": "y",
                "bucketName": "bucket",
                "endpointUrl": "http://169.254.169.254",
            },
        )
        assert (await platform.result("a", 90)) == {"error": "invalid_input: colour: Extra inputs are not permitted"}
        assert (await platform.result("b")) == {"error": "engine_error: it broke"}
        assert (await platform.result("c"))["error"].startswith("invalid_input: s3Config.accessSecret: ")
        assert (await platform.result("d"))["error"].startswith("invalid_input: s3Config.endpointUrl: ")


async def test_a_result_that_runpod_would_refuse_says_so_instead(tmp_path: Path) -> None:
    large = {"prompt": "x", "width": 512, "height": 512}
    async with (
        running_platform(max_result_bytes=1_000_000) as platform,
        working(platform, tmp_path, {"noise": True}, IGEN_WORKER_RESULT_MB="1"),
    ):
        platform.offer("large", large)
        error = (await platform.result("large", 90))["error"]
        assert error.startswith("result_too_large: The result has ")
        assert "BUCKET_ENDPOINT_URL" in error
        assert platform.refused == []


def test_the_limit_counts_the_whole_answer() -> None:
    check_size({"images": ["x" * 900_000]}, 1)
    with pytest.raises(ResultTooLargeError, match=r"1\.2 MB and RunPod takes 1 MB"):
        check_size({"images": ["x" * 600_000], "image_url": "x" * 600_000}, 1)


def test_runpods_limits_differ_by_how_a_job_came() -> None:
    engine = FakeEngine()
    worker = Worker(engine, InferenceSettings(), None)
    assert (worker._limit_mb("sync-1-e1"), worker._limit_mb("1-e1")) == (20, 10)
    assert worker.concurrency(1) == worker.concurrency(99) == engine.stats().capacity
    engine.close()


class NotingPlatform:
    """Remembers every update."""

    def __init__(self) -> None:
        self.updates: list[dict[str, Any]] = []

    async def update(self, job: dict[str, Any], output: dict[str, Any]) -> None:
        self.updates.append(output)


async def test_previews_go_with_the_progress_once_and_never_too_large(decode: Callable[[str], Any]) -> None:
    platform, engine = NotingPlatform(), FakeEngine(step_s=0.01)
    worker = Worker(engine, InferenceSettings(worker_progress_s=0.05), platform)
    wanted = {"prompt": "x", "num_inference_steps": 100, "preview_every": 2}
    await worker.handle({"id": "j", "input": wanted})
    previews = [update["preview"] for update in platform.updates if "preview" in update]
    assert previews
    assert len({preview["seq"] for preview in previews}) == len(previews)
    assert decode(previews[0]["image"]).size == (8, 8)
    assert all("progress" in update for update in platform.updates)
    reporter = ProgressReporter(platform, {"id": "k"}, 0.01)
    reporter.previewed(Preview(0, 1, 1, 2, "x" * 600_000))
    reporter.progressed(Progress(step=1, steps=2))
    await asyncio.sleep(0.1)
    await reporter.close()
    assert "preview" not in platform.updates[-1]
    engine.close()


class DeafPlatform:
    """Takes an update and never answers."""

    def __init__(self) -> None:
        self.updates = 0

    async def update(self, job: dict[str, Any], output: dict[str, Any]) -> None:
        self.updates += 1
        await asyncio.Event().wait()


async def test_a_platform_that_never_answers_an_update_costs_the_result_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("inference.runpod_progress.PROGRESS_ANSWER_S", 0.2)
    platform = DeafPlatform()
    reporter = ProgressReporter(platform, {"id": "j"}, 0.01)
    for step in range(20):
        reporter.progressed(Progress(step=step, steps=20))
        await asyncio.sleep(0.02)
    async with asyncio.timeout(2):
        await reporter.close()
    assert platform.updates == 1, "what was not answered might still land, so nothing more is sent"


async def test_sigterm_ends_the_worker(tmp_path: Path) -> None:
    async with running_platform() as platform, working(platform, tmp_path, {}) as worker:
        platform.offer("a", {"prompt": "x"})
        await platform.result("a", 90)
        worker.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            assert await worker.process.wait() == 0


async def test_jobs_under_way_at_sigterm_are_finished_and_no_more_are_taken(tmp_path: Path) -> None:
    """RunPod scales down: what was taken is sent back, what was not goes to another worker."""
    async with (
        running_platform() as platform,
        working(platform, tmp_path, {"step_s": 0.05, "capacity": 2}) as worker,
    ):
        for name in ("first", "second"):
            platform.offer(name, {"prompt": "x", "num_inference_steps": 60})
        await platform.first_progress("first", 90)
        await platform.first_progress("second", 90)
        worker.process.send_signal(signal.SIGTERM)
        platform.offer("third", {"prompt": "x"})
        for name in ("first", "second"):
            assert "output" in await platform.result(name, 60)
        async with asyncio.timeout(60):
            assert await worker.process.wait() == 0
        assert platform.results("third") == []
        assert [post for post in platform.posts if post.job_id == "third"] == []


async def test_jobs_wait_out_a_cold_start(tmp_path: Path, decode: Callable[[str], Any]) -> None:
    """The queue is full before the worker is there: none fails, none is taken before a test picture was drawn."""
    async with running_platform() as platform:
        for number in range(5):
            platform.offer(f"job-{number}", {"prompt": "x", "seed": number})
        async with working(platform, tmp_path, {"load_s": 2.0}) as worker:
            results = [await platform.result(f"job-{number}", 120) for number in range(5)]
            assert [decode(result["output"]["images"][0]).getpixel((0, 0)) for result in results] == [
                colour_of(number) for number in range(5)
            ]
            assert {len(platform.results(f"job-{number}")) for number in range(5)} == {1}
            assert worker.log.index("All fitness checks passed") < worker.log.index('"job_accepted"')
        assert not [ping for ping in platform.pings if ping.get("status") == "unhealthy"]


async def test_a_worker_that_cannot_draw_takes_no_job_and_tells_runpod_why(tmp_path: Path) -> None:
    script = {"failures": {"a red circle on a white background": "no kernel image is available"}}
    async with running_platform() as platform, working(platform, tmp_path, script) as worker:
        platform.offer("a", {"prompt": "x"})
        async with asyncio.timeout(90):
            assert await worker.process.wait() == 1
        assert platform.batch_sizes == []
        assert platform.posts == []
        (ping,) = platform.pings
        assert (ping["status"], ping["check"]) == ("unhealthy", "checkpoint_draws")
        assert "no kernel image is available" in ping["reason"]


async def test_the_sdks_own_checks_end_a_worker_that_fails_them(tmp_path: Path) -> None:
    """Here one is made to fail by asking for more memory than any machine has."""
    demands = {"RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "false", "RUNPOD_MIN_MEMORY_GB": "1000000"}
    async with running_platform() as platform, working(platform, tmp_path, {}, **demands) as worker:
        async with asyncio.timeout(120):
            assert await worker.process.wait() == 1
        assert platform.batch_sizes == []
        assert [ping["status"] for ping in platform.pings] == ["unhealthy"]


async def test_a_checkpoint_that_cannot_be_loaded_ends_the_worker(tmp_path: Path) -> None:
    async with (
        running_platform() as platform,
        working(platform, tmp_path, {"load_error": "no checkpoint is called 'nope'"}) as worker,
    ):
        async with asyncio.timeout(90):
            assert await worker.process.wait() == 1
        assert "no checkpoint is called 'nope'" in worker.log
        assert platform.batch_sizes == []


async def test_a_broken_engine_ends_the_worker_with_an_error(tmp_path: Path) -> None:
    async with (
        running_platform() as platform,
        working(platform, tmp_path, {"break_after_s": 0, "step_s": 0.1}) as worker,
    ):
        platform.offer("a", {"prompt": "x"})
        async with asyncio.timeout(90):
            assert await worker.process.wait() == 1


@pytest.mark.skipif(not (TINY / "model_index.json").exists(), reason="the bundled checkpoint is not there")
async def test_the_real_worker_with_the_bundled_checkpoint(tmp_path: Path, decode: Callable[[str], Any]) -> None:
    async with running_platform() as platform, working(platform, tmp_path, {}, REAL_WORKER, IGEN_THREADS="1"):
        wanted = {"prompt": "a red circle on a white background", "num_inference_steps": 4}
        for number in range(10):
            platform.offer(f"job-{number}", {**wanted, "seed": number % 5})
        results = [await platform.result(f"job-{number}", 240) for number in range(10)]
        outputs = [result["output"] for result in results]
        assert {output["receipt"]["checkpoint"] for output in outputs} == {"tiny"}
        assert all(output["demonstration"] for output in outputs)
        pictures = [decode(output["images"][0]) for output in outputs]
        assert {picture.size for picture in pictures} == {(128, 128)}
        assert len({picture.tobytes() for picture in pictures[:5]}) == 5
