from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from inference.engine import single_file
from inference.engine.checkpoint import load_checkpoint, weights_sha256
from inference.engine.locate import locate
from inference.engine.single_file import SDXL_BASE, check_keys, find_configuration
from inference.engine.types import CheckpointError
from inference.engine.weights import file_sha256
from tests.support.checkpoints import (
    CATALOGUE,
    TINY,
    as_hub_cache,
    change_weights,
    copy_configuration,
    edit_json,
)
from tests.support.original_layout import original_tensors, save_original_layout

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from inference.engine.checkpoint import Checkpoint


def load(path: Path, search: tuple[Path, ...] = ()) -> Checkpoint:
    return load_checkpoint(str(path), None, search, device="cpu")


def modules(checkpoint: Checkpoint) -> dict[str, Any]:
    first, second = checkpoint.text_encoders
    return {"unet": checkpoint.unet, "vae": checkpoint.vae, "first": first, "second": second}


def no_hub(name: str, revision: str, *, weights: bool) -> Path:
    raise CheckpointError(f"{name} at {revision} could not be fetched from the hub: no network")


@pytest.fixture
def described(tmp_path: Path) -> Path:
    """A folder that describes `one.safetensors`, to be saved beside it."""
    return copy_configuration(tmp_path / "one")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_one_file_holds_the_same_weights_as_the_folder(
    described: Path, checkpoint: Checkpoint, dtype: torch.dtype
) -> None:
    loaded = load(save_original_layout(TINY, described.with_suffix(".safetensors"), dtype))
    for part, expected in modules(checkpoint).items():
        wanted, found = expected.state_dict(), modules(loaded)[part].state_dict()
        assert found.keys() == wanted.keys()
        for key, tensor in wanted.items():
            assert found[key].dtype == torch.float32
            assert torch.equal(found[key], tensor.to(dtype).float()), f"{part}: {key}"
    assert loaded.scheduler_config == checkpoint.scheduler_config
    assert loaded.zero_empty_prompt == checkpoint.zero_empty_prompt


def test_one_file_draws_the_same_picture_as_the_folder(
    described: Path, driver: Any, make_driver: Callable[..., Any], make_spec: Callable[..., Any]
) -> None:
    loaded = load(save_original_layout(TINY, described.with_suffix(".safetensors"), torch.float32))
    expected = driver.draw(make_spec(), strict=True).picture
    assert np.array_equal(make_driver(using=loaded).draw(make_spec(), strict=True).picture, expected)
    assert expected.std() > 1


def test_the_prediction_type_is_the_describing_folders(described: Path) -> None:
    file = save_original_layout(TINY, described.with_suffix(".safetensors"))
    edit_json(
        described / "scheduler" / "scheduler_config.json", prediction_type="epsilon", timestep_spacing="leading"
    )
    config = load(file).scheduler_config
    assert (config["prediction_type"], config["timestep_spacing"]) == ("epsilon", "leading")


def test_a_trainers_marks_in_the_file_win_over_the_describing_folder(described: Path) -> None:
    edit_json(
        described / "scheduler" / "scheduler_config.json",
        prediction_type="epsilon",
        timestep_spacing="leading",
        rescale_betas_zero_snr=False,
    )
    file = described.with_suffix(".safetensors")
    save_original_layout(TINY, file, v_pred=torch.tensor([]), ztsnr=torch.tensor([]))
    config = load(file).scheduler_config
    assert config["prediction_type"] == "v_prediction"
    assert config["rescale_betas_zero_snr"]
    assert config["timestep_spacing"] == "trailing"


def test_the_fingerprint_is_the_files_own(described: Path) -> None:
    file = save_original_layout(TINY, described.with_suffix(".safetensors"))
    located = locate(str(file), None, ())
    assert weights_sha256(located) == file_sha256(file)
    loaded = load(file)
    assert loaded.info.sha256 == file_sha256(file)
    assert (loaded.info.checkpoint, loaded.info.demonstration) == ("one", False)


def test_the_describing_folder_is_looked_for_from_near_to_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_file, "fetch", no_hub)
    catalogue, cache, models = tmp_path / "catalogue", tmp_path / "cache", tmp_path / "models"
    for folder in (catalogue, cache, models):
        folder.mkdir()
    file, search = models / "mine.safetensors", (catalogue, cache)
    with pytest.raises(CheckpointError, match=r"put one named mine beside it") as caught:
        find_configuration(file, search)
    assert str(models / "mine") in str(caught.value)
    assert "no network" in str(caught.value)
    snapshot = as_hub_cache(copy_configuration(tmp_path / "source"), cache, SDXL_BASE)
    assert find_configuration(file, search)[0] == snapshot
    in_catalogue = copy_configuration(catalogue / "stable-diffusion-xl-base-1.0")
    assert find_configuration(file, search)[0] == in_catalogue
    copy_configuration(models)
    assert find_configuration(file, search)[0] == models
    assert find_configuration(file, search)[0] != copy_configuration(models / "mine")
    assert find_configuration(file, search)[0] == models / "mine"


