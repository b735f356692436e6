from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from safetensors.torch import load_file

from inference.engine.locate import locate
from inference.engine.parts import load_parts
from inference.engine.types import CheckpointError
from tests.support.checkpoints import CATALOGUE, change_weights, save_second_checkpoint, save_tiny_refiner, weights_of
from tests.support.original_layout import save_original_layout

if TYPE_CHECKING:
    from pathlib import Path


def test_a_base_has_every_part() -> None:
    parts = load_parts(locate("tiny", None, (CATALOGUE,)), torch.float32)
    assert (parts.kind, parts.requires_aesthetics_score) == ("base", False)
    assert parts.used_encoders == (parts.text_encoder, parts.text_encoder_2)
    assert parts.used_tokenizers == parts.tokenizers


def test_a_refiner_has_the_projecting_encoder_alone(tmp_path: Path) -> None:
    save_tiny_refiner(tmp_path / "refiner")
    parts = load_parts(locate("refiner", None, (tmp_path,), kind="refiner"), torch.float32)
    assert (parts.kind, parts.requires_aesthetics_score) == ("refiner", True)
    assert parts.text_encoder is None
    assert parts.tokenizers[0] is None
    assert parts.used_encoders == (parts.text_encoder_2,)
    assert parts.used_tokenizers == (parts.tokenizers[1],)
    assert parts.unet.add_embedding.linear_1.in_features == 128 + 5 * 32


def test_diffusers_takes_the_same_folder_for_a_refiner(tmp_path: Path) -> None:
    folder = save_tiny_refiner(tmp_path / "refiner")
    stock = StableDiffusionXLImg2ImgPipeline.from_pretrained(folder, local_files_only=True)
    assert (stock.text_encoder, stock.tokenizer) == (None, None)
    assert stock.config.requires_aesthetics_score is True
    ours = load_parts(locate("refiner", None, (tmp_path,), kind="refiner"), torch.float32)
    for key, tensor in stock.unet.state_dict().items():
        assert torch.equal(ours.unet.state_dict()[key], tensor)


def test_a_refiner_in_one_file_holds_the_same_weights(tmp_path: Path) -> None:
    folder = save_tiny_refiner(tmp_path / "refiner")
    save_original_layout(folder, tmp_path / "refiner.safetensors")
    found = locate(str(tmp_path / "refiner.safetensors"), None, (), kind="refiner")
    assert (found.single_file, found.folder, found.kind) == (tmp_path / "refiner.safetensors", folder, "refiner")
    ours = load_parts(found, torch.float32)
    wanted = load_parts(locate(str(folder), None, (), kind="refiner"), torch.float32)
    assert ours.text_encoder is None
    for part in ("unet", "vae", "text_encoder_2"):
        ours_state, state = getattr(ours, part).state_dict(), getattr(wanted, part).state_dict()
        assert ours_state.keys() == state.keys()
        for key, tensor in state.items():
            assert torch.equal(ours_state[key], tensor), f"{part}: {key}"


def test_a_refiner_that_lacks_weights_says_which_part(tmp_path: Path) -> None:
    folder = save_tiny_refiner(tmp_path / "refiner")
    path = weights_of(folder, "text_encoder_2")
    missing = next(iter(load_file(path)))
    change_weights(path, lambda tensors: {key: value for key, value in tensors.items() if key != missing})
    with pytest.raises(CheckpointError, match="text_encoder_2 lacks 1 of its weights"):
        load_parts(locate("refiner", None, (tmp_path,), kind="refiner"), torch.float32)


def test_the_second_checkpoint_differs_in_its_unet_alone(tmp_path: Path) -> None:
    one, other, again = (
        save_second_checkpoint(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 2), ("c", 1))
    )
    for part, differs in (("unet", True), ("vae", False), ("text_encoder", False)):
        contents = [weights_of(folder, part).read_bytes() for folder in (one, other, again)]
        assert (contents[0] != contents[1]) is differs
        assert contents[0] == contents[2]
