from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from inference.engine.source import CheckpointSource
from inference.engine.types import UnknownCheckpointError
from tests.inference.engine.conftest import CHECKPOINTS
from tests.support.checkpoints import copy_tiny, edit_json, save_epsilon_copy, save_tiny_refiner

if TYPE_CHECKING:
    from pathlib import Path

    from inference.engine.checkpoint import Checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A search path's folder and, elsewhere, a checkpoint that only its catalogue knows."""
    root = tmp_path / "checkpoints"
    save_epsilon_copy(root / "noisy")
    save_tiny_refiner(root / "polish")
    elsewhere = copy_tiny(tmp_path / "elsewhere")
    (elsewhere / "igen.json").unlink()
    (root / "catalogue.toml").write_text(
        f'[fast]\nsource = "{elsewhere}"\npreset = "lightning"\ndefaults = {{ guidance_scale = 0.5 }}\n'
        '[absent]\nsource = "org/absent"\nrevision = "' + "a" * 40 + '"\n'
    )
    return root


@pytest.fixture
def source(folder: Path) -> CheckpointSource:
    return CheckpointSource("tiny", None, (CHECKPOINTS, folder), device="cpu")


def test_names_are_those_that_are_here(source: CheckpointSource) -> None:
    assert source.names("base") == ("fast", "noisy", "tiny")
    assert source.names("refiner") == ("polish",)


def test_a_description_needs_no_loading(source: CheckpointSource) -> None:
    found = source.describe("noisy")
    assert (found.kind, found.info.checkpoint, found.info.sha256) == ("base", "noisy", "")
    assert found.bytes > 10_000_000
    assert "lms" in found.info.schedulers
    assert "lms" not in source.describe("tiny").info.schedulers


def test_weights_are_counted_as_they_will_be_on_the_device(source: CheckpointSource, checkpoint: Checkpoint) -> None:
    """The bundled files are in half precision, and on a CPU they become float32."""
    assert source.describe("tiny").bytes == pytest.approx(checkpoint.weight_bytes, rel=0.001)


def test_the_catalogues_entry_fills_in_what_the_files_do_not_say(source: CheckpointSource) -> None:
    defaults = source.describe("fast").info.defaults
    assert (defaults.num_inference_steps, defaults.guidance_scale, defaults.width) == (4, 0.5, 128)
    opened = source.open("fast")
    assert opened.info.checkpoint == "fast"
    assert opened.info.defaults == defaults


def test_a_name_that_its_own_file_gives_does_not_count(source: CheckpointSource, folder: Path) -> None:
    edit_json(folder / "noisy" / "igen.json", name="another")
    assert source.describe("noisy").info.checkpoint == "noisy"
    assert source.open("noisy").info.checkpoint == "noisy"
    with pytest.raises(UnknownCheckpointError):
        source.describe("another")


def test_what_is_not_here_is_said(source: CheckpointSource) -> None:
    with pytest.raises(UnknownCheckpointError, match="scripts/checkpoints pull absent"):
        source.describe("absent")
    for name in ("", "..", str(CHECKPOINTS / "tiny"), "org/absent"):
        with pytest.raises(UnknownCheckpointError):
            source.describe(name)
