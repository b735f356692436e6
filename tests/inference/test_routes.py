"""The queue API over real HTTP: shapes, statuses, limits, errors."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from yarl import URL

from inference.engine.types import EngineError
from tests.support.fake_engine import FakeEngine, colour_of
from tests.support.inference_rig import KEY

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.inference_rig import Rig


async def test_runsync_draws_what_was_asked(rig: Rig, decode: Callable[[str], Any]) -> None:
    status, body = await rig.call(
        "POST", "/runsync", json={"input": {"prompt": "a red circle", "seed": 123456, "width": 128, "num_images": 2}}
    )
    assert status == 200
    assert body["status"] == "COMPLETED"
    assert body["id"].startswith("sync-")
    assert set(body) == {"id", "status", "output", "delayTime", "executionTime", "workerId"}
    output = body["output"]
    assert [decode(image).size for image in output["images"]] == [(128, 64)] * 2
    assert [decode(image).getpixel((3, 3)) for image in output["images"]] == [colour_of(123456), colour_of(123457)]
    assert output["seeds"] == [123456, 123457]
    assert output["image_url"] == output["images"][0]
    assert output["demonstration"] is True
    assert output["receipt"]["negative_prompt"] == "blurry"


async def test_run_answers_at_once_and_status_follows_the_job(rig: Rig) -> None:
    rig.engine.hold()
    body = await rig.run(num_inference_steps=30)
    assert set(body) == {"id", "status"}
    assert body["status"] == "IN_QUEUE"
    assert not body["id"].startswith("sync-")
    rig.engine.release()
    going = await rig.until(body["id"], "IN_PROGRESS")
    assert set(going["output"]["progress"]) == {"step", "steps", "eta_s", "queue_position", "preview_seq"}
    assert going["output"]["progress"]["steps"] == 30
    assert "executionTime" not in going
    done = await rig.until(body["id"], "COMPLETED")
    assert done["output"]["images"]
    assert "error" not in done


async def test_a_waiting_job_says_its_place(make_rig: Callable[..., Any]) -> None:
    engine = FakeEngine(capacity=1)
    async with make_rig(engine) as rig:
        engine.hold()
        ids = [(await rig.run())["id"] for _ in range(3)]
        answers = [(await rig.call("GET", f"/status/{job_id}"))[1] for job_id in ids]
        assert [answer["output"]["progress"]["queue_position"] for answer in answers] == [0, 1, 2]
        assert {answer["status"] for answer in answers} == {"IN_QUEUE"}
        assert answers[2]["output"]["progress"]["eta_s"] is None


async def test_a_failed_job_carries_one_plain_error(make_rig: Callable[..., Any]) -> None:
    async with make_rig(FakeEngine(failures={"bad": EngineError("the device is gone")})) as rig:
        status, body = await rig.call("POST", "/runsync", json={"input": {"prompt": "bad"}})
        assert status == 200
        assert (body["status"], body["error"]) == ("FAILED", "engine_error: the device is gone")
        assert "output" not in body


async def test_runsync_gives_up_waiting_and_the_job_goes_on(rig: Rig) -> None:
    rig.engine.hold()
    begun = time.monotonic()
    status, body = await rig.call("POST", "/runsync?wait=1000", json={"input": {"prompt": "x"}})
    assert 0.9 < time.monotonic() - begun < 3
    assert (status, body["status"]) == (200, "IN_QUEUE")
    rig.engine.release()
    await rig.until(body["id"], "COMPLETED")


@pytest.mark.parametrize("wait", ["999", "300001", "-5", "soon", "1e4"])
async def test_a_wait_out_of_range_is_refused(rig: Rig, wait: str) -> None:
    status, body = await rig.call("POST", f"/runsync?wait={wait}", json={"input": {"prompt": "x"}})
    assert status == 422
    assert body["error"]["details"][0]["field"] == "wait"
    assert rig.engine.submitted == []


async def test_a_caller_that_goes_away_cancels_nothing(rig: Rig) -> None:
    rig.engine.hold()
    with pytest.raises(asyncio.TimeoutError):
        await rig.call(
            "POST",
            "/runsync",
            json={"input": {"prompt": "x", "request_id": "left"}},
            timeout=aiohttp.ClientTimeout(0.3),
        )
    rig.engine.release()
    await rig.until("left", "COMPLETED")
    assert rig.engine.cancelled == []


async def test_a_long_poll_ends_with_the_job(rig: Rig) -> None:
    rig.engine.hold()
    job_id = (await rig.run())["id"]
    poll = asyncio.create_task(rig.call("GET", f"/status/{job_id}?wait=60000"))
    await asyncio.sleep(0.4)
    assert not poll.done()
    rig.engine.release()
    seen = (await poll)[1]["status"]
    for _ in range(20):
        if seen == "COMPLETED":
            break
        seen = (await rig.call("GET", f"/status/{job_id}?wait=60000"))[1]["status"]
    assert seen == "COMPLETED"


async def test_long_polls_of_a_busy_job_do_not_spin(make_rig: Callable[..., Any]) -> None:
    async with make_rig(FakeEngine(step_s=0.005)) as rig:
        job_id = (await rig.run(num_inference_steps=150))["id"]
        polls = 0
        while (await rig.call("GET", f"/status/{job_id}?wait=10000"))[1]["status"] != "COMPLETED":
            polls += 1
        assert 1 <= polls <= 12


# ---- keys and addresses


@pytest.mark.parametrize("key", [None, "", "Bearer wrong", "Basic test-key"])
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/run"), ("POST", "/runsync"), ("GET", "/status/x"), ("GET", "/health"), ("POST", "/purge-queue")],
)
async def test_without_the_key_nothing_is_served(rig: Rig, key: str | None, method: str, path: str) -> None:
    headers = {} if key is None else {"Authorization": key}
    async with (
        aiohttp.ClientSession() as http,
        http.request(method, rig.queue + path, headers=headers, json={"input": {"prompt": "x"}}) as answer,
    ):
        body = await answer.json()
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert body["error"]["code"] == "unauthorized"
        assert body["error"]["request_id"] == answer.headers["X-Request-ID"]


async def test_the_bare_key_is_taken_as_runpod_takes_it(rig: Rig) -> None:
    async with (
        aiohttp.ClientSession() as http,
        http.get(rig.queue + "/health", headers={"Authorization": "test-key"}) as answer,
    ):
        assert answer.status == 200


async def test_another_endpoints_name_is_not_found(rig: Rig) -> None:
    for path in ("/v2/other/run", "/v2/igen", "/v2/igen/nothing", "/run"):
        async with rig.http.post(rig.base + path, json={"input": {"prompt": "x"}}) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (404, "not_found")


async def test_a_wrong_method_is_told_in_the_envelope(rig: Rig) -> None:
    status, body = await rig.call("GET", "/run")
    assert (status, body["error"]["code"]) == (405, "method_not_allowed")


async def test_an_unknown_job_is_not_found(rig: Rig) -> None:
    for method, path in (("GET", "/status/no"), ("GET", "/stream/no"), ("POST", "/cancel/no"), ("POST", "/retry/no")):
        status, body = await rig.call(method, path)
        assert (status, body["error"]["code"]) == (404, "not_found")


# ---- input


async def test_every_wrong_field_is_named(rig: Rig) -> None:
    status, body = await rig.call(
        "POST",
        "/run",
        json={"input": {"prompt": " ", "width": 100, "seed": 2**32, "colour": "red"}, "policy": {"ttl": 5}},
    )
    assert status == 422
    fields = {problem["field"] for problem in body["error"]["details"]}
    assert fields == {"input.prompt", "input.width", "input.seed", "input.colour", "policy.ttl"}
    assert body["error"]["code"] == "invalid_input"


async def test_this_servers_own_bounds_are_named_all_at_once(make_rig: Callable[..., Any]) -> None:
    async with make_rig(max_side=256, max_steps=20, max_images=2) as rig:
        status, body = await rig.call(
            "POST",
            "/run",
            json={
                "input": {
                    "prompt": "x",
                    "width": 264,
                    "num_inference_steps": 21,
                    "num_images": 3,
                    "image_url": "http://example.org/a.png",
                },
                "webhook": "http://127.0.0.1/hook",
                "s3Config": {
                    "accessId": "a",
                    "accessSecret": "b",
                    "bucketName": "bucket",
                    "endpointUrl": "http://169.254.169.254/",
                },
            },
        )
        assert status == 422
        assert [problem["field"] for problem in body["error"]["details"]] == [
            "input.image",
            "input.width",
            "input.num_inference_steps",
            "input.num_images",
            "webhook",
            "s3Config.endpointUrl",
        ]
        assert rig.engine.submitted == []


async def test_an_unknown_scheduler_names_the_known_ones(rig: Rig) -> None:
    status, body = await rig.call("POST", "/run", json={"input": {"prompt": "x", "scheduler": "heun"}})
    assert status == 422
    assert body["error"]["details"][0]["field"] == "input.scheduler"
    assert "euler_a" in body["error"]["message"]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[]", 422),
        (b"null", 422),
        (b'{"input": null}', 422),
        (b'{"input": {"prompt": "x", "guidance_scale": NaN}}', 422),
        (b'{"input": {"prompt": "x", "guidance_scale": Infinity}}', 422),
        (b'{"input": {"prompt": "x", "seed": ' + b"9" * 5000 + b"}}", 422),
        (b'{"input": {"prompt": "x", "seed": 1.5}}', 422),
        (b'{"input": {"prompt": "x", "seed": true}}', 422),
        (b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 422),
        (b'{"input": {"prompt": "x\\u0000y"}}', 422),
        (b'{"input": {"prompt": "x"}, "webhook": "javascript:alert(1)"}', 422),
    ],
)
async def test_broken_bodies_are_refused_in_the_envelope(rig: Rig, raw: bytes, expected: int) -> None:
    status, body = await rig.call("POST", "/run", data=raw)
    assert status == expected
    assert body["status"] == "error"
    assert body["error"]["message"]
    assert rig.engine.submitted == []


@pytest.mark.parametrize(("path", "limit"), [("/run", 10_000_000), ("/runsync", 20_000_000)])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_its_limit_is_refused(rig: Rig, path: str, limit: int, *, chunked: bool) -> None:
    raw = json.dumps({"input": {"prompt": "x", "pad": "a" * limit}}).encode()

    async def pieces() -> Any:
        for start in range(0, len(raw), 1_000_000):
            yield raw[start : start + 1_000_000]

    status, body = await rig.call("POST", path, data=pieces() if chunked else io.BytesIO(raw))
    assert (status, body["error"]["code"]) == (413, "too_large")


async def test_a_client_that_listens_when_all_is_sent_hears_that_it_was_too_much(rig: Rig) -> None:
    def send() -> tuple[int, Any]:
        connection = http.client.HTTPConnection(URL(rig.base).authority, timeout=30)
        try:
            connection.request("POST", "/v2/igen/run", b" " * 30_000_000, {"Authorization": f"Bearer {KEY}"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    status, body = await asyncio.to_thread(send)
    assert (status, body["error"]["code"]) == (413, "too_large")


async def test_a_body_just_within_the_limit_is_read(rig: Rig) -> None:
    status, body = await rig.call("POST", "/run", data=io.BytesIO(b'{"input": {"prompt": "x"}}' + b" " * 9_999_000))
    assert (status, body["status"]) == (200, "IN_QUEUE")


async def test_a_full_queue_is_429_with_whole_seconds(make_rig: Callable[..., Any]) -> None:
    engine = FakeEngine(max_waiting=2)
    async with make_rig(engine) as rig:
        engine.hold()
        for _ in range(2):
            await rig.run()
        async with rig.http.post(rig.queue + "/run", json={"input": {"prompt": "x", "request_id": "late"}}) as answer:
            body = await answer.json()
            assert answer.status == 429
            assert answer.headers["Retry-After"] == "3"
            assert (body["error"]["code"], body["error"]["retryable"]) == ("queue_full", True)
        engine.release()
        async with asyncio.timeout(5):
            while engine.stats().waiting:
                await asyncio.sleep(0.01)
        assert (await rig.run(request_id="late"))["id"] == "late", "a refused key must not be taken"


# ---- what is not a job


async def test_health_counts(rig: Rig) -> None:
    await rig.call("POST", "/runsync", json={"input": {"prompt": "x"}})
    rig.engine.hold()
    await rig.run()
    status, body = await rig.call("GET", "/health")
    assert status == 200
    assert body["jobs"] == {"completed": 1, "failed": 0, "inProgress": 0, "inQueue": 1, "retried": 0}
    assert {"idle", "running"} <= set(body["workers"])
    assert sum(body["workers"][name] for name in ("idle", "running")) == 1


async def test_ping_needs_no_key_and_says_ready(rig: Rig) -> None:
    async with aiohttp.ClientSession() as http, http.get(rig.base + "/ping") as answer:
        assert answer.status == 200


async def test_info_tells_what_is_loaded(rig: Rig) -> None:
    status, body = await rig.call("GET", "/info")
    assert status == 200
    assert (body["checkpoint"], body["demonstration"]) == ("fake", True)
    assert body["defaults"]["num_inference_steps"] == 4
    assert body["bounds"]["max_images"] == 8
    assert body["bounds"]["max_hires_pixels"] == 4_194_304
    assert "euler" in body["schedulers"]
    assert list(body["checkpoints"]) == ["fake", "other"]
    assert body["checkpoints"]["other"]["schedulers"] == ["ddim"]
    assert body["checkpoints"]["other"]["sha256"] is None, "it has not been loaded"
    assert (body["refiners"], body["loras"]) == (["fake-refiner"], ["red", "blue"])
    assert (body["formats"], "cinematic" in body["styles"]) == (["png", "jpeg", "webp"], True)


async def test_the_correlation_id_comes_back(rig: Rig) -> None:
    async with rig.http.get(rig.queue + "/health", headers={"X-Request-ID": "abc-123"}) as answer:
        assert answer.headers["X-Request-ID"] == "abc-123"
    async with rig.http.get(rig.queue + "/health", headers={"X-Request-ID": "bad id\t{}"}) as answer:
        assert answer.headers["X-Request-ID"] != "bad id\t{}"
