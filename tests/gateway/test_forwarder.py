"""What becomes of a request when the backend is down, slow, full, failing or hostile."""

from __future__ import annotations

import asyncio
import base64
import time
from typing import TYPE_CHECKING, Any

import aiohttp.web
import pytest

from tests.gateway.conftest import until
from tests.support.fake_backend import KEY, FakeBackend, Fault, data_uri, png

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.gateway.conftest import RunningGateway, StartGateway


async def ended(gateway: RunningGateway) -> tuple[str, str | None]:
    row = await gateway.row()
    return row.state, row.error_code


async def test_a_backend_that_is_down_is_503_at_once(gateway: RunningGateway, backend: FakeBackend) -> None:
    await backend.kill()
    began = time.monotonic()
    reply = await gateway.generate()
    assert time.monotonic() - began < 2
    assert (reply.status, reply.code) == (503, "backend_unavailable")
    assert int(reply.headers["Retry-After"]) >= 1
    assert reply.json["error"]["retryable"] is True
    assert await ended(gateway) == ("failed", "backend_unavailable")


async def test_a_backend_killed_in_mid_request_is_502_within_seconds_and_the_next_request_works(
    gateway: RunningGateway, backend: FakeBackend
) -> None:
    backend.seconds = 30
    asked = asyncio.create_task(gateway.generate())
    await until(lambda: backend.jobs)
    began = time.monotonic()
    await backend.kill()
    reply = await asked
    assert time.monotonic() - began < 4
    assert (reply.status, reply.code) == (502, "backend_lost")
    assert await ended(gateway) == ("failed", "backend_lost")
    backend.seconds = 0
    await backend.start()
    assert (await gateway.generate()).status == 200


@pytest.mark.parametrize("fault", [Fault.DROP_BEFORE, Fault.DROP_AFTER])
async def test_a_lost_answer_is_asked_for_again_with_the_same_id(
    gateway: RunningGateway, backend: FakeBackend, fault: Fault
) -> None:
    backend.submit_faults.extend([fault, fault])
    reply = await gateway.generate()
    assert reply.status == 200
    assert set(backend.submissions) == {reply.json["id"]}
    assert backend.drawn == {reply.json["id"]: 1}


async def test_answers_lost_again_and_again_end_the_row(gateway: RunningGateway, backend: FakeBackend) -> None:
    backend.submit_faults.extend([Fault.DROP_BEFORE] * 10)
    reply = await gateway.generate()
    assert (reply.status, reply.code) == (502, "backend_lost")
    assert len(backend.submit_faults) == 7


@pytest.mark.parametrize("fault", [Fault.DROP_BEFORE, Fault.ERROR_500, Fault.FULL_429])
async def test_a_missed_status_is_asked_again(
    gateway: RunningGateway, backend: FakeBackend, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.forwarder.WAIT_S", 0.1)
    backend.seconds = 0.5
    backend.status_faults.append(fault)
    assert (await gateway.generate()).status == 200
    assert not backend.status_faults


async def test_a_job_unknown_after_a_restart_is_lost(
    gateway: RunningGateway, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.forwarder.WAIT_S", 0.1)
    backend.seconds = 30
    asked = asyncio.create_task(gateway.generate())
    await until(lambda: backend.jobs)
    await asyncio.sleep(0.2)
    backend.jobs.clear()
    reply = await asked
    assert (reply.status, reply.code) == (502, "backend_lost")
    assert len(backend.submissions) == 1


async def test_slower_than_the_limit_is_cancelled_and_504(start_gateway: StartGateway, backend: FakeBackend) -> None:
    gateway = await start_gateway(generation_timeout=0.5)
    backend.seconds = 30
    reply = await gateway.generate()
    assert (reply.status, reply.code) == (504, "generation_timeout")
    assert backend.cancelled == [reply.json["id"]]
    assert await ended(gateway) == ("failed", "generation_timeout")


async def test_a_backend_that_accepts_and_says_nothing_is_504(
    start_gateway: StartGateway, backend: FakeBackend
) -> None:
    gateway = await start_gateway(generation_timeout=0.5)
    backend.submit_faults.append(Fault.HANG)
    assert (await gateway.generate()).status == 504


async def test_the_backend_is_told_the_limit(start_gateway: StartGateway, backend: FakeBackend) -> None:
    gateway = await start_gateway(generation_timeout=90)
    await gateway.generate()
    (job,) = backend.jobs.values()
    assert job.policy == {"executionTimeout": 90_000, "ttl": 180_000}


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (Fault.ERROR_500, 502, "backend_failed"),
        (Fault.FULL_429, 503, "backend_full"),
        (Fault.LOADING_503, 503, "backend_full"),
        (Fault.GARBAGE, 502, "backend_bad_answer"),
        (Fault.NOT_AN_ANSWER, 502, "backend_bad_answer"),
        (Fault.REDIRECT, 502, "backend_failed"),
    ],
)
async def test_a_refused_submission_ends_the_row(
    gateway: RunningGateway, backend: FakeBackend, fault: Fault, status: int, code: str
) -> None:
    backend.submit_faults.append(fault)
    reply = await gateway.generate()
    assert (reply.status, reply.code) == (status, code)
    assert reply.headers["Retry-After"] == ("7" if status == 503 else "5")
    assert b"Traceback" not in reply.body
    assert await ended(gateway) == ("failed", code)


