"""Real servers with a fake engine behind them, on free loopback ports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.inference_rig import Rig, open_rig, picture_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from PIL import Image

    from tests.support.fake_engine import FakeEngine


@pytest.fixture
def make_rig(tmp_path: Path) -> Callable[..., AbstractAsyncContextManager[Rig]]:
    """`async with make_rig(engine, **settings) as rig`."""

    def make(engine: FakeEngine | None = None, **changes: Any) -> AbstractAsyncContextManager[Rig]:
        return open_rig(tmp_path, engine, **changes)

    return make


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """A ready server with the fake engine's defaults."""
    async with open_rig(tmp_path) as made:
        yield made


@pytest.fixture
def decode() -> Callable[[str], Image.Image]:
    """`decode(data_url)` gives a picture."""
    return picture_of
