from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from inference.engine.layout import check_folder, choose_weights, refuse_other_kind
from inference.engine.types import CheckpointError
from tests.support.checkpoints import copy_configuration, edit_json, save_tiny_refiner

if TYPE_CHECKING:
    from pathlib import Path

    from inference.engine.layout import Kind


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_configuration(tmp_path / "copy")


def test_the_bundled_layout_passes(folder: Path) -> None:
    check_folder("copy", folder)


@pytest.mark.parametrize(
    "kind", ["StableDiffusionPipeline", "FluxPipeline", "StableDiffusionXLControlNetPipeline", 7]
)
def test_another_pipeline_is_refused_by_its_class(folder: Path, kind: object) -> None:
    edit_json(folder / "model_index.json", _class_name=kind)
    with pytest.raises(CheckpointError, match="not a StableDiffusionXLPipeline"):
        check_folder("copy", folder)


def test_a_refiner_has_one_encoder_and_five_numbers(tmp_path: Path) -> None:
    folder = save_tiny_refiner(tmp_path / "refiner")
    layout = check_folder("refiner", folder)
    assert (layout.kind, layout.requires_aesthetics_score, layout.time_ids) == ("refiner", True, 5)
    assert layout.parts == ("unet", "vae", "text_encoder_2")
    assert layout.tokenizers == ("tokenizer_2",)
    weights = choose_weights("refiner", folder, layout, half=False)
    assert set(weights) == set(layout.parts)


@pytest.mark.parametrize(
    ("file", "changes", "reason"),
    [
        ("model_index.json", {"requires_aesthetics_score": None}, "projection_class_embeddings_input_dim"),
        ("model_index.json", {"requires_aesthetics_score": "yes"}, "requires_aesthetics_score must be true or false"),
        ("model_index.json", {"tokenizer": ["transformers", "CLIPTokenizer"]}, "names no text_encoder"),
        ("model_index.json", {"text_encoder_2": None}, "names no text_encoder"),
        ("unet/config.json", {"cross_attention_dim": 192}, "cross_attention_dim is 192, expected 128"),
        ("text_encoder_2/config.json", {"projection_dim": 64}, "projection_class"),
    ],
)
def test_a_refiner_whose_parts_do_not_fit_is_refused(
    tmp_path: Path, file: str, changes: dict[str, Any], reason: str
) -> None:
    folder = save_tiny_refiner(tmp_path / "refiner")
    edit_json(folder / file, **changes)
    with pytest.raises(CheckpointError, match=reason):
        check_folder("refiner", folder)


def test_a_base_takes_no_score(folder: Path) -> None:
    edit_json(folder / "model_index.json", requires_aesthetics_score=True)
    with pytest.raises(CheckpointError, match="projection_class_embeddings_input_dim is 320, expected 288"):
        check_folder("copy", folder)


@pytest.mark.parametrize(("found", "wanted"), [("base", "base"), ("refiner", "refiner"), ("base", None)])
def test_the_wanted_kind_passes(found: Kind, wanted: Kind | None) -> None:
    refuse_other_kind("x", found, wanted)


