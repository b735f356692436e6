"""Each feature of a request through HTTP on the real engine with the bundled checkpoint."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tests.support.inference_rig import base64_of, picture_of
from tests.support.real_engine import PROMPT, Client, client_of, furnish, needs_checkpoint, pixels_of, real_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from inference.engine.types import Engine

pytestmark = needs_checkpoint


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One for all tests, with a second checkpoint, a refiner and two LoRAs."""
    home = tmp_path_factory.mktemp("home")
    furnish(home)
    with real_engine(home) as made:
        yield made


@pytest.fixture
async def client(engine: Engine, tmp_path: Path) -> AsyncIterator[Client]:
    async with client_of(engine, tmp_path) as made:
        yield made


async def test_text_to_picture_carries_a_whole_receipt_and_its_timings(client: Client) -> None:
    output = await client.draw(num_images=2)
    receipt = output["receipt"]
    assert len(receipt["pixels_sha256"]) == 2
    assert len(receipt["checkpoint_sha256"]) == 64
    assert {"torch", "diffusers"} <= set(receipt["versions"])
    assert {"queue_s", "run_s", "device_s"} <= set(output["timings"])
    text = picture_of(output["images"][1]).info["parameters"]
    assert text.startswith(PROMPT)
    assert "Steps: 4, " in text
    assert "Seed: 6, " in text


async def test_img2img_keeps_what_a_small_strength_leaves(client: Client) -> None:
    source = Image.new("RGB", (128, 128), "black")
    source.paste("blue", (40, 40, 90, 90))
    little, much = [
        await client.draw(image=base64_of(source), strength=strength, num_inference_steps=8)
        for strength in (0.15, 1.0)
    ]
    before = np.asarray(source).astype(int)
    assert np.abs(pixels_of(little) - before).mean() < np.abs(pixels_of(much) - before).mean() / 2
    assert little["receipt"]["strength"] == 0.15


async def test_inpainting_leaves_black_as_it_was_to_the_pixel(client: Client) -> None:
    source = np.random.default_rng(1).integers(0, 256, (128, 128, 3), np.uint8)
    mask = np.zeros((128, 128), np.uint8)
    mask[:64] = 255
    output = await client.draw(
        image=base64_of(Image.fromarray(source)), mask=base64_of(Image.fromarray(mask)), strength=1.0
    )
    drawn = pixels_of(output)
    assert np.array_equal(drawn[64:], source[64:])
    assert not np.array_equal(drawn[:64], source[:64])


@pytest.mark.parametrize("upscaler", ["lanczos", "latent"])
async def test_a_hires_pass_enlarges(client: Client, upscaler: str) -> None:
    output = await client.draw(hires={"scale": 1.5, "steps": 4, "upscaler": upscaler})
    assert (output["width"], output["height"]) == (192, 192)
    assert pixels_of(output).shape == (192, 192, 3)


async def test_what_is_inpainted_can_be_enlarged(client: Client) -> None:
    mask = Image.new("L", (128, 128), 0)
    mask.paste(255, (0, 0, 64, 128))
    source = base64_of(Image.new("RGB", (128, 128), "blue"))
    output = await client.draw(image=source, mask=base64_of(mask), hires={"scale": 1.5, "steps": 4})
    assert pixels_of(output).shape == (192, 192, 3)


async def test_loras_change_the_picture_and_nobody_elses(client: Client) -> None:
    plain = await client.draw()
    mixed = await asyncio.gather(
        client.draw(loras=[{"name": "red"}]),
        client.draw(),
        client.draw(loras=[{"name": "blue", "scale": -0.5}]),
        client.draw(loras=[{"name": "red"}, {"name": "blue"}]),
    )
    assert len({output["receipt"]["pixels_sha256"][0] for output in mixed}) == 4
    assert np.abs(pixels_of(plain).astype(int) - pixels_of(mixed[1])).max() <= 1
    used = mixed[0]["receipt"]["loras"][0]
    assert (used["name"], used["scale"], len(used["sha256"])) == ("red", 1.0, 64)
    assert "<lora:red:1>" in picture_of(mixed[0]["images"][0]).info["parameters"]
    status, body = await client.post("/verify", {"receipt": mixed[3]["receipt"], "images": mixed[3]["images"]})
    assert (status, body["output"]["pictures"][0]["max_difference"] <= 1) == (200, True)


