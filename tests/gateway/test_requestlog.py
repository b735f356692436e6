from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from gateway.metrics import Metrics
from gateway.requestlog import RequestLogWriter, RequestRecord
from models.db import DatabaseError
from tests.support.fake_backend import KEY

if TYPE_CHECKING:
    from tests.gateway.conftest import RunningGateway
    from tests.support.fake_backend import FakeBackend


@pytest.fixture
def database(either_database: str) -> str:
    return either_database


async def test_who_what_when_how_long_and_outcome(gateway: RunningGateway, backend: FakeBackend) -> None:
    reply = await gateway.generate({"prompt": "a lamp", "seed": 3}, headers={"X-Request-ID": "r1"})
    (row,) = await gateway.log(1)
    assert (row.method, row.path, row.status, row.error_code) == ("POST", "/api/generate/", 200, None)
    assert (row.request_id, row.generation_id, row.client) == ("r1", reply.json["id"], "127.0.0.1")
    assert row.key_id == gateway.key.split("_")[1]
    assert row.owner_id == (await gateway.row()).owner_id
    assert 0 < row.duration_ms < 60_000
    assert row.request_body == {"prompt": "a lamp", "seed": 3}
    assert row.response_body is not None
    assert row.response_body["id"] == reply.json["id"]


async def test_failures_are_logged_with_their_code(gateway: RunningGateway, backend: FakeBackend) -> None:
    await gateway.generate({"prompt": ""})
    await gateway.generate(key=None)
    backend.fail_with = "out_of_memory: too large"
    await gateway.generate()
    await gateway.request("GET", "/nowhere")
    rows = await gateway.log(4)
    assert [(row.status, row.error_code) for row in rows] == [
        (422, "invalid_input"),
        (401, "unauthorized"),
        (502, "backend_failed"),
        (404, "not_found"),
    ]
    assert rows[1].owner_id is None


async def test_a_picture_that_was_seen_is_logged_without_its_capability(gateway: RunningGateway) -> None:
    url = (await gateway.generate()).json["image_url"]
    name = url.rsplit("/", maxsplit=1)[1].removesuffix(".png")
    await gateway.request("GET", f"/media/generated/{name}.png?x={name}")
    rows = await gateway.log(2)
    assert rows[1].path == f"/media/generated/{name[:6]}<...>.png"
    assert rows[1].generation_id == rows[0].generation_id
    assert name not in json.dumps([row.response_body for row in rows])


async def test_no_secret_and_no_picture_reaches_any_log(
    gateway: RunningGateway, backend: FakeBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = "data:image/png;base64," + "iVBORw0KGgo" * 200
    await gateway.generate({"prompt": f"Bearer {gateway.key} in a prompt", "image_url": picture})
    await gateway.generate({"prompt": "x", "api_key": "hunter2", "list": [picture, {"password": "hunter2"}]})
    await gateway.request("GET", f"/api/generations/?limit=1&token={gateway.key}")
    await gateway.request("GET", f"/{gateway.key}")
    await gateway.generate()
    rows = await gateway.log(5)
    kept = json.dumps([[row.path, row.query, row.request_body, row.response_body] for row in rows])
    output = capsys.readouterr()
    for secret in (gateway.key, gateway.key.rsplit("_", maxsplit=1)[1], KEY, "hunter2", "iVBORw0KGgo"):
        assert secret not in kept
        assert secret not in output.out + output.err
    assert "in a prompt" in kept


async def test_bodies_that_a_database_could_not_keep(gateway: RunningGateway) -> None:
    raw = b'{"prompt": "a\\u0000b", "x\\u0000": ["\\u0000"], "guidance_scale": NaN}'
    await gateway.request("POST", "/api/generate/", data=raw, headers={"Content-Type": "application/json"})
    await gateway.request("GET", "/%00%ff")
    rows = await gateway.log(2)
    assert rows[0].request_body == {"prompt": "a\ufffdb", "x\ufffd": ["\ufffd"], "guidance_scale": "nan"}
    assert "\0" not in rows[1].path


async def test_health_and_metrics_are_not_logged(gateway: RunningGateway) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/"):
        await gateway.request("GET", path, key=None)
    await asyncio.sleep(0.2)
    assert [row.path for row in await gateway.log(1)] == ["/"]


def record(number: int, **values: object) -> RequestRecord:
    made = RequestRecord(f"r{number}", "GET", "/x", "", "127.0.0.1")
    for name, value in values.items():
        setattr(made, name, value)
    return made


async def test_what_is_queued_at_the_end_is_written(gateway: RunningGateway) -> None:
    writer = RequestLogWriter(gateway.services.db, Metrics())
    writer.begin()
    for number in range(500):
        await writer.put(record(number))
    await writer.stop()
    assert [row.request_id for row in await gateway.log(500)] == [f"r{number}" for number in range(500)]


async def test_a_record_that_the_database_refuses_takes_no_other_with_it(
    gateway: RunningGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = Metrics()
    writer = RequestLogWriter(gateway.services.db, metrics)
    writer.begin()
    for number in range(3):
        await writer.put(record(number, status=None if number == 1 else 200))
    await writer.stop()
    assert [row.request_id for row in await gateway.log(2)] == ["r0", "r2"]
    assert b"igen_gateway_log_lost_total 1.0" in metrics.text()
    assert "request_log_lost" in capsys.readouterr().out


async def test_while_the_database_is_away_records_wait_and_a_full_queue_holds_callers(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("QUEUE", 3), ("BATCH", 2), ("RETRY_S", 0.05), ("FULL_WAIT_S", 0.2)):
        monkeypatch.setattr(f"gateway.requestlog.{name}", value)
    db = gateway.services.db
    real, away = db.write, [True]

    def write() -> object:
        if away[0]:
            raise DatabaseError
        return real()

    monkeypatch.setattr(db, "write", write)
    writer = RequestLogWriter(db, Metrics())
    writer.begin()
    began = asyncio.get_running_loop().time()
    for number in range(6):
        await writer.put(record(number))
        await asyncio.sleep(0.03)
    assert asyncio.get_running_loop().time() - began > 0.2  # the last had to wait
    assert capsys.readouterr().out.count("request_log_lost") == 1  # and was not lost silently
    away[0] = False
    await writer.stop()
    assert [row.request_id for row in await gateway.log(5)] == ["r0", "r1", "r2", "r3", "r4"]
