"""RunPod's own endpoint client against our server, over HTTP."""

from __future__ import annotations

import asyncio
import time
import warnings
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from inference.engine.types import EngineError
from tests.support.fake_engine import FakeEngine, colour_of
from tests.support.inference_rig import KEY
from tests.support.real_engine import PROMPT, client_of, largest_difference, needs_checkpoint, real_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.support.inference_rig import Rig
    from tests.support.real_engine import Client

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the SDK's imports are not ours to keep clean
    import runpod
    from runpod.endpoint import AsyncioEndpoint, Endpoint
    from runpod.endpoint.runner import RunPodClient

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # the SDK closes none of its sessions


@pytest.fixture
async def slow_rig(make_rig: Callable[..., Any]) -> AsyncIterator[Rig]:
    """Fast enough for a test, slow enough to see a job on its way."""
    async with make_rig(FakeEngine(step_s=0.02, failures={"bad": EngineError("no")})) as rig:
        yield rig


@pytest.fixture
async def real_client(tmp_path: Path) -> AsyncIterator[Client]:
    """A server around the real engine with the bundled checkpoint."""
    with real_engine(tmp_path) as engine:
        async with client_of(engine, tmp_path) as client:
            yield client


def endpoint_of(rig: Rig | Client, monkeypatch: pytest.MonkeyPatch, key: str = KEY) -> Endpoint:
    """What RUNPOD_ENDPOINT_BASE_URL does when it is set before the SDK is imported."""
    monkeypatch.setattr(runpod, "endpoint_url_base", f"{rig.base}/v2")
    for ask in (RunPodClient.get, RunPodClient.post):  # ten seconds, which a busy machine may take
        monkeypatch.setattr(ask, "__defaults__", (90,))
    return Endpoint("igen", api_key=key)


async def test_run_status_and_output(slow_rig: Rig, monkeypatch: pytest.MonkeyPatch, decode: Any) -> None:
    endpoint = endpoint_of(slow_rig, monkeypatch)

    def use() -> tuple[str, str, Any]:
        job = endpoint.run({"prompt": "x", "seed": 3, "num_inference_steps": 40})
        return job.job_id, job.status(), job.output(timeout=20)

    job_id, first, output = await asyncio.to_thread(use)
    assert first in ("IN_QUEUE", "IN_PROGRESS")
    assert decode(output["images"][0]).getpixel((0, 0)) == colour_of(3)
    assert (await slow_rig.call("GET", f"/status/{job_id}"))[1]["status"] == "COMPLETED"


