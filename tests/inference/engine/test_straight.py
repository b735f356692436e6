from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from inference.engine.locate import locate
from inference.engine.parts import load_parts
from inference.engine.straight import module_of, read_tensors
from inference.engine.types import CheckpointError
from tests.support.checkpoints import CATALOGUE

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the bundled checkpoint."""
    target = tmp_path / "own"
    shutil.copytree(Path(CATALOGUE) / "tiny", target)
    return target


def unet_file(folder: Path) -> Path:
    return folder / "unet" / "diffusion_pytorch_model.safetensors"


def test_the_same_weights_come_by_both_ways(folder: Path) -> None:
    located = locate(str(folder), None, ())
    usual, straight = load_parts(located, torch.float32), load_parts(located, torch.float32, CPU)
    expected, found = usual.unet.state_dict(), straight.unet.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    ours, theirs = ({k: v for k, v in each.unet.config.items() if k != "_name_or_path"} for each in (straight, usual))
    assert ours == theirs
    assert not straight.unet.training


def test_numbers_are_read_in_the_precision_wanted(folder: Path) -> None:
    tensors = read_tensors([unet_file(folder)], CPU, torch.float16)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


def test_other_names_are_left_to_the_library(folder: Path) -> None:
    tensors = read_tensors([unet_file(folder)], CPU, torch.float32)
    name = next(iter(tensors))
    assert module_of(UNet2DConditionModel, folder / "unet", {**tensors, "another": tensors[name]}) is None
    assert module_of(UNet2DConditionModel, folder / "unet", {**tensors, name: tensors[name][:1]}) is None


def test_what_is_missing_is_said_as_ever(folder: Path) -> None:
    tensors = load_file(unet_file(folder))
    tensors.pop("conv_out.weight")
    save_file(tensors, unet_file(folder))
    with pytest.raises(CheckpointError, match=r"unet lacks 1 of its weights, the first is conv_out\.weight"):
        load_parts(locate(str(folder), None, ()), torch.float32, CPU)