@pytest.mark.parametrize(
    ("found", "wanted", "reason"),
    [("refiner", "base", "cannot draw on their own"), ("base", "refiner", "x is a base checkpoint, not a refiner")],
)
def test_the_other_kind_is_refused(found: Kind, wanted: Kind, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        refuse_other_kind("x", found, wanted)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"])
@pytest.mark.parametrize("value", [None, [None, None], [], ["diffusers"], "diffusers", {"a": 1}, ["x", "y", "z"], 5])
def test_an_index_that_lacks_or_garbles_a_part_names_it(folder: Path, part: str, value: object) -> None:
    edit_json(folder / "model_index.json", **{part: value})
    with pytest.raises(CheckpointError, match=part.removesuffix("_2").replace("_", "[ _]")):
        check_folder("copy", folder)


@pytest.mark.parametrize(
    ("part", "declared"),
    [
        ("unet", ["my_unet", "MyUNet"]),
        ("unet", ["diffusers", "ControlNetModel"]),
        ("vae", ["diffusers", "AutoencoderTiny"]),
        ("text_encoder_2", ["os", "system"]),
        ("tokenizer", ["transformers", "AutoTokenizer"]),
        ("scheduler", ["my_scheduler", "MyScheduler"]),
    ],
)
def test_classes_of_its_own_are_refused(folder: Path, part: str, declared: list[str]) -> None:
    edit_json(folder / "model_index.json", **{part: declared})
    with pytest.raises(CheckpointError, match=part):
        check_folder("copy", folder)


def test_a_pipeline_with_code_of_its_own_is_refused(folder: Path) -> None:
    (folder / "pipeline.py").write_text("raise SystemExit(3)")
    edit_json(folder / "model_index.json", _class_name=["pipeline", "MyPipeline"])
    with pytest.raises(CheckpointError, match="code of its own"):
        check_folder("copy", folder)


@pytest.mark.parametrize("key", ["auto_map", "attn_implementation", "quantization_config"])
@pytest.mark.parametrize("part", ["unet", "text_encoder_2"])
def test_configs_that_ask_for_other_code_are_refused(folder: Path, part: str, key: str) -> None:
    edit_json(folder / part / "config.json", **{key: {"AutoModel": "evil.Model"}})
    with pytest.raises(CheckpointError, match=f"{part}/config.json sets {key}"):
        check_folder("copy", folder)


@pytest.mark.parametrize(
    ("file", "changes", "reason"),
    [
        ("unet/config.json", {"addition_embed_type": "image"}, "text_time"),
        ("unet/config.json", {"in_channels": 9}, "in_channels"),
        ("unet/config.json", {"cross_attention_dim": 768}, "cross_attention_dim"),
        ("unet/config.json", {"cross_attention_dim": "wide"}, "cross_attention_dim"),
        ("unet/config.json", {"projection_class_embeddings_input_dim": 1}, "projection_class"),
        ("vae/config.json", {"latent_channels": 16}, "in_channels"),
        ("vae/config.json", {"block_out_channels": [8, 8]}, "pixels per latent"),
        ("vae/config.json", {"block_out_channels": 8}, "pixels per latent"),
        ("text_encoder/config.json", {"hidden_size": 1024}, "cross_attention_dim"),
        ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "EDMEulerScheduler"),
        ("scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatch"),
        ("scheduler/scheduler_config.json", {"_class_name": None}, "scheduler"),
        ("scheduler/scheduler_config.json", {"_class_name": ["evil"]}, "scheduler"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow_prediction"}, "flow_prediction"),
    ],
)
def test_parts_that_do_not_fit_are_refused(folder: Path, file: str, changes: dict[str, Any], reason: str) -> None:
    edit_json(folder / file, **changes)
    with pytest.raises(CheckpointError, match=reason):
        check_folder("copy", folder)


@pytest.mark.parametrize(
    "file",
    [
        "model_index.json",
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "text_encoder_2/config.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_each_file_is_demanded(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=file.partition("/")[0]):
        check_folder("copy", folder)


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2"])
def test_either_form_of_a_vocabulary_is_enough_and_one_is_demanded(folder: Path, part: str) -> None:
    for path in (folder / part).iterdir():
        path.unlink()
    with pytest.raises(CheckpointError, match=f"{part} has neither"):
        check_folder("copy", folder)
    (folder / part / "vocab.json").write_text("{}")
    with pytest.raises(CheckpointError, match=f"{part} has neither"):
        check_folder("copy", folder)
    (folder / part / "merges.txt").touch()
    check_folder("copy", folder)
    (folder / part / "vocab.json").unlink()
    (folder / part / "tokenizer.json").write_text("{}")
    check_folder("copy", folder)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"[" * 100_000, json.dumps("text").encode()])
def test_json_that_makes_no_sense_names_its_file(folder: Path, content: bytes) -> None:
    (folder / "model_index.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model_index\.json"):
        check_folder("copy", folder)
