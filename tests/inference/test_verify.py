"""Drawing again from a receipt, over HTTP."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from inference.verify import compare
from tests.support.inference_rig import base64_of
from tests.support.origin import Origin, answer_with

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.inference_rig import Rig

RED = base64_of(Image.new("RGB", (72, 64), "red"))


async def draw(rig: Rig, **fields: Any) -> Any:
    status, body = await rig.call("POST", "/runsync", json={"input": {"prompt": "x", "seed": 7, **fields}})
    assert (status, body["status"]) == (200, "COMPLETED"), body
    return body["output"]


async def verify(rig: Rig, receipt: Any, **more: Any) -> tuple[int, Any]:
    return await rig.call("POST", "/verify", json={"receipt": receipt, **more})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_images": 3, "strict": True, "negative_prompt": ""},
        {"style": "cinematic", "scheduler": "K_EULER", "prompt_syntax": "plain", "guidance_scale": 0},
        {"hires": {"scale": 2.0}, "refiner": "fake-refiner", "refiner_negative_prompt": "dogs"},
        {"loras": [{"name": "red", "scale": 0.5}], "checkpoint": "other"},
    ],
)
async def test_the_same_pictures_come_out_of_a_receipt(rig: Rig, fields: dict[str, Any]) -> None:
    output = await draw(rig, **fields)
    status, body = await verify(rig, output["receipt"], images=output["images"])
    assert (status, body["status"]) == (200, "COMPLETED"), body
    told = body["output"]
    assert (told["identical"], told["differs"]) == (True, {})
    assert [picture["max_difference"] for picture in told["pictures"]] == [0] * len(output["images"])
    assert {picture["same_hash"] for picture in told["pictures"]} == {True}
    assert body["id"].startswith("verify-")
    assert rig.engine.drawn[-1].prompt == rig.engine.drawn[0].prompt
    first, again = (job.pictures[0] for job in (rig.engine.submitted[0], rig.engine.submitted[-1]))
    assert first == again
    assert {key: told["receipt"][key] for key in ("seeds", "refiner", "hires")} == {
        key: output["receipt"][key] for key in ("seeds", "refiner", "hires")
    }


async def test_without_pictures_the_hashes_decide(rig: Rig) -> None:
    output = await draw(rig)
    assert (await verify(rig, output["receipt"]))[1]["output"]["identical"] is True
    wrong = {**output["receipt"], "pixels_sha256": ["0" * 64]}
    told = (await verify(rig, wrong))[1]["output"]
    assert (told["identical"], told["pictures"][0]["same_hash"]) == (False, False)
    assert told["pictures"][0]["max_difference"] is told["max_difference"] is None


async def test_another_picture_is_told_by_its_differences(rig: Rig, decode: Callable[[str], Any]) -> None:
    output = await draw(rig)
    pixels = np.asarray(decode(output["images"][0])).copy()
    pixels[0, 0, 1] += 9
    receipt = {**output["receipt"], "pixels_sha256": []}
    told = (await verify(rig, receipt, images=[base64_of(Image.fromarray(pixels))]))[1]["output"]
    assert told["identical"] is False
    assert told["pictures"][0]["max_difference"] == told["max_difference"] == 9
    assert told["pictures"][0]["differing_pixels"] == pytest.approx(1 / 4096, abs=1e-6)
    small = base64_of(Image.new("RGB", (64, 72)))
    told = (await verify(rig, receipt, images=[small]))[1]["output"]
    assert (told["identical"], told["pictures"][0]["same_size"]) == (False, False)


async def test_what_is_not_as_it_was_is_named(rig: Rig) -> None:
    receipt = (await draw(rig))["receipt"]
    other = {**receipt, "device": "NVIDIA H100", "versions": {"fake": "0", "torch": "1"}}
    told = (await verify(rig, other))[1]["output"]
    assert told["differs"] == {
        "device": ["NVIDIA H100", "cpu"],
        "versions.fake": ["0", "1"],
        "versions.torch": ["1", ""],
    }


async def test_another_checkpoint_of_the_name_is_refused(rig: Rig) -> None:
    receipt = (await draw(rig))["receipt"]
    status, body = await verify(rig, {**receipt, "checkpoint_sha256": "f" * 64})
    assert status == 422
    assert body["error"]["details"][0]["field"] == "receipt.checkpoint_sha256"
    assert "another checkpoint here" in body["error"]["message"]
    unknown = await verify(rig, {**receipt, "checkpoint": "nope"})
    assert [problem["field"] for problem in unknown[1]["error"]["details"]] == ["receipt.checkpoint"]


async def test_a_checkpoint_not_loaded_yet_is_compared_when_it_has_drawn(rig: Rig) -> None:
    receipt = (await draw(rig))["receipt"]
    changed = {**receipt, "checkpoint": "other", "scheduler": "ddim"}
    status, body = await verify(rig, changed)
    assert (status, body["status"]) == (200, "FAILED")
    assert body["error"].startswith("checkpoint_changed: 'other' is another checkpoint here")


async def test_a_picture_that_was_started_from_is_sent_again(rig: Rig) -> None:
    output = await draw(rig, image=RED)
    assert (await verify(rig, output["receipt"], image=RED))[1]["output"]["identical"] is True
    status, body = await verify(rig, output["receipt"])
    assert (status, body["error"]["details"][0]["field"]) == (422, "receipt.init_sha256")
    blue = base64_of(Image.new("RGB", (72, 64), "blue"))
    status, body = await verify(rig, output["receipt"], image=blue)
    assert (status, body["error"]["message"]) == (422, "receipt.init_sha256: `image` is another file")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"width": 100}, "receipt.width"),
        ({"width": 4096, "height": 4096}, "receipt.width"),
        ({"num_inference_steps": 10_000}, "receipt.num_inference_steps"),
        ({"seeds": []}, "receipt.seeds"),
        ({"seeds": [-1]}, "receipt.seeds"),
        ({"seeds": [1, 2**40]}, "receipt.seeds"),
        ({"scheduler": "nope"}, "receipt.scheduler"),
        ({"guidance_scale": 1e9}, "receipt.guidance_scale"),
        ({"nonsense": 1}, "receipt.nonsense"),
        ({"loras": [{"name": "nope", "scale": 1.0, "sha256": ""}]}, "receipt.loras.0.name"),
    ],
)
async def test_a_receipt_is_held_to_every_bound(rig: Rig, change: dict[str, Any], field: str) -> None:
    receipt = (await draw(rig))["receipt"]
    status, body = await verify(rig, {**receipt, **change})
    assert status == 422, body
    assert body["error"]["details"][0]["field"] == field
    assert len(rig.engine.submitted) == 1


async def test_the_number_of_pictures_must_be_the_receipts(rig: Rig) -> None:
    output = await draw(rig)
    status, body = await verify(rig, output["receipt"], images=output["images"] * 2)
    assert (status, body["error"]["details"][0]["field"]) == (422, "receipt.seeds")
    status, body = await verify(rig, output["receipt"], images=["QUJD"])
    assert (status, body["error"]["details"][0]["field"]) == (422, "images")


async def test_pictures_larger_than_any_drawn_here_are_refused(make_rig: Callable[..., Any]) -> None:
    async with make_rig(max_pixels=8192, max_hires_pixels=8192) as rig:
        receipt = (await draw(rig))["receipt"]
        status, body = await verify(rig, receipt, images=[base64_of(Image.new("RGB", (128, 72)))])
        assert (status, body["error"]["message"]) == (422, "images: is 128x72; at most 8192 pixels are taken")


async def test_pictures_may_be_given_by_address(make_rig: Callable[..., Any]) -> None:
    async with Origin() as origin, make_rig(fetch_allow_hosts=f"127.0.0.1:{origin.port}") as rig:
        output = await draw(rig)
        png = base64.b64decode(output["images"][0].partition(",")[2])
        origin.answers["/a"] = answer_with(png)
        _, body = await verify(rig, output["receipt"], images=[origin.url("/a")])
        assert body["output"]["pictures"][0]["max_difference"] == 0
        _, body = await verify(rig, output["receipt"], images=[origin.url("/b")])
        assert (body["status"], body["error"][:13]) == ("FAILED", "invalid_input")


async def test_a_jpeg_is_compared_by_what_it_shows(rig: Rig) -> None:
    output = await draw(rig, format="jpeg")
    told = (await verify(rig, output["receipt"], images=output["images"]))[1]["output"]
    assert told["identical"] is True, "the raw pixels have the receipt's hash"
    assert told["pictures"][0]["max_difference"] <= 4


def test_differences_do_not_wrap_around() -> None:
    black, white = (np.full((8, 8, 3), level, np.uint8) for level in (0, 255))
    for one, other in ((black, white), (white, black)):
        check = compare(1, one, None, other)
        assert (check.max_difference, check.mean_difference, check.differing_pixels) == (255, 255.0, 1.0)
    assert compare(1, black, None, None).same_hash is None
