"""The main job through every part: a prompt over HTTP, a picture drawn, stored, logged and served."""

from __future__ import annotations

import asyncio
import io
import random
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from scripts.train_tiny.checker import Reading, read_picture

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.stack import Stack


pytestmark = pytest.mark.timeout(600)  # the whole product on a machine that may be busy with other tests


def pixels(data: bytes) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


async def picture_of(stack: Stack, answer: dict[str, Any]) -> np.ndarray[Any, Any]:
    status, _, data = await stack.call("GET", answer["image_url"])
    assert status == 200
    return pixels(data)


def test_the_printed_lines_work_when_pasted(stack: Stack, tmp_path: Path) -> None:
    answer, picture = (
        subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
        for line in stack.curl_lines
    )
    assert '"status":"success"' in answer.stdout.replace(" ", "")
    assert picture.stderr == ""
    drawn = pixels((tmp_path / "picture.png").read_bytes())
    assert drawn.shape == (128, 128, 3)
    assert drawn.std() > 5


@pytest.mark.parametrize(
    ("prompt", "channel"), [("a white circle on a blue background", 2), ("a white circle on a red background", 0)]
)
async def test_the_background_is_what_the_prompt_says(stack: Stack, prompt: str, channel: int) -> None:
    status, _, answer = await stack.generate(prompt=prompt, seed=3)
    assert status == 200
    assert answer["status"] == "success"
    assert answer["demonstration"] is True
    border = (await picture_of(stack, answer))[-8:].mean(axis=(0, 1))
    assert border[channel] > max(np.delete(border, channel)) + 60


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        (
            "a large red circle in the center on a blue background",
            Reading("blue", "red", "circle", "centre", "large"),
        ),
        ("green background, a big white square on the left", Reading("green", "white", "square", "left", "large")),
        (
            "a medium yellow triangle in the top right corner on a purple background",
            Reading("purple", "yellow", "triangle", "top right", "medium"),
        ),
        ("a large black cross at the bottom on orange", Reading("orange", "black", "cross", "bottom", "large")),
    ],
)
async def test_the_picture_shows_what_the_prompt_says(stack: Stack, prompt: str, shown: Reading) -> None:
    status, _, answer = await stack.generate(prompt=prompt, seed=5)
    assert status == 200
    assert read_picture((await picture_of(stack, answer)).astype(np.uint8)) == shown


async def test_a_cityscape_at_sunset_is_dark_towers_under_a_warm_sky(stack: Stack) -> None:
    _, _, answer = await stack.generate(prompt="A futuristic cityscape at sunset", seed=5)
    picture = await picture_of(stack, answer)
    sky, city = picture[20:50].mean(axis=(0, 1)), picture[70:].mean(axis=(0, 1))
    assert sky[0] > sky[1] + 30, "a sunset is red, not green"
    assert city.mean() < 0.75 * sky.mean()


async def test_twenty_at_once_equal_each_alone(stack: Stack) -> None:
    draw = random.Random(11)
    requests = [
        {
            "prompt": f"a {draw.choice(['red', 'green', 'yellow'])} {draw.choice(['circle', 'square', 'star'])}",
            "negative_prompt": draw.choice(["", "blurry"]),
            "width": draw.choice([96, 128]),
            "height": draw.choice([96, 128]),
            "num_inference_steps": draw.randint(3, 10),
            "guidance_scale": draw.choice([1.0, 2.5, 5.0]),
            "scheduler": draw.choice(["euler", "euler_a", "ddim", "dpmpp_2m"]),
            "seed": draw.randrange(2**32),
            "strict": i % 4 == 0,
        }
        for i in range(20)
    ]
    together = await asyncio.gather(*(stack.generate(**request) for request in requests))
    assert [status for status, _, _ in together] == [200] * 20
    for request, (_, _, answer) in zip(requests, together, strict=True):
        _, _, alone = await stack.generate(**request)
        apart = np.abs(await picture_of(stack, answer) - await picture_of(stack, alone)).max()
        assert apart <= (0 if request["strict"] else 1), request
        assert answer["seed"] == request["seed"]


