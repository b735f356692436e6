from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from inference.engine.metadata import read_metadata
from inference.engine.types import CheckpointDefaults, CheckpointError
from tests.support.checkpoints import TINY, copy_configuration, edit_json

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_configuration(tmp_path / "copy")


def test_the_bundled_checkpoint_says_what_it_is() -> None:
    described = read_metadata("other", TINY)
    written = json.loads((TINY / "igen.json").read_text())
    assert described.name == "tiny"
    assert described.demonstration
    assert described.defaults == CheckpointDefaults(**written["defaults"])


def test_without_the_file_the_size_is_the_unets_own_and_the_rest_sdxls(folder: Path) -> None:
    described = read_metadata("copy", folder)
    assert (described.name, described.demonstration) == ("copy", False)
    assert described.defaults == CheckpointDefaults(width=128, height=128)
    edit_json(folder / "unet" / "config.json", sample_size=[96, 64])
    assert read_metadata("copy", folder).defaults == CheckpointDefaults(width=512, height=768)


@pytest.mark.parametrize("size", [None, "big", True, [1, 2, 3], 5000, 1, [16, None]])
def test_an_odd_native_size_falls_back_to_sdxls(folder: Path, size: object) -> None:
    edit_json(folder / "unet" / "config.json", sample_size=size)
    assert read_metadata("copy", folder).defaults == CheckpointDefaults()


def test_a_default_that_is_not_given_keeps_its_usual_value(folder: Path) -> None:
    (folder / "igen.json").write_text(json.dumps({"defaults": {"num_inference_steps": 4, "guidance_scale": 1}}))
    expected = CheckpointDefaults(width=128, height=128, num_inference_steps=4, guidance_scale=1)
    assert read_metadata("copy", folder).defaults == expected


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"defaults": {"colour": "red"}}, "no 'colour'; there are width, height"),
        ({"defaults": {"width": "128"}}, "width must be"),
        ({"defaults": {"width": 100}}, "multiple of 8"),
        ({"defaults": {"height": 32}}, "height must be"),
        ({"defaults": {"height": 8192}}, "height must be"),
        ({"defaults": {"width": True}}, "width must be"),
        ({"defaults": {"width": 128.0}}, "width must be"),
        ({"defaults": {"num_inference_steps": 0}}, "from 1 to 150"),
        ({"defaults": {"num_inference_steps": 2.5}}, "from 1 to 150"),
        ({"defaults": {"guidance_scale": -1}}, "from 0 to 50"),
        ({"defaults": {"guidance_scale": float("nan")}}, "from 0 to 50"),
        ({"defaults": {"guidance_scale": float("inf")}}, "from 0 to 50"),
        ({"defaults": {"guidance_scale": None}}, "from 0 to 50"),
        ({"defaults": {"scheduler": 1}}, "name of a sampler"),
        ({"defaults": {"negative_prompt": None}}, "negative_prompt must be text"),
        ({"defaults": {"negative_prompt": "x" * 1001}}, "at most 1000"),
        ({"defaults": []}, "defaults must be an object"),
        ({"name": 5}, "name must be text"),
        ({"name": " "}, "name must be text"),
        ({"demonstration": "false"}, "true or false"),
        ([], "JSON object"),
    ],
)
def test_a_wrong_file_is_refused_with_the_reason(folder: Path, content: Any, reason: str) -> None:
    (folder / "igen.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_metadata("copy", folder)
    assert "igen.json" in str(caught.value)