async def test_run_sync_with_the_whole_body(slow_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = endpoint_of(slow_rig, monkeypatch)
    body = {"input": {"prompt": "x", "num_images": 2}, "policy": {"executionTimeout": 60_000}}
    output = await asyncio.to_thread(endpoint.run_sync, body, 20)
    assert len(output["images"]) == 2


async def test_run_sync_of_a_failing_job(slow_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = endpoint_of(slow_rig, monkeypatch)
    assert await asyncio.to_thread(endpoint.run_sync, {"prompt": "bad"}, 20) is None


async def test_stream_ends_by_itself(slow_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = endpoint_of(slow_rig, monkeypatch)

    def use() -> list[Any]:
        return list(endpoint.run({"prompt": "x", "num_images": 3, "num_inference_steps": 40}).stream())

    async with asyncio.timeout(20):
        chunks = await asyncio.to_thread(use)
    assert sorted(chunk["picture"]["index"] for chunk in chunks if "picture" in chunk) == [0, 1, 2]
    assert any("progress" in chunk for chunk in chunks)


async def test_previews_of_one_a_cancel_of_another_while_a_third_runs(
    slow_rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = endpoint_of(slow_rig, monkeypatch)

    def watch() -> list[Any]:
        wanted = {"prompt": "x", "num_inference_steps": 150, "preview_every": 5}
        return [chunk["preview"] for chunk in endpoint.run(wanted).stream() if "preview" in chunk]

    def cancel() -> str:
        job = endpoint.run({"prompt": "y", "num_inference_steps": 150})
        job.cancel()
        return str(job.status())

    def draw() -> Any:
        return endpoint.run_sync({"prompt": "z", "num_inference_steps": 100, "seed": 3}, 30)

    async with asyncio.timeout(40):
        previews, cancelled, drawn = await asyncio.gather(*map(asyncio.to_thread, (watch, cancel, draw)))
    assert previews
    assert [preview["seq"] for preview in previews] == sorted({preview["seq"] for preview in previews})
    assert all(preview["image"].startswith("data:image/jpeg;base64,") for preview in previews)
    assert cancelled == "CANCELLED"
    assert drawn["seed"] == 3


@needs_checkpoint
async def test_the_real_engine_shows_one_cancels_another_and_draws_a_third(
    real_client: Client, monkeypatch: pytest.MonkeyPatch, decode: Any
) -> None:
    endpoint = endpoint_of(real_client, monkeypatch)
    wanted = {"prompt": PROMPT, "seed": 5, "num_inference_steps": 150}

    def use() -> tuple[Any, ...]:
        third = endpoint.run(wanted)
        shown = endpoint.run({**wanted, "seed": 6, "preview_every": 3})
        other = endpoint.run({**wanted, "seed": 7, "num_images": 4})
        while (begun := other.status()) == "IN_QUEUE":
            time.sleep(0.01)
        answer = other.cancel()["status"]
        meanwhile = (third.status(), shown.status())
        chunks = list(shown.stream())
        return begun, answer, other.status(), meanwhile, chunks, third.output(timeout=120)

    async with asyncio.timeout(200):
        begun, answer, status, meanwhile, chunks, output = await asyncio.to_thread(use)
        alone = await real_client.draw(**wanted)
    assert (begun, answer, status) == ("IN_PROGRESS", "CANCELLED", "CANCELLED")
    assert meanwhile == ("IN_PROGRESS", "IN_PROGRESS")
    previews = [chunk["preview"] for chunk in chunks if "preview" in chunk]
    assert previews
    assert [preview["seq"] for preview in previews] == sorted({preview["seq"] for preview in previews})
    assert {decode(preview["image"]).size for preview in previews} == {(16, 16)}
    assert [chunk["picture"]["seed"] for chunk in chunks if "picture" in chunk] == [6]
    assert largest_difference(output, alone) <= 1
    figures = (await real_client.get("/health"))["jobs"]
    assert (figures["completed"], figures["inProgress"], figures["inQueue"]) == (3, 0, 0)


@pytest.mark.parametrize("prompt", ["bad", "cancel me"])
async def test_stream_ends_for_jobs_that_fail_or_are_cancelled(
    slow_rig: Rig, monkeypatch: pytest.MonkeyPatch, prompt: str
) -> None:
    endpoint = endpoint_of(slow_rig, monkeypatch)

    def use() -> list[Any]:
        job = endpoint.run({"prompt": prompt, "num_inference_steps": 150})
        if prompt != "bad":
            job.cancel()
        return [chunk for chunk in job.stream() if "picture" in chunk]

    async with asyncio.timeout(20):
        assert await asyncio.to_thread(use) == []


async def test_cancel_stops_the_engine(slow_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = endpoint_of(slow_rig, monkeypatch)

    def use() -> tuple[Any, str]:
        job = endpoint.run({"prompt": "x", "num_inference_steps": 150})
        return job.cancel(), job.status()

    answer, status = await asyncio.to_thread(use)
    assert (answer["status"], status) == ("CANCELLED", "CANCELLED")
    async with asyncio.timeout(5):
        while not slow_rig.engine.cancelled:
            await asyncio.sleep(0.01)
    assert slow_rig.engine.drawn == []


async def test_health_and_purge(slow_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = endpoint_of(slow_rig, monkeypatch)
    slow_rig.engine.hold()
    job = await asyncio.to_thread(endpoint.run, {"prompt": "x"})
    health = await asyncio.to_thread(endpoint.health)
    assert health["jobs"]["inQueue"] == 1
    assert await asyncio.to_thread(endpoint.purge_queue) == {"removed": 1, "status": "completed"}
    assert await asyncio.to_thread(job.status) == "CANCELLED"


async def test_a_wrong_key_is_the_sdks_own_error(slow_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = endpoint_of(slow_rig, monkeypatch, key="wrong")
    with pytest.raises(RuntimeError, match="401"):
        await asyncio.to_thread(endpoint.run, {"prompt": "x"})


async def test_twelve_clients_at_once_with_two_cancels(
    slow_rig: Rig, monkeypatch: pytest.MonkeyPatch, decode: Any
) -> None:
    endpoint = endpoint_of(slow_rig, monkeypatch)

    def draw(seed: int) -> Any:
        return endpoint.run_sync({"prompt": "x", "seed": seed, "num_inference_steps": 5 + seed}, 60)

    def cancel(seed: int) -> Any:
        job = endpoint.run({"prompt": "x", "seed": seed, "num_inference_steps": 150})
        return job.cancel()["status"]

    outputs = await asyncio.gather(
        *(asyncio.to_thread(draw, seed) for seed in range(10)), *(asyncio.to_thread(cancel, 90 + n) for n in range(2))
    )
    assert outputs[10:] == ["CANCELLED"] * 2
    for seed, output in enumerate(outputs[:10]):
        assert output["seed"] == seed
        assert decode(output["images"][0]).getpixel((0, 0)) == colour_of(seed)
    assert not {spec.seed for spec in slow_rig.engine.drawn} & {90, 91}


async def test_the_sdks_asyncio_client(slow_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runpod, "endpoint_url_base", f"{slow_rig.base}/v2")
    async with aiohttp.ClientSession() as session, asyncio.timeout(30):
        endpoint = AsyncioEndpoint("igen", session, api_key=KEY)
        job = await endpoint.run({"prompt": "x", "seed": 4})
        assert (await job.output(timeout=20))["seed"] == 4
        streamed = await endpoint.run({"prompt": "x", "num_inference_steps": 30})
        assert [chunk async for chunk in streamed.stream() if "picture" in chunk]
        cancelled = await endpoint.run({"prompt": "x", "num_inference_steps": 150})
        assert (await cancelled.cancel())["status"] == "CANCELLED"
        assert [chunk async for chunk in cancelled.stream() if "picture" in chunk] == []
        assert (await endpoint.health())["jobs"]["completed"] >= 2
