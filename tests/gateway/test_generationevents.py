"""Following a generation, before a real inference server with a fake engine."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from gateway.backend import AnswerLostError
from tests.gateway.conftest import PROMPT, until
from tests.support.fake_backend import FakeBackend
from tests.support.fake_engine import FakeEngine
from tests.support.inference_rig import KEY, Rig, open_rig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import aiohttp

    from tests.gateway.conftest import RunningGateway, StartGateway
    from tests.support.compositor_rig import RedisProcess

SLOW: dict[str, Any] = {**PROMPT, "width": 64, "height": 64, "seed": 5, "num_inference_steps": 150}
ASYNC = {"Prefer": "respond-async"}


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """One whose jobs take some seconds."""
    async with open_rig(tmp_path / "inference", FakeEngine(step_s=0.02)) as made:
        yield made


class Events:
    """An event stream, read one event at a time."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer
        self.seen: list[tuple[str, dict[str, Any]]] = []

    async def next(self) -> tuple[str, dict[str, Any]]:
        """The next event that is no comment."""
        lines: dict[str, str] = {}
        async with asyncio.timeout(15):
            while True:
                line = (await self.answer.content.readline()).decode()
                assert line, "the stream ended"
                if line == "\n" and lines:
                    break
                name, _, value = line.partition(": ")
                if name and line != "\n":
                    lines[name] = value.strip()
        told = lines["event"], json.loads(lines["data"])
        self.seen.append(told)
        return told

    async def until(self, kind: str) -> dict[str, Any]:
        """The next event of a kind."""
        while True:
            found, message = await self.next()
            if found == kind:
                return message


@asynccontextmanager
async def watching(gateway: RunningGateway, generation_id: str) -> AsyncIterator[Events]:
    url = f"{gateway.url}/api/generations/{generation_id}/events"
    async with gateway.http.get(url, headers={"Authorization": f"Bearer {gateway.key}"}) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        yield Events(answer)


async def begun(gateway: RunningGateway, **fields: Any) -> str:
    reply = await gateway.generate({**SLOW, **fields}, headers=ASYNC)
    assert reply.status == 202, reply.json
    assert reply.headers["Preference-Applied"] == "respond-async"
    generation_id = str(reply.json["id"])
    assert reply.json["url"] == f"http://pictures.example/api/generations/{generation_id}"
    assert reply.json["events_url"] == reply.json["url"] + "/events"
    assert reply.json["status"] == "running"
    return generation_id


async def test_steps_previews_and_the_end_are_told(drawing: RunningGateway, rig: Rig) -> None:
    rig.engine.hold()
    generation_id = await begun(drawing, preview_every=5)
    async with watching(drawing, generation_id) as events:
        assert await events.next() == (
            "snapshot",
            {"type": "snapshot", "id": generation_id, "status": "running"},
        )
        first = await events.until("progress")
        assert (first["step"], first["steps"]) == (0, 150)
        rig.engine.release()
        preview = await events.until("preview")
        assert preview["index"] == 0
        assert preview["step"] % 5 == 0
        assert preview["image"].startswith("data:image/jpeg;base64,")
        end = await events.until("end")
        assert (end["status"], end["id"]) == ("success", generation_id)
        assert end["image_url"].startswith("http://pictures.example/media/generated/")
        assert await events.answer.content.read() == b""
    steps = [message["step"] for kind, message in events.seen if kind == "progress"]
    assert steps == sorted(steps)
    assert steps[-1] > 0
    assert end == {"type": "end", **(await drawing.request("GET", f"/api/generations/{generation_id}")).json}


async def test_the_place_in_the_queue_is_told(drawing: RunningGateway, rig: Rig) -> None:
    rig.engine.hold()
    first, second = await begun(drawing), await begun(drawing)
    async with watching(drawing, second) as events:
        assert (await events.until("progress"))["queue_position"] == 1
    rig.engine.release()
    for each in (first, second):
        async with watching(drawing, each) as events:
            assert (await events.until("end"))["status"] == "success"


async def test_one_that_has_ended_says_so_at_once(drawing: RunningGateway) -> None:
    made = (await drawing.generate({**SLOW, "num_inference_steps": 2})).json
    async with watching(drawing, made["id"]) as events:
        assert [(await events.next())[0] for _ in range(2)] == ["snapshot", "end"]


async def test_a_failure_ends_the_stream(drawing: RunningGateway, rig: Rig) -> None:
    rig.engine.hold()
    generation_id = await begun(drawing)
    async with watching(drawing, generation_id) as events:
        await events.until("progress")
        await rig.call("POST", f"/cancel/{generation_id}")
        end = await events.until("end")
    assert (end["status"], end["error"]["code"]) == ("error", "backend_cancelled")


async def test_only_the_owner_may_watch(drawing: RunningGateway, rig: Rig, other_key: str) -> None:
    rig.engine.hold()
    generation_id = await begun(drawing)
    path = f"/api/generations/{generation_id}/events"
    assert (await drawing.request("GET", path, key=None)).status == 401
    assert (await drawing.request("GET", path, key=other_key)).status == 404
    assert (await drawing.request("GET", "/api/generations/gen_x/events")).status == 404
    rig.engine.release()


