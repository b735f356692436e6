"""Loading, failing to load, breaking, draining: seen from outside, in one process."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from inference.engine.types import CheckpointError
from tests.support.fake_engine import FakeEngine
from tests.support.inference_rig import KEY, FakeClock, running_server, settings_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_while_loading_the_process_answers_204_and_503(tmp_path: Path) -> None:
    gate, engine = threading.Event(), FakeEngine()

    def load() -> FakeEngine:
        gate.wait(10)
        return engine

    headers = {"Authorization": f"Bearer {KEY}"}
    async with (
        running_server(settings_for(tmp_path), load, clock=FakeClock(), fatal=[]) as (base, service),
        aiohttp.ClientSession(headers=headers) as http,
    ):
        async with http.get(base + "/ping") as answer:
            assert answer.status == 204
        for method, path in (("POST", "/run"), ("POST", "/runsync"), ("GET", "/status/x"), ("GET", "/info")):
            async with http.request(method, base + "/v2/igen" + path, json={"input": {"prompt": "x"}}) as answer:
                assert answer.status == 503
                assert int(answer.headers["Retry-After"]) >= 1
                assert (await answer.json())["error"]["code"] == "loading"
        async with http.get(base + "/v2/igen/health") as answer:
            assert (await answer.json())["workers"]["initializing"] == 1
        async with http.get(base + "/metrics") as answer:
            assert "igen_engine_up 0.0" in await answer.text()
        gate.set()
        await until(lambda: service.dispatcher is not None)
        async with http.get(base + "/ping") as answer:
            assert answer.status == 200


@pytest.mark.parametrize("error", [CheckpointError("no such checkpoint"), RuntimeError("surprise")])
async def test_a_failed_load_ends_the_process(tmp_path: Path, error: Exception) -> None:
    def load() -> FakeEngine:
        raise error

    fatal: list[bool] = []
    headers = {"Authorization": f"Bearer {KEY}"}
    async with (
        running_server(settings_for(tmp_path), load, clock=FakeClock(), fatal=fatal) as (base, _),
        aiohttp.ClientSession(headers=headers) as http,
    ):
        await until(lambda: bool(fatal))
        async with http.get(base + "/ping") as answer:
            assert answer.status == 503
        async with http.post(base + "/v2/igen/run", json={"input": {"prompt": "x"}}) as answer:
            assert answer.status == 503
    assert fatal == [True]


async def test_an_engine_that_broke_is_not_served_from_and_ends_the_process(rig: Any) -> None:
    rig.engine.healthy = False
    await until(lambda: bool(rig.fatal))
    async with rig.http.get(rig.base + "/ping") as answer:
        assert answer.status == 503
    status, body = await rig.call("POST", "/run", json={"input": {"prompt": "x"}})
    assert (status, body["error"]["code"]) == (503, "engine_unhealthy")


async def test_a_drain_refuses_new_jobs_and_finishes_the_old(make_rig: Callable[..., Any]) -> None:
    async with make_rig(FakeEngine(step_s=0.01)) as rig:
        object.__setattr__(rig.service.settings, "drain_s", 5)  # the rig's own is short
        waiting = asyncio.create_task(
            rig.call(
                "POST", "/runsync", json={"input": {"prompt": "x", "request_id": "k", "num_inference_steps": 40}}
            )
        )
        await rig.until_known("k")
        drain = asyncio.create_task(rig.service.drain())
        await asyncio.sleep(0.05)
        async with rig.http.get(rig.base + "/ping") as answer:
            assert answer.status == 503
        status, body = await rig.call("POST", "/run", json={"input": {"prompt": "y"}})
        assert (status, body["error"]["code"]) == (503, "shutting_down")
        again = await rig.call(
            "POST", "/run", json={"input": {"prompt": "x", "request_id": "k", "num_inference_steps": 40}}
        )
        assert again[1]["id"] == "k", "a repeat of a known job is answered"
        assert (await waiting)[1]["status"] == "COMPLETED"
        begun = time.monotonic()
        await drain
        assert time.monotonic() - begun < 1, "the result was fetched, so nothing is waited for"


async def test_a_drain_past_its_deadline_fails_what_is_left_and_says_so(rig: Any) -> None:
    rig.engine.hold()
    waiting = asyncio.create_task(rig.call("POST", "/runsync", json={"input": {"prompt": "x", "request_id": "k"}}))
    await rig.until_known("k")
    await rig.service.drain()
    status, body = await waiting
    assert (status, body["status"]) == (200, "FAILED")
    assert body["error"].startswith("shutting_down: ")
