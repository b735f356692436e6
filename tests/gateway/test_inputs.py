"""Pictures that stand in a request: what keeps them, what shows them, how long they last."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from sqlalchemy import update

from gateway.inputs import input_key, shown, take_inputs
from gateway.naming import named
from gateway.orphans import Orphans
from models.db import utc_now
from models.errors import InvalidInputError
from models.tables import Generation
from models.wire import parse_input
from tests.gateway.conftest import PROMPT, until
from tests.support.fake_backend import FakeBackend, png

if TYPE_CHECKING:
    from tests.gateway.conftest import RunningGateway, StartGateway
    from tests.support.inference_rig import Rig

FILE = png(64, 64, 77)
BASE64 = base64.b64encode(FILE).decode()
SHA256 = hashlib.sha256(FILE).hexdigest()


def kept_in(gateway: RunningGateway) -> dict[str, bytes]:
    folder = gateway.settings.home / "store" / "inputs"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def everything_written(gateway: RunningGateway, requests: int) -> str:
    """All rows, as a database would list them, and the request log."""
    rows = [json.dumps([row.input, row.output, row.error]) for row in await gateway.rows()]
    log = [json.dumps([row.request_body, row.response_body]) for row in await gateway.log(requests)]
    return "\n".join([*rows, *log])


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("image", BASE64),
        ("init_image", f"data:image/png;base64,{BASE64}"),
        ("image_url", "\n".join(BASE64[at : at + 76] for at in range(0, len(BASE64), 76))),
    ],
)
async def test_a_picture_reaches_the_backend_and_no_row_or_log(
    gateway: RunningGateway, backend: FakeBackend, capsys: pytest.CaptureFixture[str], name: str, sent: str
) -> None:
    reply = await gateway.generate({**PROMPT, name: sent, "mask_image": BASE64, "strength": 0.4})
    assert reply.status == 200
    generation_id = reply.json["id"]
    (job,) = backend.jobs.values()
    assert base64.b64decode(job.input["image"]) == base64.b64decode(job.input["mask"]) == FILE
    assert job.input["strength"] == 0.4
    assert kept_in(gateway) == {f"{generation_id}/image": FILE, f"{generation_id}/mask": FILE}
    told = (await gateway.request("GET", f"/api/generations/{generation_id}")).json
    assert told["input"]["image"] == told["input"]["mask"] == {"sha256": SHA256, "bytes": len(FILE)}
    assert (await gateway.request("GET", "/api/generations/")).json["generations"][0] == told
    output = capsys.readouterr()
    for text in (await everything_written(gateway, 3), output.out, output.err):
        assert BASE64[:60] not in text
        assert "iVBORw0KGgo" not in text


async def test_a_picture_by_its_address_is_passed_on(gateway: RunningGateway, backend: FakeBackend) -> None:
    link = "https://shop.example/a.png?X-Amz-Signature=0123456789abcdef"
    assert (await gateway.generate({**PROMPT, "image_url": link})).status == 200
    (job,) = backend.jobs.values()
    assert job.input["image"] == link
    assert kept_in(gateway) == {}
    (logged,) = await gateway.log()
    assert logged.request_body is not None
    assert logged.request_body["image_url"] == "https://shop.example/a.png?<...>"


@pytest.mark.parametrize(
    ("sent", "field"),
    [({"image": "no base64!"}, "image"), ({"image_url": "data:image/png,abc"}, "image"), ({"mask": "é"}, "mask")],
)
async def test_what_is_no_picture_is_422_and_makes_no_row(
    gateway: RunningGateway, sent: dict[str, str], field: str
) -> None:
    reply = await gateway.generate({**PROMPT, **sent})
    assert (reply.status, reply.code, reply.json["error"]["param"]) == (422, "invalid_input", field)
    assert await gateway.rows() == []
    assert kept_in(gateway) == {}


async def test_the_same_key_with_another_picture_is_a_conflict(gateway: RunningGateway, backend: FakeBackend) -> None:
    body = {**PROMPT, "image": BASE64}
    first = await gateway.generate(body, idempotency_key="k")
    again = await gateway.generate({**PROMPT, "init_image": f"data:image/png;base64,{BASE64}"}, idempotency_key="k")
    assert (again.status, again.json["id"]) == (200, first.json["id"])
    assert again.headers["Idempotency-Replayed"] == "true"
    other = {**PROMPT, "image": base64.b64encode(png(64, 64, 78)).decode()}
    assert (await gateway.generate(other, idempotency_key="k")).code == "idempotency_conflict"
    assert len(backend.submissions) == 1
    assert len(kept_in(gateway)) == 1


async def test_twins_with_one_key_leave_one_picture(gateway: RunningGateway, backend: FakeBackend) -> None:
    backend.seconds = 0.3
    body = {**PROMPT, "image": BASE64}
    replies = await asyncio.gather(*(gateway.generate(body, idempotency_key="k") for _ in range(5)))
    assert {reply.status for reply in replies} == {200}
    (row,) = await gateway.rows()
    assert list(kept_in(gateway)) == [f"{row.id}/image"]
    assert backend.drawn == {row.id: 1}


async def test_a_job_taken_over_still_has_its_picture(
    start_gateway: StartGateway, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await start_gateway()
    held = asyncio.Event()

    async def hold() -> None:
        held.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(first.services.breaker, "admit", hold)
    asked = asyncio.create_task(first.generate({**PROMPT, "image": BASE64}))
    await held.wait()
    await first.crash()
    second = await start_gateway()

    async def completed() -> bool:
        return (await second.row()).state == "completed"

    await until(completed)
    (job,) = backend.jobs.values()
    assert base64.b64decode(job.input["image"]) == FILE
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)


async def test_a_picture_that_is_gone_before_it_was_sent(
    gateway: RunningGateway, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = gateway.services.inputs.put

    async def put_and_lose(generation_id: str, files: dict[str, bytes]) -> None:
        await real(generation_id, files)
        for field in files:
            await gateway.services.store.delete(input_key(generation_id, field))

    monkeypatch.setattr(gateway.services.inputs, "put", put_and_lose)
    reply = await gateway.generate({**PROMPT, "image": BASE64}, idempotency_key="k")
    assert (reply.status, reply.code) == (503, "input_unavailable")
    assert backend.submissions == []
    monkeypatch.setattr(gateway.services.inputs, "put", real)
    assert (await gateway.generate({**PROMPT, "image": BASE64}, idempotency_key="k")).status == 200


async def test_a_store_that_takes_nothing_is_503_without_a_row(gateway: RunningGateway) -> None:
    store = gateway.settings.home / "store"
    if store.is_dir():
        store.rmdir()
    store.write_text("a file where the folder should be")
    reply = await gateway.generate({**PROMPT, "image": BASE64})
    assert (reply.status, reply.code) == (503, "store_unavailable")
    assert await gateway.rows() == []


async def test_a_failed_job_leaves_no_picture(gateway: RunningGateway, backend: FakeBackend) -> None:
    backend.fail_with = "out_of_memory: too large"
    assert (await gateway.generate({**PROMPT, "image": BASE64})).status == 502
    await until(lambda: not kept_in(gateway))


async def test_the_orphan_sweep_keeps_those_of_rows(gateway: RunningGateway) -> None:
    services = gateway.services
    generation_id = (await gateway.generate({**PROMPT, "image": BASE64})).json["id"]
    mine, nobodys = input_key(generation_id, "image"), input_key("gen_00000000000000000000000000", "image")
    await services.store.put(nobodys, b"x", media_type="application/octet-stream")
    async with services.db.read() as session:
        assert await named(session, [mine, nobodys]) == {mine}

    async def ours() -> bool:
        return True

    later = Orphans(services.db, services.store, clock=lambda: utc_now() + timedelta(days=2))
    assert await later.sweep(ours) == 1
    assert await services.store.exists(mine)
    async with services.db.write() as session:
        await session.execute(update(Generation).values(state="failed"))
    assert await later.sweep(ours) == 1
    assert not await services.store.exists(mine)


async def test_megabytes_go_through(drawing: RunningGateway, rig: Rig) -> None:
    """A photograph's size, through a real server, which reads it."""
    buffer = io.BytesIO()
    Image.effect_noise((1600, 1600), 90).convert("RGB").save(buffer, "PNG", compress_level=1)
    sent = base64.b64encode(buffer.getvalue()).decode()
    assert 5_000_000 < len(sent) < drawing.settings.max_generate_bytes
    reply = await drawing.generate({**PROMPT, "image": sent, "width": 64, "height": 64, "num_inference_steps": 2})
    assert reply.status == 200, reply.json
    assert reply.json["receipt"]["init_sha256"] == hashlib.sha256(buffer.getvalue()).hexdigest()
    assert rig.engine.drawn[0].init is not None