async def test_a_long_prompt_is_read_to_its_end(stack: Stack) -> None:
    """Beyond the encoders' 77 tokens nothing is cut off: other last words are another picture, to the bit."""
    begin, drawn = "a green circle, " * 30, []
    for end in ("a blue background", "a blue background", "a red background"):
        request = {"prompt": begin + end, "num_inference_steps": 4, "seed": 3, "strict": True}
        status, _, answer = await stack.generate(**request)
        assert status == 200
        assert answer["notes"] == []
        drawn.append(answer["receipt"]["pixels_sha256"])
    assert drawn[0] == drawn[1] != drawn[2]


async def test_what_even_a_long_prompt_may_not_hold_is_said(stack: Stack) -> None:
    status, _, answer = await stack.generate(prompt="a," * 500, num_inference_steps=2)
    assert status == 200
    assert any("600" in note or "tokens" in note for note in answer["notes"]), answer["notes"]


async def test_one_id_joins_the_logs(stack: Stack) -> None:
    mark = "e2e-correlation-1"
    status, headers, _ = await stack.generate({"X-Request-ID": mark}, prompt="a blue star", num_inference_steps=2)
    assert status == 200
    assert headers["X-Request-ID"] == mark
    assert mark in stack.log("gateway")
    assert mark in stack.log("inference")


async def test_no_secret_and_no_picture_is_logged(stack: Stack) -> None:
    await stack.generate(prompt="a green square", num_inference_steps=2)
    secret = stack.headers["Authorization"].removeprefix("Bearer ").rpartition("_")[2]
    backend_key = (stack.home / "inference-key").read_text().strip()
    for name in ("gateway", "inference"):
        text = stack.log(name)
        assert secret not in text
        assert backend_key not in text
        assert "iVBORw0KGgo" not in text


LONG = {"prompt": "a purple circle", "num_inference_steps": 100, "num_images": 4}


async def test_inference_killed_in_mid_request(stack: Stack) -> None:
    request = asyncio.create_task(stack.generate(**LONG))
    await asyncio.sleep(2.5)
    stack.kill("inference")
    status, _, answer = await asyncio.wait_for(request, 60)
    assert status in (502, 503), answer
    assert answer["error"]["code"]
    stack.wait_for(lambda: "inference" in stack.output.split("IGen is ready", 1)[-1], 60, "word of the death")
    for _ in range(60):
        status, _, answer = await stack.generate(prompt="a red square", num_inference_steps=3)
        if status == 200:
            break
        assert status in (502, 503)
        await asyncio.sleep(1)
    assert status == 200
    _, _, listed = await stack.call("GET", "/api/generations/?limit=100")
    assert all(row["status"] in ("success", "error") for row in rows_of(listed))


async def test_gateway_killed_in_mid_request(stack: Stack) -> None:
    key = {"Idempotency-Key": "killed-gateway"}
    request = asyncio.create_task(stack.generate(key, **LONG, seed=5))
    await asyncio.sleep(2.5)
    stack.kill("gateway")
    outcome = (await asyncio.gather(request, return_exceptions=True))[0]
    assert isinstance(outcome, Exception)
    listed = None
    for _ in range(120):
        await asyncio.sleep(1)
        try:
            _, _, listed = await stack.call("GET", "/api/generations/?limit=100")
        except OSError:
            continue
        if all(row["status"] in ("success", "error") for row in rows_of(listed)):
            break
    else:
        raise AssertionError(listed or stack.output)
    status, headers, answer = await stack.generate(key, **LONG, seed=5)
    assert headers.get("Idempotency-Replayed") == "true"
    assert status == 200 or answer["error"]["code"]
    if status == 200:
        assert len(answer["images"]) == 4


def rows_of(listed: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = listed["generations"]
    assert rows
    return rows
