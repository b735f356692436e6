from __future__ import annotations

import asyncio

import pytest

from inference.engine.types import EngineError, EngineFullError
from inference.runpod_fitness import UnfitError, engine_draws
from inference.settings import InferenceSettings
from tests.support.fake_engine import FakeEngine

SETTINGS = InferenceSettings()
PROMPT = "a red circle on a white background"


async def test_an_engine_that_draws_is_fit_and_left_idle() -> None:
    engine = FakeEngine()
    check = engine_draws(engine, SETTINGS)
    assert check.__name__ == "checkpoint_draws", "the SDK reports a failure under this name"
    await check()
    assert engine.stats().running == engine.stats().waiting == 0
    engine.close()


async def test_an_engine_that_fails_is_not() -> None:
    engine = FakeEngine(failures={PROMPT: EngineError("no kernel image is available for this device")})
    with pytest.raises(UnfitError, match="no kernel image is available"):
        await engine_draws(engine, SETTINGS)()
    engine.close()


async def test_one_that_refuses_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine()

    def refuse(*_: object) -> None:
        raise EngineFullError(64, retry_after_s=1)

    monkeypatch.setattr(engine, "submit", refuse)
    with pytest.raises(UnfitError, match="refused"):
        await engine_draws(engine, SETTINGS)()
    engine.close()


async def test_one_that_hangs_is_not_and_its_picture_is_cancelled() -> None:
    engine = FakeEngine()
    engine.hold()
    with pytest.raises(UnfitError, match=r"not drawn within 0\.2 seconds"):
        await engine_draws(engine, SETTINGS, deadline_s=0.2)()
    async with asyncio.timeout(10):
        while not engine.cancelled:
            await asyncio.sleep(0.01)
    assert engine.cancelled == ["fitness"]
    engine.close()


async def test_one_that_draws_in_black_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.fake_engine.colour_of", lambda _: (0, 0, 0))
    engine = FakeEngine()
    with pytest.raises(UnfitError, match="black"):
        await engine_draws(engine, SETTINGS)()
    engine.close()