async def test_another_checkpoint_and_back(client: Client) -> None:
    before, other, after = [await client.draw(checkpoint=name) for name in ("tiny", "second", "tiny")]
    assert other["receipt"]["checkpoint"] == "second"
    assert other["receipt"]["checkpoint_sha256"] not in ("", before["receipt"]["checkpoint_sha256"])
    assert pixels_of(before).tobytes() != pixels_of(other).tobytes()
    assert np.abs(pixels_of(before).astype(int) - pixels_of(after)).max() <= 1


async def test_a_refiner_draws_the_last_part(client: Client) -> None:
    plain = await client.draw(num_inference_steps=10)
    refined = await client.draw(num_inference_steps=10, refiner="polish", high_noise_frac=0.5)
    assert pixels_of(plain).tobytes() != pixels_of(refined).tobytes()
    part = refined["receipt"]["refiner"]
    assert (part["checkpoint"], part["switch_at"], len(part["sha256"])) == ("polish", 0.5, 64)
    assert "Refiner: polish [" in picture_of(refined["images"][0]).info["parameters"]


async def test_info_lists_what_may_be_named(client: Client) -> None:
    info = await client.get("/info")
    assert (info["refiners"], info["loras"]) == (["polish"], ["blue", "red"])
    assert {"tiny", "second"} <= set(info["checkpoints"])


async def test_styles_and_syntax_reach_the_picture(client: Client) -> None:
    plain = await client.draw()
    styled = await client.draw(style="cinematic")
    weighted = await client.draw(prompt=f"({PROMPT}:1.4)")
    literal = await client.draw(prompt=f"({PROMPT}:1.4)", prompt_syntax="plain")
    hashes = {output["receipt"]["pixels_sha256"][0] for output in (plain, styled, weighted, literal)}
    assert len(hashes) == 4
    assert styled["receipt"]["prompt"] != PROMPT


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
async def test_a_file_of_another_kind_shows_the_same_picture(client: Client, kind: str) -> None:
    png, other = await client.draw(), await client.draw(output_format=kind, quality=95)
    assert png["receipt"]["pixels_sha256"] == other["receipt"]["pixels_sha256"]
    assert np.abs(pixels_of(png).astype(int) - pixels_of(other)).mean() < 8


@pytest.mark.parametrize(
    "fields",
    [{}, {"strict": True, "num_images": 2}, {"hires": {"scale": 1.5, "steps": 3}}, {"style": "cinematic", "seed": 1}],
)
async def test_a_receipt_draws_the_same_again(client: Client, fields: dict[str, Any]) -> None:
    output = await client.draw(**fields)
    status, body = await client.post("/verify", {"receipt": output["receipt"], "images": output["images"]})
    assert (status, body["status"]) == (200, "COMPLETED"), body
    assert max(picture["max_difference"] for picture in body["output"]["pictures"]) <= 1
    if fields.get("strict"):
        assert body["output"]["identical"] is True


async def test_previews_come_while_it_draws(client: Client) -> None:
    wanted = {"prompt": PROMPT, "num_inference_steps": 60, "preview_every": 5}
    _, body = await client.post("/run", {"input": wanted})
    previews: list[Any] = []
    async with asyncio.timeout(60):
        while (answer := await client.get(f"/stream/{body['id']}"))["status"] != "COMPLETED":
            previews += [chunk["output"]["preview"] for chunk in answer["stream"] if "preview" in chunk["output"]]
            await asyncio.sleep(0.02)
    assert previews
    assert picture_of(previews[-1]["image"]).size == (16, 16)


async def test_every_scheduler_that_is_listed_draws(client: Client) -> None:
    info = await client.get("/info")
    assert info["checkpoint"] in info["checkpoints"]
    for name in info["schedulers"]:
        assert (await client.draw(scheduler=name))["receipt"]["scheduler"] == name


async def test_names_that_are_not_there_are_named_together(client: Client) -> None:
    wanted = {
        "prompt": "x",
        "checkpoint": "nope",
        "loras": [{"name": "nope"}],
        "refiner": "nope",
        "scheduler": "nope",
        "style": "nope",
    }
    status, body = await client.post("/run", {"input": wanted})
    assert status == 422
    assert {problem["field"] for problem in body["error"]["details"]} == {
        *("input.checkpoint", "input.loras.0.name", "input.refiner", "input.scheduler", "input.style")
    }