async def test_a_backend_that_loads_is_not_called_full(gateway: RunningGateway, backend: FakeBackend) -> None:
    for fault, told in ((Fault.LOADING_503, b"still loading"), (Fault.FULL_429, b"takes no more jobs")):
        backend.submit_faults.append(fault)
        assert told in (await gateway.generate()).body


@pytest.mark.parametrize(
    ("sent", "told"), [(None, "5"), ("soon", "5"), ("0", "1"), ("99999", "3600"), ("9" * 5000, "5")]
)
async def test_retry_after_is_made_plausible(
    gateway: RunningGateway, backend: FakeBackend, sent: str | None, told: str
) -> None:
    backend.retry_after = sent
    backend.submit_faults.append(Fault.FULL_429)
    assert (await gateway.generate()).headers["Retry-After"] == told


async def test_the_backends_422_keeps_its_fields(gateway: RunningGateway, backend: FakeBackend) -> None:
    backend.submit_faults.append(Fault.INVALID_422)
    reply = await gateway.generate()
    assert (reply.status, reply.code) == (422, "invalid_input")
    assert reply.json["error"]["details"] == [{"field": "width", "reason": "at most 1024 here"}]
    assert reply.json["error"]["message"] == "width: at most 1024 here"


async def test_a_refused_key_is_502_and_does_not_leak(
    start_gateway: StartGateway, backend: FakeBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = await start_gateway(backend_key="wrong-key-of-ours")
    reply = await gateway.generate()
    assert (reply.status, reply.code) == (502, "backend_auth")
    output = capsys.readouterr()
    for secret in ("wrong-key-of-ours", KEY):
        assert secret not in reply.body.decode()
        assert secret not in output.out + output.err


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("invalid_input: width: must be at most 512", (422, "invalid_input", "width")),
        ("invalid_input: input.width: too large; seed: too small", (422, "invalid_input", "width")),
        ("unknown_scheduler: no scheduler is called x", (422, "unknown_scheduler", "scheduler")),
        ("out_of_memory: too large for this device", (502, "backend_failed", None)),
        ("Traceback (most recent call last): File /srv/secret.py", (502, "backend_failed", None)),
        ('{"error_type": "X", "error_traceback": "/srv/secret.py"}', (502, "backend_failed", None)),
    ],
)
async def test_a_failed_job_by_its_error(
    gateway: RunningGateway, backend: FakeBackend, error: str, expected: tuple[int, str, str | None]
) -> None:
    backend.fail_with = error
    reply = await gateway.generate()
    assert (reply.status, reply.code, reply.json["error"]["param"]) == expected
    assert b"secret.py" not in reply.body
    assert await ended(gateway) == ("failed", expected[1])


@pytest.mark.parametrize(
    ("state", "status", "code"),
    [("CANCELLED", 502, "backend_cancelled"), ("TIMED_OUT", 504, "generation_timeout")],
)
async def test_a_job_that_ended_otherwise(
    gateway: RunningGateway, backend: FakeBackend, state: str, status: int, code: str
) -> None:
    backend.end_as = state
    reply = await gateway.generate()
    assert (reply.status, reply.code) == (status, code)


