"""LoRA files as trainers write them, made for a checkpoint at hand, and the same change as whole weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Format = Literal["kohya", "kohya_sgm", "peft", "diffusers", "diffusers_old"]
FORMATS: tuple[Format, ...] = ("kohya", "kohya_sgm", "peft", "diffusers", "diffusers_old")
RANK, ALPHA = 4, 2.0

Deltas = dict[tuple[str, str], torch.Tensor]
"""By part and module: what the LoRA at scale 1 adds to the weight, float32, of the weight's shape."""


def save_lora(
    path: Path,
    checkpoint: Any,
    seed: int,
    format: Format = "kohya",  # noqa: A002 - what the engine's tests call it
    *,
    strength: float = 0.3,
    wanted: Callable[[str, str], bool] | None = None,
    mid: bool = False,
) -> Deltas:
    """Write a random LoRA of rank 4 and alpha 2 and return what it adds.

    Args:
        path: file to write.
        checkpoint: has `unet` and `text_encoders`.
        seed: of the weights.
        format: whose names.
        strength: largest singular value of each change at alpha = rank, about.
        wanted: takes part and module; all linear and convolution layers by default.
        mid: write convolutions larger than 1x1 as LyCORIS does, with a core of their own.

    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    deltas: Deltas = {}
    for part, module_path, module in touched(checkpoint):
        if wanted is not None and not wanted(part, module_path):
            continue
        made = _random(module, generator, strength, mid=mid and format.startswith("kohya"))
        deltas[part, module_path] = _whole(made).mul_(ALPHA / RANK)
        tensors |= _named(format, checkpoint.unet, part, module_path, made)
    metadata = {"lora_adapter_metadata": json.dumps(_adapter())} if not format.startswith("kohya") else None
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata)
    return deltas


def touched(checkpoint: Any) -> list[tuple[str, str, Any]]:
    """Part, path and module of all that a LoRA may touch."""
    roots = {"unet": checkpoint.unet}
    for encoder in checkpoint.text_encoders:
        roots["text_encoder_2" if hasattr(encoder, "text_projection") else "text_encoder"] = encoder
    return [
        (part, path, module)
        for part, root in roots.items()
        for path, module in root.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    ]


def fuse(checkpoint: Any, deltas: Deltas, scale: float = 1.0) -> None:
    """Add a LoRA to the weights themselves."""
    for part, path, module in touched(checkpoint):
        if (part, path) in deltas:
            with torch.no_grad():
                module.weight += (scale * deltas[part, path]).to(module.weight)


def _random(module: Any, generator: torch.Generator, strength: float, *, mid: bool) -> dict[str, torch.Tensor]:
    out, into, *kernel = module.weight.shape
    has_mid = mid and kernel not in ([], [1, 1])
    shapes = {
        "down": (RANK, into, *([1, 1] if has_mid else kernel)),
        "up": (out, RANK, *([1] * len(kernel))),
        **({"mid": (RANK, RANK, *kernel)} if has_mid else {}),
    }
    made = {role: torch.randn(shape, generator=generator) for role, shape in shapes.items()}
    made = {role: tensor / torch.linalg.matrix_norm(tensor.flatten(1), 2) for role, tensor in made.items()}
    made["up"] *= strength
    return made


def _whole(made: dict[str, torch.Tensor]) -> torch.Tensor:
    down, up = made["down"], made["up"]
    if "mid" in made:
        # LyCORIS: W[o, i, h, w] = sum over p, q of up[o, p] * mid[p, q, h, w] * down[q, i]
        return torch.einsum("op,pqhw,qi->oihw", up[:, :, 0, 0], made["mid"], down[:, :, 0, 0])
    return (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


def _named(
    format: Format,  # noqa: A002 - as above
    unet: Any,
    part: str,
    path: str,
    made: dict[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    if part != "unet":
        path = f"text_model.{path.removeprefix('text_model.')}" if path != "text_projection" else path
    if format.startswith("kohya"):
        if part == "unet" and format == "kohya_sgm":
            from tests.support.original_layout import unet_key  # that module imports, by way of another, this one

            names = {f"{name}.weight" for name, _ in unet.named_modules()}
            path = unet_key(f"{path}.weight", unet.config.layers_per_block + 1, names).removesuffix(".weight")
        prefix = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}[part]
        base = f"{prefix}_{path.replace('.', '_')}"
        return {f"{base}.lora_{role}.weight": tensor for role, tensor in made.items()} | {
            f"{base}.alpha": torch.tensor(ALPHA)
        }
    if format == "peft":
        return {f"{part}.{path}.lora_{'A' if role == 'down' else 'B'}.weight": made[role] for role in made}
    if format == "diffusers_old":
        path, dot = _older(path)
        return {f"{part}.{path}{dot}{role}.weight": tensor for role, tensor in made.items()}
    middle = "lora" if part == "unet" else "lora_linear_layer"
    return {f"{part}.{path}.{middle}.{role}.weight": tensor for role, tensor in made.items()}


def _older(path: str) -> tuple[str, str]:
    """diffusers before 0.21: the attention's layers are of its processor, and of text encoders to_q too."""
    for old, new in (("attn1.", "attn1.processor."), ("attn2.", "attn2.processor."), ("to_out.0", "to_out")):
        path = path.replace(old, new)
    for letter in ("q", "k", "v", "out"):
        path = path.replace(f"self_attn.{letter}_proj", f"self_attn.to_{letter}")
    return path, "_lora." if ".to_" in path else ".lora."


def _adapter() -> dict[str, Any]:
    parts = ("unet", "text_encoder", "text_encoder_2")
    return {f"{part}.{key}": value for part in parts for key, value in (("r", RANK), ("lora_alpha", ALPHA))}
