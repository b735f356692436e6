"""Webhooks to a real receiver on loopback, which the settings allow by name."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from inference.engine.types import EngineError
from tests.support.fake_engine import FakeEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.inference_rig import Rig


@dataclass
class Receiver:
    """Answers with the scripted statuses, the last one for ever, and keeps what came."""

    statuses: list[int] = field(default_factory=lambda: [200])
    delay_s: float = 0.0
    port: int = 0
    location: str = ""
    bodies: list[Any] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?token=1"

    @property
    def allowed(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def take(self, request: web.Request) -> web.Response:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(self.delay_s)
        self.at_once -= 1
        self.bodies.append(await request.json())
        status = self.statuses[min(len(self.bodies), len(self.statuses)) - 1]
        return web.Response(status=status, headers={"Location": self.location} if self.location else {})

    async def received(self, count: int) -> list[Any]:
        async with asyncio.timeout(10):
            while len(self.bodies) < count:
                await asyncio.sleep(0.01)
        return self.bodies


@asynccontextmanager
async def receiving(*statuses: int, delay_s: float = 0.0) -> AsyncIterator[Receiver]:
    receiver = Receiver(list(statuses) or [200], delay_s)
    app = web.Application()
    app.router.add_post("/hook", receiver.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.port = runner.addresses[0][1]
    try:
        yield receiver
    finally:
        await runner.cleanup()


async def submit(rig: Rig, url: str, prompt: str = "x", **fields: Any) -> str:
    status, body = await rig.call("POST", "/run", json={"input": {"prompt": prompt, **fields}, "webhook": url})
    assert status == 200, body
    return str(body["id"])


def outcomes(rig: Rig) -> dict[str, float]:
    samples = (sample for metric in rig.service.metrics.webhooks.collect() for sample in metric.samples)
    return {sample.labels["outcome"]: sample.value for sample in samples if sample.name.endswith("_total")}


async def test_the_answer_is_posted_when_the_job_is_over(make_rig: Callable[..., Any]) -> None:
    async with receiving() as receiver, make_rig(fetch_allow_hosts=receiver.allowed) as rig:
        job_id = await submit(rig, receiver.url)
        (body,) = await receiver.received(1)
        assert body == (await rig.call("GET", f"/status/{job_id}"))[1]
        assert body["output"]["images"]


async def test_failures_and_cancels_are_told_too(make_rig: Callable[..., Any]) -> None:
    engine = FakeEngine(failures={"bad": EngineError("no")})
    async with receiving() as receiver, make_rig(engine, fetch_allow_hosts=receiver.allowed) as rig:
        await submit(rig, receiver.url, "bad")
        assert (await receiver.received(1))[0]["error"] == "engine_error: no"
        engine.hold()
        job_id = await submit(rig, receiver.url)
        await rig.call("POST", f"/cancel/{job_id}")
        assert (await receiver.received(2))[1]["status"] == "CANCELLED"


@pytest.mark.parametrize(
    ("statuses", "sent", "outcome"),
    [((500, 503, 200), 3, "delivered"), ((404, 404, 404), 3, "failed"), ((302, 200), 2, "delivered")],
)
async def test_two_retries_and_no_more(
    make_rig: Callable[..., Any], statuses: tuple[int, ...], sent: int, outcome: str
) -> None:
    async with (
        receiving(*statuses) as receiver,
        make_rig(fetch_allow_hosts=receiver.allowed, webhook_retry_s=0.05) as rig,
    ):
        await submit(rig, receiver.url)
        await receiver.received(sent)
        await asyncio.sleep(0.3)
        assert len(receiver.bodies) == sent
        assert outcomes(rig) == {outcome: 1}


async def test_a_receiver_that_never_answers_is_given_up(make_rig: Callable[..., Any]) -> None:
    async with (
        receiving(delay_s=0.5) as receiver,
        make_rig(fetch_allow_hosts=receiver.allowed, webhook_retry_s=0, webhook_timeout_s=0.05) as rig,
    ):
        await submit(rig, receiver.url)
        async with asyncio.timeout(5):
            while outcomes(rig) != {"failed": 1}:
                await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/hook",
        "http://localhost/hook",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/hook",
        "http://2130706433/hook",
        "http://10.0.0.1/hook",
        "http://example.org:22/hook",
        "file:///etc/passwd",
        "gopher://example.org/",
        "http://user:password@example.org/",
    ],
)
async def test_private_addresses_are_refused_at_once(rig: Rig, url: str) -> None:
    status, body = await rig.call("POST", "/run", json={"input": {"prompt": "x"}, "webhook": url})
    assert status == 422
    assert [problem["field"] for problem in body["error"]["details"]] == ["webhook"]
    assert rig.engine.submitted == []


async def test_a_redirect_to_a_private_address_is_not_followed(make_rig: Callable[..., Any]) -> None:
    async with receiving() as inside, receiving(307) as receiver, make_rig(fetch_allow_hosts=receiver.allowed) as rig:
        receiver.location = inside.url
        job_id = await submit(rig, receiver.url)
        async with asyncio.timeout(5):
            while not outcomes(rig):
                await asyncio.sleep(0.01)
        assert outcomes(rig) == {"blocked": 1}
        assert inside.bodies == []
        await rig.until(job_id, "COMPLETED")


async def test_deliveries_are_bounded_at_once_and_in_number(make_rig: Callable[..., Any]) -> None:
    async with (
        receiving(delay_s=0.2) as receiver,
        make_rig(fetch_allow_hosts=receiver.allowed, webhook_concurrency=2, webhook_queue=5) as rig,
    ):
        rig.engine.hold()
        for _ in range(8):
            await submit(rig, receiver.url)
        await rig.call("POST", "/purge-queue")  # ends all eight at the same moment
        async with asyncio.timeout(10):
            while sum(outcomes(rig).values()) < 8:
                await asyncio.sleep(0.02)
        assert outcomes(rig) == {"delivered": 5, "dropped": 3}
        assert receiver.most_at_once == 2


async def test_a_job_is_answered_whatever_its_webhook_does(make_rig: Callable[..., Any]) -> None:
    async with make_rig(fetch_allow_hosts="127.0.0.1:9", webhook_retry_s=0) as rig:
        job_id = await submit(rig, "http://127.0.0.1:9/nobody-listens")
        assert (await rig.until(job_id, "COMPLETED"))["output"]["images"]