WHOLE = png(64, 64, 1)

HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no output": lambda _: None,
    "a list": lambda _: [1],
    "no images": lambda output: {**output, "images": []},
    "too many images": lambda output: {**output, "images": output["images"] * 2},
    "images of numbers": lambda output: {**output, "images": [5]},
    "bad base64": lambda output: {**output, "images": ["data:image/png;base64,@@@"]},
    "another kind": lambda output: {**output, "images": ["data:image/svg+xml;base64,PHN2Zz4="]},
    "bare base64": lambda output: {**output, "images": [base64.b64encode(WHOLE).decode()]},
    "html": lambda output: {**output, "images": [data_uri(b"<html><script>alert(1)</script>")]},
    "cut off": lambda output: {**output, "images": [data_uri(WHOLE[:-5])]},
    "with a tail": lambda output: {**output, "images": [data_uri(WHOLE + b"<script>")]},
    "another size": lambda output: {**output, "images": [data_uri(png(32, 32))]},
    "a file": lambda output: {**output, "images": ["file:///etc/passwd"]},
    "a private link": lambda output: {**output, "images": ["http://127.0.0.1:9/x.png"]},
    "the metadata service": lambda output: {**output, "images": ["http://169.254.169.254/latest"]},
    "a huge receipt": lambda output: {**output, "receipt": {"x": "y" * 140_000}},
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_hostile_output_is_502_and_the_row_ends(
    gateway: RunningGateway, backend: FakeBackend, change: Callable[[dict[str, Any]], Any]
) -> None:
    backend.change_output = change
    reply = await gateway.generate()
    assert (reply.status, reply.code) == (502, "backend_bad_answer")
    assert await ended(gateway) == ("failed", "backend_bad_answer")


async def test_an_answer_over_the_limit_is_502(start_gateway: StartGateway, backend: FakeBackend) -> None:
    gateway = await start_gateway(backend_max_answer_bytes=4096)
    backend.change_output = lambda output: {**output, "more": "x" * 10_000}
    reply = await gateway.generate()
    assert (reply.status, reply.code) == (502, "backend_bad_answer")


async def test_worker_sdxls_plain_output_is_enough(gateway: RunningGateway, backend: FakeBackend) -> None:
    backend.change_output = lambda output: {
        "images": output["images"],
        "image_url": output["images"][0],
        "seed": output["seed"],
    }
    answer = (await gateway.generate({"prompt": "x", "seed": 5, "num_images": 2})).json
    assert (answer["seeds"], answer["width"], answer["checkpoint"]) == ([5, 6], 64, None)


async def test_five_failures_in_a_row_open_the_breaker_and_a_probe_closes_it(
    gateway: RunningGateway, backend: FakeBackend
) -> None:
    await backend.kill()
    for _ in range(5):
        assert (await gateway.generate()).status == 503
    assert gateway.services.breaker.is_open
    await backend.start()
    refused = await gateway.generate()
    assert (refused.status, refused.code) == (503, "backend_unavailable")
    assert refused.headers["Retry-After"]
    assert backend.submissions == []
    await asyncio.sleep(1.1)
    assert (await gateway.generate()).status == 200


async def test_a_caller_who_goes_away_cancels_nothing(gateway: RunningGateway, backend: FakeBackend) -> None:
    backend.seconds = 0.6
    asked = asyncio.create_task(gateway.generate(idempotency_key="k"))
    await until(lambda: backend.submissions)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert len(backend.submissions) == 1

    async def completed() -> bool:
        return (await gateway.row()).state == "completed"

    await until(completed)
    assert backend.cancelled == []
    replay = await gateway.generate(idempotency_key="k")
    assert (replay.status, replay.headers["Idempotency-Replayed"]) == (200, "true")


