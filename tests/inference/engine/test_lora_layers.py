from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from inference.engine.lora_files import LoraFile, Pair, read_lora
from inference.engine.lora_layers import Layer, fit, parts_of
from inference.engine.types import LoraError
from tests.support.loras import ALPHA, FORMATS, RANK, Format, save_lora, touched

if TYPE_CHECKING:
    from pathlib import Path

    from inference.engine.checkpoint import Checkpoint

Placed = dict[tuple[str, str], Layer]


def placed(path: Path, checkpoint: Any) -> Placed:
    layers, unused = fit("a", read_lora("a", path), parts_of(checkpoint.unet, checkpoint.text_encoders))
    assert unused == ()
    return {(layer.part, layer.path): layer for layer in layers}


@pytest.mark.parametrize("style", FORMATS)
def test_every_module_is_found_by_every_trainers_names(tmp_path: Path, checkpoint: Checkpoint, style: Format) -> None:
    deltas = save_lora(tmp_path / "a.safetensors", checkpoint, 1, style)
    layers = placed(tmp_path / "a.safetensors", checkpoint)
    assert set(layers) == set(deltas) == {(part, path) for part, path, _ in touched(checkpoint)}
    for key, layer in layers.items():
        whole = layer.factor * (layer.up.flatten(1) @ layer.down.flatten(1))
        assert torch.allclose(whole.reshape(deltas[key].shape), deltas[key], atol=1e-6), key


