"""Pictures to compose, and the composing process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from PIL import Image

from compositor.compose.client import ComposeProcess
from compositor.compose.job import ComposeJob
from compositor.design import Design

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def quarters() -> Image.Image:
    """A picture whose corners tell which way it lies: red, green, blue, white from the left top clockwise."""
    image = Image.new("RGB", (400, 200), "red")
    image.paste((0, 255, 0), (200, 0, 400, 100))
    image.paste((0, 0, 255), (200, 100, 400, 200))
    image.paste((255, 255, 255), (0, 100, 200, 200))
    return image


@pytest.fixture
def frame(tmp_path: Path) -> Path:
    """An opaque grey frame of 200 pixels square."""
    path = tmp_path / "frame.png"
    Image.new("RGB", (200, 200), (128, 128, 128)).save(path)
    return path


@pytest.fixture
def product(tmp_path: Path, quarters: Image.Image) -> Path:
    path = tmp_path / "product.png"
    quarters.save(path)
    return path


@pytest.fixture
def make_job(product: Path, frame: Path) -> Callable[..., ComposeJob]:
    """A job whose output is PNG, so that pixels can be compared; keywords are the design's."""

    def make(source: Path | None = None, frame_path: Path | None = None, **design: object) -> ComposeJob:
        made = Design.model_validate({"output": {"kind": "png", "exact": True}, **design})
        with Image.open(frame_path or frame) as opened:
            size = made.output_sizes(*opened.size)[0]
            transparent = opened.mode == "RGBA"
        return ComposeJob(source or product, frame_path or frame, transparent, made, size)

    return make


@pytest.fixture(scope="module")
def process() -> Iterator[ComposeProcess]:
    with ComposeProcess() as started:
        yield started
