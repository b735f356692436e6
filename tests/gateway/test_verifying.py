from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest

from tests.gateway.test_jpeg import jpeg

if TYPE_CHECKING:
    from tests.gateway.conftest import RunningGateway, StartGateway
    from tests.support.fake_backend import FakeBackend
    from tests.support.inference_rig import Rig

SMALL: dict[str, Any] = {"prompt": "x", "seed": 5, "width": 64, "height": 64, "num_inference_steps": 2}


async def verify(gateway: RunningGateway, body: Any, **options: Any) -> Any:
    return await gateway.request("POST", "/api/verify", json=body, **options)


@pytest.mark.parametrize("fields", [{}, {"n": 2}, {"image": base64.b64encode(jpeg(64, 64)).decode()}])
async def test_a_generation_is_drawn_again_and_is_the_same(drawing: RunningGateway, fields: dict[str, Any]) -> None:
    made = (await drawing.generate({**SMALL, **fields})).json
    reply = await verify(drawing, {"generation": made["id"]})
    assert reply.status == 200, reply.json
    assert (reply.json["status"], reply.json["identical"], reply.json["max_difference"]) == ("success", True, 0)
    assert [each["seed"] for each in reply.json["pictures"]] == made["seeds"]
    assert len(await drawing.rows()) == 1, "a check is no generation"


async def test_one_that_was_compressed_is_compared_by_its_hash(drawing: RunningGateway) -> None:
    made = (await drawing.generate({**SMALL, "output_format": "jpeg"})).json
    reply = await verify(drawing, {"generation": made["id"]})
    assert (reply.json["identical"], reply.json["max_difference"]) == (True, None)


async def test_a_receipt_with_pictures_of_another_seed(drawing: RunningGateway) -> None:
    made = (await drawing.generate(SMALL)).json
    other = (await drawing.generate({**SMALL, "seed": 105})).json
    data = (await drawing.request("GET", other["image_url"].removeprefix("http://pictures.example"))).body
    body = {"receipt": made["receipt"], "images": [base64.b64encode(data).decode()]}
    reply = await verify(drawing, body)
    assert reply.status == 200, reply.json
    assert reply.json["max_difference"] == 100
    assert reply.json["pictures"][0]["same_hash"] is True
    log = (await drawing.log(4))[-1]
    assert log.request_body is not None
    assert log.request_body["images"] == "<1 pictures>"


async def test_what_cannot_be_verified(
    drawing: RunningGateway, other_key: str, rig: Rig, start_gateway: StartGateway, backend: FakeBackend
) -> None:
    made = (await drawing.generate(SMALL)).json
    foreign = await verify(drawing, {"generation": made["id"]}, key=other_key)
    assert (foreign.status, foreign.code) == (404, "not_found")
    assert (await verify(drawing, {"generation": 5})).status == 422
    assert (await verify(drawing, {"generation": made["id"], "receipt": {}})).json["error"]["param"] == "receipt"
    assert (await verify(drawing, {"receipt": {"checkpoint": "fake"}})).status == 422
    changed = {**made["receipt"], "checkpoint_sha256": "f" * 64}
    reply = await verify(drawing, {"receipt": changed})
    assert (reply.status, reply.json["error"]["param"]) == (422, "receipt.checkpoint_sha256")
    rig.engine.hold()
    running = await drawing.generate(SMALL, headers={"Prefer": "respond-async"})
    assert (await verify(drawing, {"generation": running.json["id"]})).code == "not_verifiable"
    rig.engine.release()
    plain = await start_gateway()
    made = (await plain.generate(SMALL)).json
    assert (await verify(plain, {"generation": made["id"]})).code == "not_verifiable"


async def test_runpod_has_no_such_address(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(backend_kind="runpod")
    reply = await verify(gateway, {"generation": "gen_x"})
    assert (reply.status, reply.code) == (501, "verify_unsupported")


async def test_a_backend_that_is_down_or_silent(
    drawing: RunningGateway,
    rig: Rig,
    backend: FakeBackend,
    start_gateway: StartGateway,
) -> None:
    made = (await drawing.generate(SMALL)).json
    slow = await start_gateway(backend_url=rig.queue, backend_key="test-key", generation_timeout=1.5)
    rig.engine.hold()
    reply = await verify(slow, {"generation": made["id"]})
    assert (reply.status, reply.code) == (504, "generation_timeout")
    rig.engine.release()
    await backend.kill()
    down = await start_gateway(backend_url=backend.url)
    reply = await verify(down, {"generation": made["id"]})
    assert (reply.status, reply.code) == (503, "backend_unavailable")