def full_size() -> Any:
    """SDXL's own UNet, without storage."""
    config = {
        "cross_attention_dim": 2048,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


def test_the_original_codes_names_mean_what_diffusers_reads_in_them(tmp_path: Path) -> None:
    unet = full_size()
    path = tmp_path / "a.safetensors"
    wanted = [
        "blocks.0.attn2.to_k",
        "blocks.0.ff.net.0",
        ".proj_out",
        "conv1",
        "shortcut",
        "time",
        "add_",
        "samplers",
    ]
    wanted += ["conv_in", "conv_out"]
    save_lora(
        path,
        SimpleNamespace(unet=unet, text_encoders=()),
        1,
        "kohya_sgm",
        wanted=lambda _, name: any(item in name for item in wanted),
    )
    converted, _ = StableDiffusionXLPipeline.lora_state_dict(load_file(path), unet_config=unet.config)
    save_file({key: value.contiguous() for key, value in converted.items()}, tmp_path / "b.safetensors")
    ours, theirs = (
        {pair.base: pair for pair in read_lora("a", tmp_path / name).pairs}
        for name in ("a.safetensors", "b.safetensors")
    )
    assert len(ours) == len(theirs) > 80
    by_place = places(ours, unet)
    assert by_place.keys() == places(theirs, unet).keys()
    for place, pair in places(theirs, unet).items():
        mine = by_place[place].down
        assert mine is not None
        assert pair.down is not None
        assert torch.equal(mine, pair.down)


def places(pairs: dict[str, Pair], unet: Any) -> dict[str, Pair]:
    from inference.engine.lora_layers import _find, _Names

    table: Any = {"unet": _Names("unet", unet)}
    found = {base: _find(base, table) for base in pairs}
    assert None not in found.values(), [base for base, place in found.items() if place is None]
    return {place[1]: pairs[base] for base, place in found.items() if place}


def test_a_lycoris_core_is_taken_along(tmp_path: Path, checkpoint: Checkpoint) -> None:
    save_lora(tmp_path / "a.safetensors", checkpoint, 1, mid=True)
    layers = placed(tmp_path / "a.safetensors", checkpoint)
    middle = layers["unet", "conv_in"].mid
    assert middle is not None
    assert middle.shape == (RANK, RANK, 3, 3)
    assert layers["unet", "mid_block.attentions.0.proj_in"].mid is None


PATH = "mid_block.attentions.0.proj_in"
KOHYA = "lora_unet_" + PATH.replace(".", "_")


def file(*pairs: Pair, **adapter: object) -> LoraFile:
    return LoraFile(pairs, "0" * 64, (), adapter)


def made(base: str = KOHYA, rank: int = 2, **changes: Any) -> Pair:
    return Pair(base, **{"down": torch.ones(rank, 128), "up": torch.ones(128, rank), **changes})


@pytest.fixture
def modules(checkpoint: Checkpoint) -> Any:
    return parts_of(checkpoint.unet, checkpoint.text_encoders)


@pytest.mark.parametrize(
    "base",
    [
        f"base_model.model.unet.{PATH}",
        f"base_model.model.{PATH}",
        f"unet.{PATH}",
        PATH,
        "diffusion_model.middle_block.1.proj_in",
        "lora_unet_middle_block_1_proj_in",
    ],
)
def test_other_prefixes_mean_the_same(modules: Any, base: str) -> None:
    layers, _ = fit("a", file(made(base)), modules)
    assert [layer.path for layer in layers] == [PATH]


@pytest.mark.parametrize(
    ("adapter", "alpha", "factor"),
    [
        ({}, None, 1.0),
        ({}, 1.0, 0.5),
        ({}, 0.0, 0.0),
        ({"unet.lora_alpha": 4}, None, 2.0),
        ({"unet.lora_alpha": 4}, 1.0, 0.5),
        ({"unet.lora_alpha": 4, "unet.alpha_pattern": {"proj_in": 1}}, None, 0.5),
        ({"unet.lora_alpha": 4, "unet.alpha_pattern": {"oj_in": 1}}, None, 2.0),
        ({"unet.lora_alpha": 4, "unet.alpha_pattern": {PATH: 1}}, None, 0.5),
        ({"unet.lora_alpha": 4, "unet.use_rslora": True}, None, 4 / 2**0.5),
        ({"text_encoder.lora_alpha": 4}, None, 1.0),
        ({"unet.lora_alpha": "4", "unet.alpha_pattern": [1]}, None, 1.0),
    ],
)
def test_alpha_over_rank_scales(modules: Any, adapter: dict[str, Any], alpha: float | None, factor: float) -> None:
    layers, _ = fit("a", file(made(alpha=alpha), **adapter), modules)
    assert layers[0].factor == pytest.approx(factor)


def test_a_pointwise_convolution_and_a_linear_layer_are_the_same(modules: Any) -> None:
    as_convolution = made(down=torch.ones(2, 128, 1, 1), up=torch.ones(128, 2, 1, 1))
    layers, _ = fit("a", file(as_convolution), modules)
    assert (layers[0].down.shape, layers[0].up.shape) == ((2, 128), (128, 2))


def test_what_is_kept_shares_no_memory_with_the_file(modules: Any) -> None:
    pair = made()
    layers, _ = fit("a", file(pair), modules)
    assert pair.down is not None
    assert layers[0].down.untyped_storage().data_ptr() != pair.down.untyped_storage().data_ptr()
    assert layers[0].down.untyped_storage().nbytes() == layers[0].down.nbytes


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"down": torch.ones(2, 320)}, r"for another architecture: .*proj_in .*\[2, 320\]"),
        ({"up": torch.ones(128, 3)}, "another architecture"),
        ({"up": torch.ones(128)}, "another architecture"),
        ({"down": torch.ones(2, 128, 3, 3)}, "another architecture"),
        ({"down": torch.ones(())}, "rank 0"),
        ({"down": torch.ones(0, 128), "up": torch.ones(128, 0)}, "rank 0"),
        ({"down": torch.ones(1, 1).expand(2000, 128), "up": torch.ones(1, 1).expand(128, 2000)}, "rank 2000"),
        ({"down": torch.ones(2, 128, dtype=torch.int32)}, "whole numbers"),
        ({"mid": torch.ones(2, 2, 1, 1)}, "middle"),
        ({"down": torch.full((2, 128), float("nan"))}, "no numbers"),
    ],
)
def test_what_does_not_fit_its_module_is_refused(modules: Any, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(LoraError, match=reason):
        fit("a", file(made(**changes)), modules)


def test_values_beyond_the_modules_type_are_refused() -> None:
    module = torch.nn.ModuleDict({"proj": torch.nn.Linear(128, 128, dtype=torch.float16)})
    pair = Pair("unet.proj", down=torch.full((2, 128), 1e6), up=torch.ones(128, 2))
    with pytest.raises(LoraError, match=r"no numbers in torch\.float16"):
        fit("a", file(pair), {"unet": module})


def test_a_lora_for_stable_diffusion_1_is_told_apart(modules: Any) -> None:
    pairs = [
        made(
            f"lora_te_text_model_encoder_layers_{layer}_self_attn_q_proj",
            down=torch.ones(4, 768),
            up=torch.ones(768, 4),
        )
        for layer in range(6)
    ]
    with pytest.raises(LoraError, match=r"another architecture: lora_te_text_model_encoder_layers_0.*do not fit"):
        fit("a", file(*pairs), modules)


def test_a_lora_that_fits_nothing_names_the_first_few(modules: Any) -> None:
    pairs = [made(f"transformer.single_blocks.{number}.proj") for number in range(5)]
    with pytest.raises(LoraError, match=r"fits nothing .*blocks\.0.*blocks\.2\.proj and 2 more have no module"):
        fit("a", file(*pairs), modules)


def test_layers_without_a_module_are_listed_beside_those_with_one(modules: Any) -> None:
    layers, unused = fit("a", file(made(), made("lora_unet_nothing"), made(f"unet.{PATH}")), modules)
    assert [layer.path for layer in layers] == [PATH]
    assert unused == ("lora_unet_nothing", f"unet.{PATH}")  # the second name of a module that has its layer


def test_a_refiners_one_encoder_is_the_second(checkpoint: Checkpoint) -> None:
    for encoders in ((None, checkpoint.text_encoders[1]), (checkpoint.text_encoders[1],)):
        assert set(parts_of(checkpoint.unet, encoders)) == {"unet", "text_encoder_2"}


def test_alpha_in_the_test_files_matters() -> None:
    assert ALPHA != RANK
