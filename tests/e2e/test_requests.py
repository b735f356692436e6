"""What a request may ask for beyond a prompt, through the whole product with the bundled checkpoint."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support.stack import Stack

pytestmark = pytest.mark.timeout(600)  # the whole product on a machine that may be busy with other tests

FEW = {"num_inference_steps": 4, "seed": 3}
BLUE = (20, 40, 220)


def inline(picture: Image.Image, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


async def fetched(stack: Stack, url: str) -> tuple[Mapping[str, str], Image.Image]:
    status, headers, data = await stack.call("GET", url)
    assert status == 200
    return headers, Image.open(io.BytesIO(data))


async def pixels_of(stack: Stack, answer: dict[str, Any]) -> np.ndarray[Any, Any]:
    _, picture = await fetched(stack, answer["image_url"])
    return np.asarray(picture.convert("RGB")).astype(int)


async def test_an_inline_picture_is_what_is_started_from(stack: Stack) -> None:
    sent = inline(Image.new("RGB", (128, 128), BLUE), "JPEG")
    prompt = {"prompt": "a white circle on a blue background", **FEW}
    status, _, near = await stack.generate(**prompt, image=f"data:image/jpeg;base64,{sent}", strength=0.25)
    assert status == 200, near
    assert near["receipt"]["strength"] == 0.25
    status, _, far = await stack.generate(**prompt, init_image=sent, denoising_strength=1.0)
    assert status == 200, far
    apart = [np.abs(await pixels_of(stack, answer) - BLUE).mean() for answer in (near, far)]
    assert apart[0] < 40
    assert apart[0] < apart[1]
    _, _, told = await stack.call("GET", f"/api/generations/{near['id']}")
    assert set(told["input"]["image"]) == {"sha256", "bytes"}
    assert told["input"]["image"]["sha256"] == near["receipt"]["init_sha256"]
    for name in ("gateway", "inference"):
        assert sent[:50] not in stack.log(name)


async def test_only_the_white_of_a_mask_is_drawn_anew(stack: Stack) -> None:
    mask = Image.new("L", (128, 128), 0)
    mask.paste(255, (64, 0, 128, 128))
    status, _, answer = await stack.generate(
        prompt="a red background",
        image=inline(Image.new("RGB", (128, 128), BLUE)),
        mask=inline(mask),
        strength=1.0,
        **FEW,
    )
    assert status == 200, answer
    drawn = await pixels_of(stack, answer)
    assert np.abs(drawn[:, :56] - BLUE).mean() < 8
    assert np.abs(drawn[:, 72:] - BLUE).mean() > 40


@pytest.mark.parametrize(("kind", "suffix"), [("webp", "webp"), ("jpeg", "jpg")])
async def test_other_kinds_come_out_with_their_settings_inside(stack: Stack, kind: str, suffix: str) -> None:
    status, _, answer = await stack.generate(prompt="a red star", output_format=kind, quality=95, **FEW)
    assert status == 200, answer
    assert answer["image_url"].endswith(f".{suffix}")
    headers, picture = await fetched(stack, answer["image_url"])
    assert headers["Content-Type"] == f"image/{kind}"
    assert (str(picture.format).lower(), picture.size) == (kind, (128, 128))
    assert b"a red star" in picture.getexif().tobytes().replace(b"\0", b"")


async def test_a_style_changes_what_is_drawn(stack: Stack) -> None:
    status, _, plain = await stack.generate(prompt="a red circle", **FEW)
    assert status == 200
    status, _, refused = await stack.generate(prompt="a red circle", style="no such style", **FEW)
    assert status == 422
    assert refused["error"]["param"] == "style"
    known = refused["error"]["message"]
    async with aiohttp.ClientSession() as session:
        key = (stack.home / "inference-key").read_text().strip()
        url = f"http://127.0.0.1:{stack.inference_port}/v2/igen/info"
        async with session.get(url, headers={"Authorization": f"Bearer {key}"}) as answer:
            styles = (await answer.json())["styles"]
    assert styles, known
    status, _, styled = await stack.generate(prompt="a red circle", style=[styles[0]], **FEW)
    assert status == 200, styled
    assert "a red circle" in styled["receipt"]["prompt"]
    assert styled["receipt"]["prompt"] != plain["receipt"]["prompt"]


async def test_an_unknown_lora_is_422_by_its_name(stack: Stack) -> None:
    status, _, answer = await stack.generate(prompt="a red circle", loras=[{"name": "nobody"}])
    assert status == 422
    assert answer["error"]["details"][0]["field"].startswith("loras")
    assert "nobody" in answer["error"]["message"]


async def test_a_hires_pass_is_twice_the_size(stack: Stack) -> None:
    status, _, answer = await stack.generate(prompt="a red circle", hires={"scale": 2, "steps": 2}, **FEW)
    assert status == 200, answer
    assert (answer["width"], answer["height"]) == (256, 256)
    _, picture = await fetched(stack, answer["image_url"])
    assert picture.size == (256, 256)


async def test_a_deadline_that_cannot_be_met(stack: Stack) -> None:
    long = {"prompt": "a blue circle", "num_inference_steps": 150, "num_images": 8}
    others = [await stack.generate({"Prefer": "respond-async"}, **long, seed=seed) for seed in range(4)]
    assert [status for status, _, _ in others] == [202] * 4
    status, headers, answer = await stack.generate(prompt="a red circle", deadline_s=0.05, **FEW)
    assert (status, answer["error"]["code"]) in [(429, "deadline_unreachable"), (504, "deadline_missed")], answer
    assert int(headers["Retry-After"]) >= 1
    key = (stack.home / "inference-key").read_text().strip()
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session:
        for _, _, other in others:  # so that the tests after this one need not wait
            await until_cancelled(session, f"http://127.0.0.1:{stack.inference_port}/v2/igen/cancel/{other['id']}")


async def until_cancelled(session: aiohttp.ClientSession, url: str) -> None:
    """The gateway has said yes to a job before it hands it on: until then the server knows none."""
    async with asyncio.timeout(120):
        while True:
            async with session.post(url) as cancelled:
                if cancelled.status == 200:
                    return
                assert cancelled.status == 404
            await asyncio.sleep(0.05)


async def test_steps_and_previews_are_told_while_it_is_drawn(stack: Stack) -> None:
    fields = {"prompt": "a red circle", "num_inference_steps": 60, "preview_every": 5, "seed": 1}
    status, _, begun = await stack.generate({"Prefer": "respond-async"}, **fields)
    assert status == 202
    seen: list[tuple[str, dict[str, Any]]] = []
    timeout = aiohttp.ClientTimeout(total=120)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.get(begun["events_url"], headers=stack.headers) as answer,
    ):
        assert answer.content_type == "text/event-stream"
        kind = ""
        async for line in answer.content:
            name, _, value = line.decode().strip().partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                seen.append((kind, json.loads(value)))
    kinds = [kind for kind, _ in seen]
    assert (kinds[0], kinds[-1]) == ("snapshot", "end")
    end = seen[-1][1]
    assert end["status"] == "success", end
    steps = [message["step"] for kind, message in seen if kind == "progress"]
    assert len(steps) > 1
    assert steps == sorted(steps)
    previews = [message for kind, message in seen if kind == "preview"]
    assert previews
    with Image.open(io.BytesIO(base64.b64decode(previews[-1]["image"].partition(",")[2]))) as preview:
        assert preview.format == "JPEG"
    _, picture = await fetched(stack, end["image_url"])
    assert picture.size == (128, 128)


async def test_a_generation_is_verified_by_its_id(stack: Stack) -> None:
    sent = inline(Image.new("RGB", (128, 128), BLUE))
    status, _, made = await stack.generate(prompt="a green star", image=sent, num_images=2, **FEW)
    assert status == 200
    status, _, told = await stack.call("POST", "/api/verify", {"generation": made["id"]})
    assert status == 200, told
    assert told["max_difference"] <= 1
    assert len(told["pictures"]) == 2


async def test_a_gateway_killed_with_a_picture_in_its_hands(stack: Stack) -> None:
    """The picture outlives the process: the job ends with it, once."""
    key = {"Idempotency-Key": "killed-with-a-picture"}
    body = {
        "prompt": "a purple circle",
        "image": inline(Image.new("RGB", (128, 128), BLUE)),
        "num_inference_steps": 100,
        "num_images": 4,
        "seed": 5,
    }
    request = asyncio.create_task(stack.generate(key, **body))
    await asyncio.sleep(1.5)
    stack.kill("gateway")
    await asyncio.gather(request, return_exceptions=True)
    deadline = time.monotonic() + 120
    while True:
        assert time.monotonic() < deadline
        await asyncio.sleep(1)
        try:
            status, headers, answer = await stack.generate(key, **body)
        except OSError:
            continue
        if status != 503:
            break
    assert status == 200, answer
    assert headers["Idempotency-Replayed"] == "true"
    assert len(answer["images"]) == 4
    assert answer["receipt"]["init_sha256"]