async def test_a_picture_that_the_backend_cannot_read_is_422(drawing: RunningGateway) -> None:
    reply = await drawing.generate({**PROMPT, "image": base64.b64encode(b"no picture at all").decode()})
    assert (reply.status, reply.code, reply.json["error"]["param"]) == (422, "invalid_input", "image")


def test_what_a_log_is_shown_of_a_body() -> None:
    body: dict[str, Any] = {
        "prompt": "x",
        "image": "QUJD" * 100,
        "mask": 5,
        "init_image": "HTTPS://a.example/p?sig=1",
    }
    assert shown(body) == {
        "prompt": "x",
        "image": "<picture, 400 characters>",
        "mask": 5,
        "init_image": "HTTPS://a.example/p?<...>",
    }
    assert shown([body]) == [body]


async def test_defaults_are_not_asked_for() -> None:
    taken = await take_inputs(parse_input({"prompt": " x ", "n": 1, "output_format": "png", "loras": None}))
    assert (taken.asked, taken.files) == ({"prompt": "x"}, {})
    with pytest.raises(InvalidInputError):
        await take_inputs(parse_input({"prompt": "x", "image": "data:,"}))


async def test_a_long_body_that_does_not_arrive_gives_its_place_back(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.bodies.ARRIVE_S", 0.3)
    monkeypatch.setattr("gateway.app.LONG_BODIES", 1)
    gateway = await start_gateway()
    host, port = gateway.url.removeprefix("http://").split(":")
    head = (
        "POST /api/generate/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {gateway.key}\r\nContent-Length: 5000000\r\n\r\n"
    )
    slow = [await asyncio.open_connection(host, int(port)) for _ in range(3)]
    for _, writer in slow:
        writer.write(head.encode() + b"{")
    for reader, writer in slow:
        async with asyncio.timeout(10):
            assert (await reader.readline()).startswith(b"HTTP/1.1 400")
        writer.close()
    assert (await gateway.generate({**PROMPT, "image": "A" * 2_000_000})).status == 200