async def test_watchers_are_bounded_and_leave_nothing_behind(
    drawing: RunningGateway, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.generationhub.MOST_WATCHERS", 2)
    rig.engine.hold()
    generation_id = await begun(drawing)
    hub = drawing.services.generations
    async with watching(drawing, generation_id) as one, watching(drawing, generation_id) as two:
        await one.until("progress")
        await two.until("progress")
        refused = await drawing.request("GET", f"/api/generations/{generation_id}/events")
        assert (refused.status, refused.code) == (503, "gateway_full")
        assert refused.headers["Retry-After"]
        assert len(hub._followed[generation_id].tasks) == 1, "one follower, however many look on"
    await until(lambda: not hub._followed and hub._watchers == 0)
    rig.engine.release()


async def test_a_backend_that_is_silent_for_a_while_is_asked_again(
    drawing: RunningGateway, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.generationhub.POLL_S", 0.05)
    rig.engine.hold()
    generation_id = await begun(drawing)
    real, faults = drawing.services.backend.status, iter([AnswerLostError("x"), ValueError("x")])

    async def status(job_id: str, *, wait_s: float = 0) -> Any:
        if wait_s == 3.0 and (fault := next(faults, None)) is not None:
            raise fault
        return await real(job_id, wait_s=wait_s)

    monkeypatch.setattr(drawing.services.backend, "status", status)
    async with watching(drawing, generation_id) as events:
        assert (await events.until("progress"))["step"] == 0
        assert next(faults, None) is None
    rig.engine.release()


async def test_a_long_last_answer_is_asked_for_once(
    drawing: RunningGateway, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, ended = drawing.services.backend.status, []
    complete = drawing.services.ledger.complete

    async def status(job_id: str, *, wait_s: float = 0) -> Any:
        answer = await real(job_id, wait_s=wait_s)
        if wait_s == 3.0 and answer.status.terminal:
            ended.append(answer)
        return answer

    async def complete_late(*arguments: Any) -> None:
        await asyncio.sleep(1.5)
        await complete(*arguments)

    monkeypatch.setattr(drawing.services.backend, "status", status)
    monkeypatch.setattr(drawing.services.ledger, "complete", complete_late)
    generation_id = await begun(drawing, num_inference_steps=40)
    async with watching(drawing, generation_id) as events:
        assert (await events.until("end"))["status"] == "success"
    assert len(ended) <= 1


async def test_two_gateways_have_one_poller(
    start_gateway: StartGateway, rig: Rig, redis: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"backend_url": rig.queue, "backend_key": KEY, "redis_url": redis.url, "lease_seconds": 30}
    one, two = await start_gateway(**options), await start_gateway(**options)
    asked = {"one": 0, "two": 0}
    for name, gateway in (("one", one), ("two", two)):
        real = gateway.services.backend.stream

        async def stream(job_id: str, name: str = name, real: Any = real) -> Any:
            asked[name] += 1
            return await real(job_id)

        monkeypatch.setattr(gateway.services.backend, "stream", stream)
    rig.engine.hold()
    generation_id = await begun(one, preview_every=1, num_inference_steps=100)
    async with watching(one, generation_id) as here, watching(two, generation_id) as there:
        await here.until("progress")
        rig.engine.release()
        assert (await there.until("preview"))["index"] == 0
        assert (await here.until("preview"))["index"] == 0
        rig.engine.hold()
    assert sorted(count > 0 for count in asked.values()) == [False, True]
    rig.engine.release()


async def test_a_gateway_that_stops_says_so(drawing: RunningGateway, rig: Rig) -> None:
    rig.engine.hold()
    generation_id = await begun(drawing)
    async with watching(drawing, generation_id) as events:
        await events.until("progress")
        drawing.services.lifecycle.drain(0.5)
        assert (await events.until("closed"))["reason"] == "restarting"
    rig.engine.release()


async def test_callers_who_do_not_wait_are_bounded_too(start_gateway: StartGateway, backend: FakeBackend) -> None:
    gateway = await start_gateway(max_inflight=2)
    backend.seconds = 0.5
    replies = [await gateway.generate(headers=ASYNC) for _ in range(3)]
    assert [reply.status for reply in replies] == [202, 202, 503]
    replay = await gateway.generate(headers={"Prefer": "handling=lenient, respond-async; wait=5"})
    assert replay.status == 503
    assert (await gateway.generate(headers={"Prefer": "not-respond-async"})).status == 200


async def test_runpods_progress_comes_with_the_status(start_gateway: StartGateway) -> None:
    backend = FakeBackend(runpod=True)
    await backend.start()
    gateway = await start_gateway(backend_url=backend.url, backend_kind="runpod")
    backend.seconds = 5
    generation_id = (await gateway.generate(headers=ASYNC)).json["id"]
    async with watching(gateway, generation_id) as events:
        assert (await events.until("progress"))["steps"] == 4
        (job,) = backend.jobs.values()
        preview = {"index": 0, "seq": 1, "step": 1, "steps": 4, "image": "data:image/jpeg;base64,QUJD"}
        job.output = {"progress": {"step": 2, "steps": 4}, "preview": preview}
        assert (await events.until("progress"))["step"] == 2
        assert (await events.until("preview"))["image"] == preview["image"]
        assert (await events.until("end"))["status"] == "success"
    await backend.stop()
