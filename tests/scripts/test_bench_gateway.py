"""The benchmark measures a real gateway, and what it calls noise is a picture of the asked size."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from scripts.bench_gateway import run
from scripts.loading.standin import noise_png


@pytest.mark.parametrize("size", [60_000, 1_500_000])
def test_noise_is_a_whole_picture_of_about_that_size(size: int) -> None:
    data = noise_png(size)
    assert abs(len(data) - size) < 0.25 * size
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        assert picture.size == (1024, 1024)


async def test_every_kind_of_request_is_answered_and_costs_something() -> None:
    told = await run(clients=4, requests=40, picture_kb=100, database_url=None)
    assert [kind["name"] for kind in told["kinds"]] == [
        "generate",
        "generate, replayed",
        "status",
        "picture",
        "healthz",
    ]
    assert all(kind["requests"] == 40 and kind["per_second"] > 0 for kind in told["kinds"])
    generate = told["kinds"][0]
    assert generate["cpu_ms"] > 0
    assert 0 < generate["p50_ms"] <= generate["p99_ms"]
