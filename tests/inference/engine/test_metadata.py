from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from inference.engine.metadata import PRESETS, RULES, read_metadata
from inference.engine.samplers import KINDS, Samplers
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
        ({"preset": "hyper"}, "preset must be one of none, turbo, lightning, lcm"),
        ({"preset": None}, "preset must be one of"),
        ({"preset": ["lcm"]}, "preset must be one of"),
        ([], "JSON object"),
    ],
)
def test_a_wrong_file_is_refused_with_the_reason(folder: Path, content: Any, reason: str) -> None:
    (folder / "igen.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_metadata("copy", folder)
    assert "igen.json" in str(caught.value)


PRESET_DEFAULTS = {
    "none": CheckpointDefaults(width=128, height=128),
    "turbo": CheckpointDefaults(512, 512, num_inference_steps=4, guidance_scale=0.0, scheduler="euler_a"),
    "lightning": CheckpointDefaults(128, 128, num_inference_steps=4, guidance_scale=0.0, scheduler="euler"),
    "lcm": CheckpointDefaults(128, 128, num_inference_steps=4, guidance_scale=1.0, scheduler="lcm"),
}


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_preset_fills_what_the_file_leaves_open(folder: Path, preset: str) -> None:
    (folder / "igen.json").write_text(json.dumps({"preset": preset}))
    described = read_metadata("copy", folder)
    assert (described.preset, described.defaults) == (preset, PRESET_DEFAULTS[preset])
    assert read_metadata("copy", folder, preset="lcm").preset == preset  # the file's own word comes first


def test_the_files_own_defaults_come_before_the_presets(folder: Path) -> None:
    given = {"num_inference_steps": 8, "guidance_scale": 1.2, "width": 256}
    (folder / "igen.json").write_text(json.dumps({"preset": "turbo", "defaults": given}))
    expected = CheckpointDefaults(256, 512, num_inference_steps=8, guidance_scale=1.2, scheduler="euler_a")
    assert read_metadata("copy", folder).defaults == expected


def test_a_checkpoint_without_the_file_takes_the_catalogues_preset(folder: Path) -> None:
    described = read_metadata("copy", folder, preset="lightning")
    assert described.defaults == PRESET_DEFAULTS["lightning"]
    with pytest.raises(CheckpointError, match="preset must be one of"):
        read_metadata("copy", folder, preset="fast")


@pytest.mark.parametrize("preset", ["turbo", "lightning"])
def test_few_steps_begin_at_the_noisiest_timestep(folder: Path, preset: str) -> None:
    leading = {"beta_schedule": "scaled_linear", "timestep_spacing": "leading", "steps_offset": 1}
    described = read_metadata("copy", folder, preset=preset)
    samplers = Samplers({**leading, **described.scheduler_overrides})
    sampler = samplers.make(described.defaults.scheduler, described.defaults.num_inference_steps, torch.device("cpu"))
    assert sampler.timesteps == [999, 749, 499, 249]


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_presets_values_keep_to_the_rules_of_the_file(preset: str) -> None:
    for key, value in PRESETS[preset].defaults.items():
        assert RULES[key][0](value)
    assert PRESETS[preset].defaults.get("scheduler", "euler") in KINDS
