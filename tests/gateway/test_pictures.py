"""Pictures of every kind and size, from the fake backend and from a real server."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from models.wire import RECEIPT_PROMPT_CHARS
from tests.gateway.test_jpeg import jpeg
from tests.gateway.test_webp import webp

if TYPE_CHECKING:
    from tests.gateway.conftest import RunningGateway
    from tests.support.fake_backend import FakeBackend
    from tests.support.inference_rig import Rig

SMALL: dict[str, Any] = {"prompt": "x", "seed": 5, "width": 64, "height": 64, "num_inference_steps": 2}


def data_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


async def fetched(gateway: RunningGateway, url: str, key: str | None = None) -> tuple[Any, Image.Image]:
    reply = await gateway.request("GET", url.removeprefix("http://pictures.example"), key=key)
    assert reply.status == 200
    return reply, Image.open(io.BytesIO(reply.body))


@pytest.mark.parametrize(("kind", "suffix"), [("png", "png"), ("jpeg", "jpg"), ("jpg", "jpg"), ("webp", "webp")])
async def test_each_kind_is_stored_and_served_as_it_is(drawing: RunningGateway, kind: str, suffix: str) -> None:
    reply = await drawing.generate({**SMALL, "format": kind, "n": 2})
    assert reply.status == 200, reply.json
    name = "jpeg" if kind == "jpg" else kind
    assert reply.json["output_format"] == reply.json["receipt"]["output_format"] == name
    for image in reply.json["images"]:
        assert image["url"].endswith(f".{suffix}")
        assert image["media_type"] == f"image/{name}"
        got, picture = await fetched(drawing, image["url"])
        assert (got.headers["Content-Type"], len(got.body)) == (f"image/{name}", image["bytes"])
        assert (str(picture.format).lower(), picture.size) == (name, (64, 64))
    path = reply.json["image_url"].removeprefix("http://pictures.example")
    for other in {"png", "jpg", "webp", "gif", ""} - {suffix}:
        assert (await drawing.request("GET", f"{path.rpartition('.')[0]}.{other}")).status == 404
    stored = [each.suffix for each in (drawing.settings.home / "store" / "objects").rglob("*.*")]
    assert stored == [f".{suffix}"] * 2


@pytest.mark.parametrize("hires", [{"scale": 2, "steps": 1}, {"width": 128, "height": 128}, {}])
async def test_a_hires_pass_makes_a_larger_file(drawing: RunningGateway, hires: dict[str, Any]) -> None:
    reply = await drawing.generate({**SMALL, "hires": hires})
    assert reply.status == 200, reply.json
    assert (reply.json["width"], reply.json["height"]) == (128, 128)
    _, picture = await fetched(drawing, reply.json["image_url"])
    assert picture.size == (128, 128)
    assert reply.json["receipt"]["hires"]["width"] == 128


async def test_an_input_pictures_size_is_the_outputs(drawing: RunningGateway, rig: Rig) -> None:
    sent = base64.b64encode(webp(120, 80)).decode()
    reply = await drawing.generate({"prompt": "x", "image": sent, "steps": 2})
    assert reply.status == 200, reply.json
    assert (reply.json["width"], reply.json["height"]) == (120, 80)
    assert reply.json["receipt"]["strength"] == 0.75


async def test_every_field_and_name_is_taken(drawing: RunningGateway, rig: Rig) -> None:
    body = {
        "prompt": "a (red:1.3) [circle]",
        "negative_prompt": "",
        "style": "photographic",
        "prompt_syntax": "a1111",
        "width": 64,
        "height": 64,
        "steps": 3,
        "cfg_scale": 2.5,
        "seed": 4,
        "n": 2,
        "sampler_name": "euler_a",
        "model": "fake",
        "loras": [{"name": "red", "scale": 0.5}],
        "init_image": base64.b64encode(jpeg(64, 64)).decode(),
        "mask_image": base64.b64encode(jpeg(64, 64)).decode(),
        "denoising_strength": 0.9,
        "hires": {"width": 96, "height": 96, "upscaler": "latent"},
        "refiner_checkpoint": "fake-refiner",
        "refiner_steps": 5,
        "refiner_switch_at": 0.5,
        "refiner_negative_prompt": "blur",
        "format": "webp",
        "output_quality": 70,
        "metadata": False,
        "preview_every": 1,
        "deadline_s": 30.0,
        "strict": True,
    }
    styles = (await rig.call("GET", "/info"))[1]["styles"]
    reply = await drawing.generate({**body, "style": styles[0]})
    assert reply.status == 200, reply.json
    receipt = reply.json["receipt"]
    assert receipt["loras"] == [{"name": "red", "scale": 0.5, "sha256": "a" * 64}]
    assert (receipt["refiner"]["steps"], receipt["refiner"]["switch_at"]) == (5, 0.5)
    assert (receipt["num_inference_steps"], receipt["guidance_scale"], receipt["strict"]) == (3, 2.5, True)
    assert receipt["mask_sha256"]
    assert reply.json["ignored"] == []
    assert (reply.json["width"], reply.json["output_format"], len(reply.json["images"])) == (96, "webp", 2)
    again = await drawing.generate({**body, "style": styles[0]})
    assert again.json["receipt"]["pixels_sha256"] == receipt["pixels_sha256"]


@pytest.mark.parametrize(
    ("wrong", "code", "field"),
    [
        ({"loras": [{"name": "nobody"}]}, "invalid_input", "loras.0.name"),
        ({"checkpoint": "nobody"}, "invalid_input", "checkpoint"),
        ({"style": "nobody"}, "invalid_input", "style"),
        ({"scheduler": "nobody"}, "unknown_scheduler", "scheduler"),
        ({"image": "http://127.0.0.1:1/x.png"}, "invalid_input", "image"),
        ({"loras": [{"name": "red", "scale": 9}]}, "invalid_input", "loras.0.scale"),
        ({"cfg_scale": 99}, "invalid_input", "cfg_scale"),
    ],
)
async def test_what_the_server_refuses_is_422_by_the_callers_name(
    drawing: RunningGateway, wrong: dict[str, Any], code: str, field: str
) -> None:
    fields = {"prompt": "x", "width": 64, "height": 64, **wrong}
    reply = await drawing.generate(fields)
    assert reply.status == 422, reply.json
    assert reply.json["error"]["param"] == field, reply.json
    assert reply.code in (code, "invalid_input")


async def test_a_deadline_that_cannot_be_met_is_429_and_the_key_is_free_again(
    drawing: RunningGateway, rig: Rig
) -> None:
    rig.engine.wait_s = 40
    body = {**SMALL, "deadline_s": 5}
    refused = await drawing.generate(body, idempotency_key="k")
    assert (refused.status, refused.code) == (429, "deadline_unreachable")
    assert refused.headers["Retry-After"] == "35"
    assert "40 s" in refused.json["error"]["message"]
    assert refused.json["error"]["retryable"] is True
    rig.engine.wait_s = None
    assert (await drawing.generate(body, idempotency_key="k")).status == 200


async def test_long_prompts_in_any_script_fit_the_receipt(drawing: RunningGateway) -> None:
    reply = await drawing.generate({**SMALL, "prompt": "日" * 1000, "negative_prompt": "🖼" * 1000})
    assert reply.status == 200, reply.json
    assert reply.json["receipt"]["prompt"] == "日" * 1000


HOSTILE: dict[str, Any] = {
    "not the kind that was asked for": {"images": [data_url(jpeg(64, 64), "jpeg")]},
    "not the kind that it says": {"images": [data_url(webp(64, 64), "webp")], "output_format": "jpeg"},
    "not the size that it says": {"images": [data_url(webp(64, 72), "webp")]},
    "not the size that was asked for": {"images": [data_url(webp(96, 96), "webp")], "width": 96, "height": 96},
    "a GIF": {"images": [data_url(b"GIF89a", "webp")]},
    "flags beyond all pictures": {"images": [data_url(webp(64, 64), "webp")], "flagged": [99]},
}


@pytest.mark.parametrize("changes", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_file_that_is_not_what_was_asked_for_is_502(
    gateway: RunningGateway, backend: FakeBackend, changes: dict[str, Any]
) -> None:
    backend.change_output = lambda output: {**output, **changes}
    reply = await gateway.generate({**SMALL, "output_format": "webp"})
    assert (reply.status, reply.code) == (502, "backend_bad_answer")


async def test_flagged_pictures_and_notes_are_told(gateway: RunningGateway, backend: FakeBackend) -> None:
    backend.change_output = lambda output: {**output, "flagged": [1], "notes": ["picture 1 is blurred"]}
    reply = await gateway.generate({**SMALL, "num_images": 2})
    assert reply.json["flagged"] == [1]
    assert [image["flagged"] for image in reply.json["images"]] == [False, True]
    assert reply.json["notes"] == ["picture 1 is blurred"]


async def test_a_receipt_up_to_its_limits_is_kept(gateway: RunningGateway, backend: FakeBackend) -> None:
    longest = "日" * RECEIPT_PROMPT_CHARS
    receipt = {"prompt": longest, "negative_prompt": longest, "refiner": {"negative_prompt": longest}}
    backend.change_output = lambda output: {**output, "receipt": receipt}
    reply = await gateway.generate(SMALL)
    assert reply.json["receipt"] == receipt
    assert (await gateway.request("GET", f"/api/generations/{reply.json['id']}")).json["receipt"] == receipt