def test_a_describing_folder_is_looked_at_as_any_other(described: Path) -> None:
    file = save_original_layout(TINY, described.with_suffix(".safetensors"))
    edit_json(described / "model_index.json", tokenizer=["evil", "Tokenizer"])
    with pytest.raises(CheckpointError, match=r"tokenizer is evil\.Tokenizer"):
        load(file)


def test_sdxl_base_from_a_cache_describes_a_file_that_lies_alone(tmp_path: Path) -> None:
    as_hub_cache(copy_configuration(tmp_path / "source"), tmp_path / "volume" / "hub", SDXL_BASE)
    (tmp_path / "models").mkdir()
    file = save_original_layout(TINY, tmp_path / "models" / "alone.safetensors")
    assert load(file, (tmp_path / "volume",)).info.checkpoint == "alone"


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        (("model.diffusion_model.",), "it has no vae, no text_encoder, no text_encoder_2"),
        (("model.", "conditioner."), "it has no vae"),
        (("model.", "first_stage", "conditioner.embedders.0."), "it has no text_encoder_2"),
        (("denoiser.",), "it has no unet"),
    ],
)
def test_a_file_that_is_not_whole_says_what_it_lacks(tmp_path: Path, kept: tuple[str, ...], reason: str) -> None:
    path = tmp_path / "part.safetensors"
    tensors = {key: tensor.contiguous() for key, tensor in original_tensors(TINY).items() if key.startswith(kept)}
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=reason):
        check_keys(path)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (["model.diffusion_model.x", "conditioner.embedders.0.model.ln_final.bias"], "it has no vae"),
        (["model.diffusion_model.x", "first_stage_model.x", "cond_stage_model.transformer.x"], "1 or 2 checkpoint"),
        (["lora_unet_down_blocks_0.lora_down.weight"], "LoRA"),
        (["unet.down_blocks.0.attn.to_k.lora.down.weight"], "LoRA"),
        (["double_blocks.0.img_attn.norm.key_norm.scale"], "no unet, no vae"),
    ],
)
def test_another_kind_of_file_is_called_by_its_name(tmp_path: Path, keys: list[str], reason: str) -> None:
    path = tmp_path / "other.safetensors"
    save_file({key: torch.zeros(1) for key in keys}, path)
    with pytest.raises(CheckpointError, match=rf"other\.safetensors .*{reason}"):
        check_keys(path)


def test_a_refiner_is_told_by_its_encoders_place(tmp_path: Path) -> None:
    keys = ("model.diffusion_model.x", "first_stage_model.x", "conditioner.embedders.0.model.ln_final.bias")
    save_file({key: torch.zeros(1) for key in keys}, tmp_path / "refiner.safetensors")
    assert check_keys(tmp_path / "refiner.safetensors") == ("refiner", {})
    assert check_keys(save_original_layout(TINY, tmp_path / "base.safetensors")) == ("base", {})
    copy_configuration(tmp_path / "refiner")
    with pytest.raises(CheckpointError, match="is a refiner checkpoint, and the folder that describes it a base"):
        find_configuration(tmp_path / "refiner.safetensors", (), "refiner")


def test_the_edm_formulation_is_refused(tmp_path: Path) -> None:
    path = save_original_layout(TINY, tmp_path / "edm.safetensors", edm_mean=torch.zeros(4))
    with pytest.raises(CheckpointError, match="EDM"):
        check_keys(path)


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("model.diffusion_model.out.2.bias", "unet cannot be loaded: some of its weights are missing"),
        ("first_stage_model.decoder.conv_out.weight", "vae cannot be loaded: some of its weights are missing"),
        (
            "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias",
            "text_encoder lacks 1 of its weights",
        ),
        ("conditioner.embedders.1.model.text_projection", "text_encoder_2 lacks 1 of its weights"),
    ],
)
def test_a_tensor_that_is_missing_is_never_made_up(described: Path, missing: str, reason: str) -> None:
    file = save_original_layout(TINY, described.with_suffix(".safetensors"))
    change_weights(file, lambda tensors: {key: tensor for key, tensor in tensors.items() if key != missing})
    with pytest.raises(CheckpointError, match=f"one: {reason}"):
        load(file)


def test_a_file_of_other_sizes_than_described_is_refused(described: Path) -> None:
    file = save_original_layout(TINY, described.with_suffix(".safetensors"))
    key = "model.diffusion_model.input_blocks.0.0.weight"
    change_weights(file, lambda tensors: {**tensors, key: torch.zeros(64, 9, 3, 3)})
    with pytest.raises(CheckpointError, match=r"one: unet cannot be loaded: .*conv_in"):
        load(file)


def test_a_file_cut_short_is_refused_before_it_is_loaded(described: Path) -> None:
    file = save_original_layout(TINY, described.with_suffix(".safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint("one", None, (described.parent, CATALOGUE), device="cpu")
