"""Write a checkpoint folder in diffusers' layout: halves under unsuffixed names, swapped in atomically."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers

from scripts.train_tiny.architecture import NATIVE_SIZE, build_scheduler

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

DEFAULTS: dict[str, Any] = {
    "width": NATIVE_SIZE,
    "height": NATIVE_SIZE,
    "num_inference_steps": 10,
    "guidance_scale": 2.5,
    "scheduler": "euler",
    "negative_prompt": "blurry, low quality, noisy",
}
"""What a caller gets who names only a prompt."""

DESCRIPTION = (
    "A tiny checkpoint in SDXL's architecture, trained from scratch on pictures that a program drew: coloured "
    "shapes and simple scenes at 128x128. It shows that every part works, on a CPU too; it is no "
    "general-purpose model."
)

_FOLDER_MODE = 0o755
_FILE_MODE = 0o644


@dataclass(slots=True)
class Parts:
    """The trained modules of one checkpoint."""

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer
    tokenizer_2: CLIPTokenizer


def export(parts: Parts, target: Path, defaults: dict[str, Any] | None = None) -> None:
    """Write `parts` to the folder `target`, replacing what is there in one rename.

    A reader sees the old folder or the new one, and for the moment between two renames none; it never
    sees a mixture.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        fresh.chmod(_FOLDER_MODE)
        _write(parts, fresh, DEFAULTS if defaults is None else defaults)
        _swap(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _write(parts: Parts, folder: Path, defaults: dict[str, Any]) -> None:
    for name in ("vae", "unet", "text_encoder", "text_encoder_2"):
        # A copy, because .half() converts in place; halves lose nothing that bf16 training could tell.
        module = copy.deepcopy(getattr(parts, name)).cpu().half()
        module.save_pretrained(folder / name, safe_serialization=True)
    for name in ("text_encoder", "text_encoder_2"):
        _rewrite_dtype(folder / name / "config.json")
    for name in ("tokenizer", "tokenizer_2"):
        _write_tokenizer(getattr(parts, name), folder / name)
    build_scheduler().save_pretrained(folder / "scheduler")
    _write_json(folder / "model_index.json", _model_index())
    _write_json(folder / "igen.json", _description(defaults))
    for path in folder.rglob("*.safetensors"):
        # The safetensors library writes for the owner alone; a checkpoint is read by whoever serves it.
        path.chmod(_FILE_MODE)


def _write_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write today's tokenizer.json, and the two files that SDXL's own repositories and older loaders have."""
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    _write_json(folder / "vocab.json", model["vocab"])
    merges = "".join(f"{' '.join(pair)}\n" for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}")


def _rewrite_dtype(config: Path) -> None:
    """Say float32: transformers would otherwise load the stored halves as halves, and diffusers does not."""
    settings = json.loads(config.read_text())
    settings.pop("torch_dtype", None)
    settings["dtype"] = "float32"
    _write_json(config, settings)


def _model_index() -> dict[str, Any]:
    return {
        "_class_name": "StableDiffusionXLPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        # The empty negative prompt was trained as the unconditional, so it has to be encoded, not zeroed.
        "force_zeros_for_empty_prompt": False,
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _description(defaults: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "tiny",
        "title": "IGen demonstration checkpoint",
        "demonstration": True,
        "description": DESCRIPTION,
        "licence": "Apache-2.0",
        "defaults": defaults,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=False) + "\n")


def _swap(fresh: Path, target: Path) -> None:
    if not target.exists():
        fresh.rename(target)
        return
    retired = fresh.with_name(fresh.name + "-old")
    target.rename(retired)
    fresh.rename(target)
    shutil.rmtree(retired)


def folder_bytes(folder: Path) -> int:
    """Return the size of all files below `folder` in bytes."""
    return sum(os.stat(path).st_size for path in folder.rglob("*") if path.is_file())  # noqa: PTH116
