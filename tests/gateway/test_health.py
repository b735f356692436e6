from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.gateway.conftest import RunningGateway, StartGateway
    from tests.support.fake_backend import FakeBackend


@pytest.fixture(autouse=True)
def always_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.health.KEPT_S", -1)


async def test_all_is_well(gateway: RunningGateway) -> None:
    assert (await gateway.request("GET", "/healthz", key=None)).json == {"status": "ok"}
    ready = await gateway.request("GET", "/readyz", key=None)
    assert ready.status == 200
    assert ready.json == {
        "status": "ready",
        "draining": False,
        "checks": {"database": "ok", "store": "ok", "backend": "ok"},
    }
    for path in ("/healthz", "/readyz"):
        assert (await gateway.request("HEAD", path, key=None)).status == 200


async def test_without_a_backend_it_is_degraded_and_serves_what_it_can(
    gateway: RunningGateway, backend: FakeBackend
) -> None:
    url = (await gateway.generate()).json["image_url"].removeprefix("http://pictures.example")
    await backend.kill()
    ready = await gateway.request("GET", "/readyz", key=None)
    assert (ready.status, ready.json["status"]) == (200, "degraded")
    assert ready.json["checks"]["backend"] == "not available"
    assert (await gateway.request("GET", url)).status == 200


async def test_a_backend_that_is_back_closes_the_breaker(gateway: RunningGateway, backend: FakeBackend) -> None:
    await backend.kill()
    for _ in range(5):
        await gateway.generate()
    await backend.start()
    assert gateway.services.breaker.is_open
    assert (await gateway.request("GET", "/readyz", key=None)).json["status"] == "ready"
    assert (await gateway.generate()).status == 200


async def test_a_wrong_backend_key_is_not_ready(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(backend_key="wrong")
    assert (await gateway.request("GET", "/readyz", key=None)).json["checks"]["backend"] == "not available"


async def test_a_store_that_cannot_write_is_503(gateway: RunningGateway) -> None:
    store = gateway.settings.home / "store"
    assert (await gateway.request("GET", "/readyz", key=None)).status == 200
    import shutil

    shutil.rmtree(store)
    store.write_text("in the way")
    ready = await gateway.request("GET", "/readyz", key=None)
    assert (ready.status, ready.json["status"], ready.json["checks"]["store"]) == (503, "not_ready", "not available")
    assert (await gateway.request("GET", "/healthz", key=None)).status == 200


async def test_a_dead_redis_degrades_and_drawing_goes_on(start_gateway: StartGateway) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    gateway = await start_gateway(redis_url=f"redis://127.0.0.1:{port}")
    ready = await gateway.request("GET", "/readyz", key=None)
    assert (ready.status, ready.json["status"]) == (200, "degraded")
    assert ready.json["checks"]["redis"] == "not available"
    assert (await gateway.generate()).status == 200


async def test_while_draining_it_is_not_ready_and_takes_nothing_new(gateway: RunningGateway) -> None:
    gateway.services.lifecycle.drain(60)
    ready = await gateway.request("GET", "/readyz", key=None)
    assert (ready.status, ready.json["draining"]) == (503, True)
    refused = await gateway.generate()
    assert (refused.status, refused.code) == (503, "unavailable")
    assert refused.headers["Retry-After"]


async def test_metrics_count_by_route_pattern(gateway: RunningGateway) -> None:
    await gateway.generate()
    await gateway.generate({"prompt": ""})
    await gateway.request("GET", "/nowhere/1")
    await gateway.request("GET", "/media/generated/x.png")
    text = (await gateway.request("GET", "/metrics", key=None)).body.decode()
    for line in (
        'igen_gateway_requests_total{method="POST",route="/api/generate/",status="200"} 1.0',
        'igen_gateway_requests_total{method="POST",route="/api/generate/",status="422"} 1.0',
        'igen_gateway_requests_total{method="GET",route="unmatched",status="404"} 1.0',
        'igen_gateway_requests_total{method="GET",route="/media/generated/{file}",status="404"} 1.0',
        'igen_gateway_generations_total{outcome="success"} 1.0',
        "igen_gateway_waiting 0.0",
        "igen_gateway_breaker_open 0.0",
    ):
        assert line in text


async def test_the_front_page_names_the_product_and_its_addresses(gateway: RunningGateway) -> None:
    front = await gateway.request("GET", "/", key=None)
    assert front.json["name"] == "IGen"
    assert front.json["generate"] == "POST http://pictures.example/api/generate/"
