"""The same request gives the same picture, whatever else the server does: within a level, with `strict` to the bit.

Compared are decoded pictures as they came through HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tests.support.inference_rig import base64_of
from tests.support.real_engine import (
    Client,
    client_of,
    furnish,
    largest_difference,
    needs_checkpoint,
    pixels_of,
    real_engine,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from inference.engine.types import Engine

pytestmark = needs_checkpoint
BOTH = pytest.mark.parametrize("strict", [False, True], ids=["default", "strict"])


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    home = tmp_path_factory.mktemp("home")
    furnish(home)
    # room for one checkpoint at a time, so that every switch puts the other out and loads anew
    with real_engine(home, checkpoint_memory_mb=20) as made:
        yield made


@pytest.fixture
async def client(engine: Engine, tmp_path: Path) -> AsyncIterator[Client]:
    async with client_of(engine, tmp_path) as made:
        yield made


def picture(size: int = 96) -> str:
    pixels = np.full((size, size, 3), (30, 90, 200), np.uint8)
    pixels[size // 4 : size // 2, size // 4 : size // 2] = (240, 220, 10)
    return base64_of(Image.fromarray(pixels))


def half_mask(size: int = 96) -> str:
    mask = Image.new("L", (size, size), 0)
    mask.paste(255, (0, 0, size // 2, size))
    return base64_of(mask)


def sixteen_kinds() -> list[dict[str, Any]]:
    """Requests of every kind; several share a group, so that some batches hold more than one."""
    return [
        {},
        {"seed": 6},
        {"prompt": "a blue star", "num_inference_steps": 7},
        {"guidance_scale": 1.0},
        {"scheduler": "dpmpp_2m_karras"},
        {"scheduler": "dpmpp_2m_sde"},
        {"scheduler": "euler_a"},
        {"scheduler": "unipc", "num_inference_steps": 5},
        {"width": 64, "height": 96},
        {"image": picture(), "strength": 0.6, "num_inference_steps": 6},
        {"image": picture(), "mask": half_mask(), "strength": 1.0},
        {"hires": {"scale": 1.5, "steps": 3}},
        {"loras": [{"name": "red"}]},
        {"loras": [{"name": "red", "scale": -0.5}, {"name": "blue"}]},
        {"refiner": "polish", "high_noise_frac": 0.5, "num_inference_steps": 6},
        {"prompt": ", ".join(["(a green (ring:1.2):1.1)"] * 30), "style": "cinematic"},
    ]


def different(first: Any, second: Any) -> bool:
    return pixels_of(first).tobytes() != pixels_of(second).tobytes()


@BOTH
async def test_alone_and_among_fifteen_others_of_every_kind(client: Client, strict: bool) -> None:
    """Each of sixteen takes the part of the one; with `strict` every other of them is, so that both kinds mix."""
    kinds = [fields | {"strict": strict and index % 2 == 0} for index, fields in enumerate(sixteen_kinds())]
    alone = [await client.draw(**fields) for fields in kinds]
    together = await asyncio.gather(*(client.draw(**fields) for fields in kinds))
    for fields, one, other in zip(kinds, alone, together, strict=True):
        assert largest_difference(one, other) <= (0 if fields["strict"] else 1), fields
        assert fields["strict"] is False or other["receipt"]["buckets"] == one["receipt"]["buckets"]
    # else nothing was compared
    assert max(bucket for output in together for bucket in output["receipt"]["buckets"]) > 2
    assert max(bucket for output in alone for bucket in output["receipt"]["buckets"]) <= 2
    assert len({pixels_of(output).tobytes() for output in alone}) == 16


@BOTH
@pytest.mark.parametrize(
    "fields", [{}, {"scheduler": "dpmpp_2m_sde", "image": picture(), "strength": 0.7}], ids=["text", "picture"]
)
async def test_four_of_one_request_and_four_requests(client: Client, strict: bool, fields: dict[str, Any]) -> None:
    four = await client.draw(num_images=4, seed=2**32 - 2, strict=strict, **fields)
    assert four["seeds"] == [2**32 - 2, 2**32 - 1, 0, 1]
    single = [await client.draw(seed=seed, strict=strict, **fields) for seed in four["seeds"]]
    together = {"images": [output["images"][0] for output in single]}
    assert largest_difference(four, together) <= (0 if strict else 1)
    assert len({pixels_of(output).tobytes() for output in single}) == 4


@BOTH
async def test_before_and_after_another_checkpoint(
    client: Client, strict: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "inference.engine.pool")
    before = await client.draw(strict=strict)
    other = await client.draw(strict=strict, checkpoint="second")
    after = await client.draw(strict=strict)
    assert different(before, other)
    assert largest_difference(before, after) <= (0 if strict else 1)
    assert [record.getMessage() for record in caplog.records][-2:] == [
        "checkpoint tiny makes room for second",
        "checkpoint second makes room for tiny",
    ]
    # while both are wanted at once they take turns, and each gets its own
    mixed = await asyncio.gather(
        *(client.draw(strict=strict, checkpoint=name) for name in ("second", "tiny", "second", "tiny"))
    )
    for output, expected in zip(mixed, (other, before, other, before), strict=True):
        assert largest_difference(output, expected) <= (0 if strict else 1)


@BOTH
async def test_before_and_after_somebody_used_a_lora(client: Client, strict: bool) -> None:
    before = await client.draw(strict=strict)
    used = await client.draw(loras=[{"name": "red"}])
    after = await client.draw(strict=strict)
    assert different(before, used)
    assert largest_difference(before, after) <= (0 if strict else 1)


@BOTH
async def test_a_lora_before_and_after_another_one(client: Client, strict: bool) -> None:
    wanted = {"strict": strict, "loras": [{"name": "red", "scale": 0.8}]}
    before = await client.draw(**wanted)
    used = await client.draw(loras=[{"name": "blue"}])
    after = await client.draw(**wanted)
    assert different(before, used)
    assert largest_difference(before, after) <= (0 if strict else 1)
