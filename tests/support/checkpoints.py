"""Checkpoints in every shape that a user may bring, made from the bundled one, which is only read."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from tests.support.loras import save_lora as save_lora  # noqa: PLC0414 - all makers can be had from here

if TYPE_CHECKING:
    from collections.abc import Callable

CATALOGUE = Path(__file__).resolve().parents[2] / "inference" / "checkpoints"
TINY = CATALOGUE / "tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
CONFIGURATION = ("*.json", "*/*.json", "*/*.txt")

Tensors = dict[str, torch.Tensor]


def copy_tiny(target: Path) -> Path:
    """A copy of the bundled folder that may be changed."""
    shutil.copytree(TINY, target)
    return target


def copy_configuration(target: Path) -> Path:
    """The bundled folder without its weights and without `igen.json`."""
    for source in (item for pattern in CONFIGURATION for item in TINY.glob(pattern)):
        if source.name != "igen.json":
            place = target / source.relative_to(TINY)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, place)
    return target


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None takes one out."""
    data = json.loads(path.read_text())
    data.update(changes)
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def weights_of(folder: Path, part: str) -> Path:
    return folder / part / f"{WEIGHTS[part]}.safetensors"


def change_weights(path: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Read a weight file, change its tensors and write it back."""
    save_file({key: value.contiguous() for key, value in change(load_file(path)).items()}, path)


def as_variant(folder: Path, *parts: str, variant: str = "fp16") -> None:
    """Rename the weights of parts to a variant's names."""
    for part in parts:
        path = weights_of(folder, part)
        path.rename(path.with_name(f"{WEIGHTS[part]}.{variant}.safetensors"))


def as_shards(folder: Path, part: str, count: int = 2) -> list[Path]:
    """Split the weights of a part in files with an index, as diffusers and transformers save large models."""
    path = weights_of(folder, part)
    tensors = load_file(path)
    path.unlink()
    names = [f"{WEIGHTS[part]}-{number + 1:05}-of-{count:05}.safetensors" for number in range(count)]
    owner = {key: names[number % count] for number, key in enumerate(sorted(tensors))}
    for name in names:
        chosen = {key: tensors[key] for key in tensors if owner[key] == name}
        save_file(chosen, path.with_name(name), {"format": "pt"})
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())}, "weight_map": owner}
    path.with_name(f"{path.name}.index.json").write_text(json.dumps(index))
    return [path.with_name(name) for name in names]


def as_hub_cache(folder: Path, root: Path, name: str, commit: str = COMMIT, *, main: bool = True) -> Path:
    """Lay a folder out as the hub's cache does: blobs by content hash, snapshots of links. Returns the snapshot."""
    repository = root / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    (repository / "blobs").mkdir(parents=True)
    if main:
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
    for source in (item for item in folder.rglob("*") if item.is_file()):
        blob = repository / "blobs" / hub_etag(source)
        shutil.copy(source, blob)
        link = snapshot / source.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (len(link.relative_to(repository).parts) - 1)) / "blobs" / blob.name)
    return snapshot


def hub_etag(path: Path) -> str:
    """SHA-256 for files in large-file storage, git's SHA-1 for the others, as on the hub."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


# ---- whole checkpoints of other kinds, each a folder beside the bundled one's


def save_epsilon_copy(folder: Path) -> Path:
    """The bundled weights under a schedule that predicts noise, without zero terminal SNR. Its pictures are noise."""
    copy_tiny(folder)
    _rename(folder)
    edit_json(
        folder / "scheduler" / "scheduler_config.json",
        prediction_type="epsilon",
        rescale_betas_zero_snr=False,
        timestep_spacing="leading",
    )
    return folder


def save_second_checkpoint(folder: Path, seed: int) -> Path:
    """The bundled layout with a UNet that draws other pictures: each of its weights moved by a few hundredths."""
    copy_tiny(folder)
    _rename(folder)
    change_weights(weights_of(folder, "unet"), lambda tensors: _shaken(tensors, seed))
    return folder


def save_tiny_refiner(folder: Path, seed: int = 0) -> Path:
    """A refiner in SDXL's layout, cut out of the bundled checkpoint: one text encoder, five numbers with a score.

    Its UNet reads the second encoder's states alone, by that part of the bundled weights, a little moved.
    """
    copy_tiny(folder)
    _rename(folder)
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(folder / part)
    index = {"text_encoder": [None, None], "tokenizer": [None, None], "requires_aesthetics_score": True}
    edit_json(folder / "model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline", **index)
    width = json.loads((folder / "text_encoder_2" / "config.json").read_text())["hidden_size"]
    numbers = 5 * json.loads((folder / "unet" / "config.json").read_text())["addition_time_embed_dim"]
    edit_json(
        folder / "unet" / "config.json",
        cross_attention_dim=width,
        projection_class_embeddings_input_dim=width + numbers,
    )

    def cut(tensors: Tensors) -> Tensors:
        for key, tensor in tensors.items():
            if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
                tensors[key] = tensor[:, -width:]
        tensors["add_embedding.linear_1.weight"] = tensors["add_embedding.linear_1.weight"][:, : width + numbers]
        return _shaken(tensors, seed)

    change_weights(weights_of(folder, "unet"), cut)
    return folder


def _rename(folder: Path) -> None:
    edit_json(folder / "igen.json", name=folder.name, title=None, description=None)


def _shaken(tensors: Tensors, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        key: tensor * (1 + 0.03 * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
        for key, tensor in tensors.items()
    }