async def test_a_caller_whose_connection_breaks_cancels_nothing(
    gateway: RunningGateway, backend: FakeBackend
) -> None:
    backend.seconds = 0.5
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = b'{"prompt": "x"}'
    writer.write(
        b"POST /api/generate/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        + f"Authorization: Bearer {gateway.key}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    await until(lambda: backend.jobs)
    writer.transport.abort()
    assert await reader.read() == b""

    async def completed() -> bool:
        return (await gateway.row()).state == "completed"

    await until(completed)


async def test_a_store_that_refuses_ends_the_row(
    gateway: RunningGateway, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.pictures.STORE_PAUSES_S", (0.01,))
    store = gateway.settings.home / "store"
    if store.is_dir():
        store.rmdir()
    store.write_text("a file where the folder should be")
    reply = await gateway.generate()
    assert (reply.status, reply.code) == (503, "store_unavailable")
    assert await ended(gateway) == ("failed", "store_unavailable")


async def test_an_unexpected_fault_in_the_job_ends_the_row(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object) -> None:
        raise RuntimeError("internal detail")

    monkeypatch.setattr("gateway.forwarder.failure_of", explode)
    reply = await gateway.generate()
    assert (reply.status, reply.code) == (500, "internal_error")
    assert b"internal detail" not in reply.body
    assert await ended(gateway) == ("failed", "internal_error")


class TestRunpod:
    """RunPod's rules: its own job ids, no answer held back, nothing sent twice."""

    @pytest.fixture
    async def backend(self) -> AsyncIterator[FakeBackend]:
        fake = FakeBackend(runpod=True)
        await fake.start()
        yield fake
        await fake.stop()

    @pytest.fixture
    async def gateway(self, start_gateway: StartGateway) -> RunningGateway:
        return await start_gateway(backend_kind="runpod")

    async def test_a_job_is_queued_and_polled(self, gateway: RunningGateway, backend: FakeBackend) -> None:
        backend.seconds = 0.4
        reply = await gateway.generate()
        assert reply.status == 200
        row = await gateway.row()
        assert (row.backend_kind, row.backend_job_id) == ("runpod", "rp-0")
        assert backend.jobs["rp-0"].input["request_id"] == row.id

    @pytest.mark.parametrize(
        "fault", [Fault.DROP_BEFORE, Fault.DROP_AFTER, Fault.ERROR_500], ids=lambda fault: fault.name
    )
    async def test_a_lost_submission_is_never_sent_again(
        self, gateway: RunningGateway, backend: FakeBackend, fault: Fault
    ) -> None:
        backend.submit_faults.append(fault)
        reply = await gateway.generate()
        assert (reply.status, reply.code) == (502, "submission_unknown")
        assert len(backend.submissions) == (1 if fault is Fault.DROP_AFTER else 0)
        assert await ended(gateway) == ("failed", "submission_unknown")

    async def test_no_connection_at_all_is_503(self, gateway: RunningGateway, backend: FakeBackend) -> None:
        await backend.kill()
        assert (await gateway.generate()).code == "backend_unavailable"

    async def test_missed_polls_are_outlived(self, gateway: RunningGateway, backend: FakeBackend) -> None:
        backend.status_faults.extend([Fault.DROP_BEFORE, Fault.ERROR_500, Fault.FULL_429])
        assert (await gateway.generate()).status == 200

    async def test_an_expired_job_is_lost(self, gateway: RunningGateway, backend: FakeBackend) -> None:
        backend.seconds = 30
        asked = asyncio.create_task(gateway.generate())
        await until(lambda: backend.jobs)
        backend.jobs.clear()
        assert (await asked).code == "backend_lost"

    async def test_uploaded_pictures_are_fetched(self, start_gateway: StartGateway, backend: FakeBackend) -> None:
        async def picture(request: aiohttp.web.Request) -> aiohttp.web.Response:
            there = request.path == "/p.png"
            return aiohttp.web.Response(body=png(64, 64, 3) if there else b"", status=200 if there else 404)

        app = aiohttp.web.Application()
        app.router.add_get("/{name}", picture)
        runner = aiohttp.web.AppRunner(app)
        await runner.setup()
        await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
        bucket = f"127.0.0.1:{runner.addresses[0][1]}"
        gateway = await start_gateway(backend_kind="runpod", fetch_allow_hosts=bucket)
        backend.change_output = lambda output: {**output, "images": [f"http://{bucket}/p.png"]}
        reply = await gateway.generate()
        path = reply.json["image_url"].removeprefix("http://pictures.example")
        assert (await gateway.request("GET", path)).body == png(64, 64, 3)
        backend.change_output = lambda output: {**output, "images": [f"http://{bucket}/gone.png"]}
        assert (await gateway.generate()).code == "backend_bad_answer"
        await runner.cleanup()
