"""The real engine with the bundled checkpoint and what a user puts beside it, and a client of a server around it.

Making one takes seconds, so a module's tests share it; each server gets it as `Lent`, so that none closes it.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
import numpy as np
import pytest

from inference.__main__ import BUNDLED, open_engine
from tests.support.inference_rig import KEY, picture_of, running_server, settings_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from inference.engine.types import Engine
    from inference.service import Service

PROMPT = "a red circle on a white background"
LORAS = ("red", "blue")

needs_checkpoint = pytest.mark.skipif(
    not (BUNDLED / "tiny" / "model_index.json").exists(), reason="the bundled checkpoint is not there"
)


def furnish(home: Path) -> None:
    """A second checkpoint (`second`), a refiner (`polish`) and two LoRAs in a server's home."""
    from inference.engine.checkpoint import load_checkpoint
    from tests.support.checkpoints import save_second_checkpoint, save_tiny_refiner
    from tests.support.loras import save_lora

    (home / "loras").mkdir()
    (home / "checkpoints").mkdir()
    save_second_checkpoint(home / "checkpoints" / "second", 3)
    save_tiny_refiner(home / "checkpoints" / "polish")
    tiny = load_checkpoint("tiny", None, (BUNDLED,), device="cpu")
    for seed, name in enumerate(LORAS):
        save_lora(home / "loras" / f"{name}.safetensors", tiny, seed)


@contextmanager
def real_engine(home: Path, **changes: Any) -> Iterator[Engine]:
    """An engine over a furnished home; `changes` are settings."""
    engine = open_engine(settings_for(home, threads=1, **changes))
    try:
        yield engine
    finally:
        engine.close()


class Lent:
    """An engine that its borrower cannot close."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def close(self) -> None:
        """Its owner does."""


@dataclass
class Client:
    """Speaks to a server as a caller does."""

    base: str
    http: aiohttp.ClientSession
    service: Service

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        async with self.http.post(f"{self.base}/v2/igen{path}", json=body) as answer:
            return answer.status, await answer.json()

    async def get(self, path: str) -> Any:
        async with self.http.get(f"{self.base}/v2/igen{path}") as answer:
            return await answer.json()

    async def draw(self, **fields: Any) -> Any:
        """The output of one job that has to succeed, in 4 steps of seed 5 where `fields` say nothing else."""
        wanted = {"prompt": PROMPT, "seed": 5, "num_inference_steps": 4, **fields}
        status, body = await self.post("/runsync?wait=300000", {"input": wanted})
        assert (status, body.get("status")) == (200, "COMPLETED"), body
        return body["output"]


@asynccontextmanager
async def client_of(engine: Engine, home: Path, **changes: Any) -> AsyncIterator[Client]:
    """A client of a server of its own around the engine."""
    clock = asyncio.get_running_loop().time
    headers = {"Authorization": f"Bearer {KEY}"}
    settings = settings_for(home, **changes)
    async with (
        running_server(settings, lambda: Lent(engine), clock=clock, fatal=[]) as (base, service),
        aiohttp.ClientSession(headers=headers) as http,
    ):
        async with asyncio.timeout(30):
            while service.dispatcher is None:
                await asyncio.sleep(0.01)
        yield Client(base, http, service)


def pixels_of(output: Any, index: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One of a job's pictures as uint8 [height, width, 3]."""
    return np.asarray(picture_of(output["images"][index]).convert("RGB"))


def largest_difference(first: Any, second: Any) -> int:
    """In 8-bit levels, over all pictures of two outputs; they have to be of the same number and sizes."""
    assert len(first["images"]) == len(second["images"])
    differences = [0]
    for index in range(len(first["images"])):
        one, other = (pixels_of(output, index).astype(int) for output in (first, second))
        assert one.shape == other.shape
        differences.append(int(np.abs(one - other).max()))
    return max(differences)
