"""A diffusers folder as one file in the original layout, with the names of Stability's own code."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from tests.support.checkpoints import weights_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from tests.support.checkpoints import Tensors


def save_original_layout(folder: Path, target: Path, dtype: torch.dtype | None = None, **extra: torch.Tensor) -> Path:
    """Write a diffusers folder as one file with the names of Stability's own code, driven by the configs.

    `dtype` casts the weights; `extra` are further tensors, such as a trainer's marks.
    """
    tensors = original_tensors(folder)
    if dtype is not None:
        tensors = {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}
    save_file({key: value.contiguous() for key, value in {**tensors, **extra}.items()}, target)
    return target


def original_tensors(folder: Path) -> Tensors:
    unet = _load(folder, "unet")
    depth = json.loads((folder / "unet" / "config.json").read_text())["layers_per_block"] + 1
    vae = _load(folder, "vae")
    blocks = len(json.loads((folder / "vae" / "config.json").read_text())["block_out_channels"])
    second = _load(folder, "text_encoder_2")
    if not (folder / "text_encoder").exists():  # a refiner
        return {
            **_renamed("model.diffusion_model.", unet, lambda key: unet_key(key, depth, set(unet))),
            **_vae_tensors(vae, blocks),
            **_open_clip_tensors(second, "conditioner.embedders.0.model."),
        }
    first = _load(folder, "text_encoder")
    return {
        **_renamed("model.diffusion_model.", unet, lambda key: unet_key(key, depth, set(unet))),
        **_vae_tensors(vae, blocks),
        **_renamed("conditioner.embedders.0.transformer.text_model.", first, _bare),
        # the real files carry these too, and nothing is loaded from them
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "conditioner.embedders.1.model.logit_scale": torch.tensor(4.6),
        "denoiser.sigmas": torch.linspace(0.03, 14.6, 1000),
        **_open_clip_tensors(second, "conditioner.embedders.1.model."),
    }


def _load(folder: Path, part: str) -> Tensors:
    tensors: Tensors = load_file(weights_of(folder, part))
    return tensors


def _bare(key: str) -> str:
    return key.removeprefix("text_model.")


def _renamed(prefix: str, tensors: Tensors, rename: Callable[[str], str]) -> Tensors:
    return {prefix + rename(key): value for key, value in tensors.items()}


def _replace_all(key: str, pairs: Iterable[tuple[str, str]]) -> str:
    for old, new in pairs:
        key = key.replace(old, new)
    return key


UNET_ENDS = (
    ("time_embedding.linear_1.", "time_embed.0."),
    ("time_embedding.linear_2.", "time_embed.2."),
    ("add_embedding.linear_1.", "label_emb.0.0."),
    ("add_embedding.linear_2.", "label_emb.0.2."),
    ("conv_norm_out.", "out.0."),
    ("conv_out.", "out.2."),
    ("conv_in.", "input_blocks.0.0."),
)
UNET_RESNET = (
    ("norm1.", "in_layers.0."),
    ("conv1.", "in_layers.2."),
    ("norm2.", "out_layers.0."),
    ("conv2.", "out_layers.3."),
    ("time_emb_proj.", "emb_layers.1."),
    ("conv_shortcut.", "skip_connection."),
)
UNET_BLOCK = re.compile(r"^(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)$")
UNET_MIDDLE = re.compile(r"^mid_block\.(resnets|attentions)\.(\d+)\.(.*)$")


def unet_key(key: str, depth: int, keys: set[str]) -> str:
    """`depth` is the number of blocks of the original code that one block of diffusers holds."""
    if middle := UNET_MIDDLE.match(key):
        kind, number, rest = middle[1], int(middle[2]), middle[3]
        place = 2 * number if kind == "resnets" else 2 * number + 1
        return f"middle_block.{place}.{_replace_all(rest, UNET_RESNET) if kind == 'resnets' else rest}"
    found = UNET_BLOCK.match(key)
    if found is None:
        return _replace_all(key, UNET_ENDS)
    way, block, kind, number, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    side, offset = ("input_blocks", 1) if way == "down" else ("output_blocks", 0)
    if kind == "downsamplers":
        return f"{side}.{offset + block * depth + depth - 1}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        has_attention = any(other.startswith(f"up_blocks.{block}.attentions") for other in keys)
        return f"{side}.{block * depth + depth - 1}.{2 if has_attention else 1}.{rest}"
    place = offset + block * depth + number
    return f"{side}.{place}.0.{_replace_all(rest, UNET_RESNET)}" if kind == "resnets" else f"{side}.{place}.1.{rest}"


VAE_NAMES = (
    ("mid_block.resnets.0.", "mid.block_1."),
    ("mid_block.resnets.1.", "mid.block_2."),
    ("mid_block.attentions.0.", "mid.attn_1."),
    ("conv_norm_out.", "norm_out."),
    (".resnets.", ".block."),
    ("downsamplers.0.", "downsample."),
    ("upsamplers.0.", "upsample."),
    ("conv_shortcut.", "nin_shortcut."),
    ("group_norm.", "norm."),
    ("to_q.", "q."),
    ("to_k.", "k."),
    ("to_v.", "v."),
    ("to_out.0.", "proj_out."),
)


def _vae_tensors(tensors: Tensors, blocks: int) -> Tensors:
    made: Tensors = {}
    for key, value in tensors.items():
        name = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{blocks - 1 - int(found[1])}", key)
        name = _replace_all(name.replace("down_blocks.", "down."), VAE_NAMES)
        # the original code's attention is made of 1x1 convolutions
        is_linear = "mid.attn_1." in name and value.ndim == 2
        made[f"first_stage_model.{name}"] = value[:, :, None, None] if is_linear else value
    return made


OPEN_CLIP_NAMES = (
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("embeddings.token_embedding.", "token_embedding."),
    ("final_layer_norm.", "ln_final."),
    ("encoder.layers.", "transformer.resblocks."),
    ("layer_norm1.", "ln_1."),
    ("layer_norm2.", "ln_2."),
    ("mlp.fc1.", "mlp.c_fc."),
    ("mlp.fc2.", "mlp.c_proj."),
    ("self_attn.", "attn."),
)


def _open_clip_tensors(tensors: Tensors, prefix: str) -> Tensors:
    bare = {_replace_all(_bare(key), OPEN_CLIP_NAMES): value for key, value in tensors.items()}
    made: Tensors = {f"{prefix}text_projection": bare.pop("text_projection.weight").T}
    for key, value in bare.items():
        fused = re.match(r"(.*\.attn\.)q_proj\.(weight|bias)$", key)
        if fused:
            joined = [bare[f"{fused[1]}{letter}_proj.{fused[2]}"] for letter in "qkv"]
            made[f"{prefix}{fused[1]}in_proj_{fused[2]}"] = torch.cat(joined)
        elif not re.search(r"\.attn\.[kv]_proj\.", key):
            made[prefix + key] = value
    return made
