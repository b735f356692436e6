"""Loads an SDXL checkpoint through diffusers and puts its parts on the device in the right precision."""

from __future__ import annotations

import hashlib
import logging
import platform
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from inference.engine.attention import choose_attention
from inference.engine.locate import locate, read_metadata
from inference.engine.types import CheckpointError, EngineInfo

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from inference.engine.locate import Located, Metadata

log = logging.getLogger(__name__)

REPORTED = ("torch", "diffusers", "transformers", "safetensors", "xformers")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded checkpoint: modules in eval mode on `device`, `unet` in `dtype`, `vae` perhaps in fp32."""

    unet: Any
    vae: Any
    tokenizers: tuple[Any, Any]
    text_encoders: tuple[Any, Any]
    scheduler_config: Mapping[str, Any]
    zero_empty_prompt: bool
    latent_channels: int
    device: torch.device
    dtype: torch.dtype
    info: EngineInfo


def load_checkpoint(
    name: str, revision: str | None, search: tuple[Path, ...], *, device: str = "auto", attention: str = "auto"
) -> Checkpoint:
    """Load by name; see `locate` for what a name may be. fp16 on CUDA, fp32 on a CPU.

    Raises:
        CheckpointError: with the reason in plain words.

    """
    target = choose_device(device)
    dtype = torch.float16 if target.type == "cuda" else torch.float32
    located = locate(name, revision, search)
    described = read_metadata(located)
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(weights_sha256, located)  # reads the files while they are being loaded
        pipeline = _load_pipeline(located, dtype)
        _place(pipeline, target, dtype)
        used = choose_attention(pipeline.unet, attention, target)
        info = _describe(described, digest.result(), device=target, dtype=dtype, attention=used)
    log.info("checkpoint %s loaded on %s in %s with %s attention", info.checkpoint, info.device, info.dtype, used)
    return Checkpoint(
        unet=pipeline.unet,
        vae=pipeline.vae,
        tokenizers=(pipeline.tokenizer, pipeline.tokenizer_2),
        text_encoders=(pipeline.text_encoder, pipeline.text_encoder_2),
        scheduler_config=dict(pipeline.scheduler.config),
        zero_empty_prompt=bool(pipeline.config.get("force_zeros_for_empty_prompt", True)),
        latent_channels=int(pipeline.unet.config.in_channels),
        device=target,
        dtype=dtype,
        info=info,
    )


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one.

    Raises:
        CheckpointError: CUDA was asked for and is not there.

    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise CheckpointError("IGEN_DEVICE asks for CUDA, and this PyTorch sees no CUDA device")
    return torch.device(name)


def _quiet_libraries() -> None:
    """No progress bars and no advice on standard error: a server's log is read by machines."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def _load_pipeline(located: Located, dtype: torch.dtype) -> Any:
    _quiet_libraries()
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True}
    try:
        if located.single_file is not None:
            return StableDiffusionXLPipeline.from_single_file(
                str(located.single_file), config=str(located.folder), add_watermarker=False, **options
            )
        return StableDiffusionXLPipeline.from_pretrained(
            str(located.folder), use_safetensors=True, variant=located.variant, add_watermarker=False, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError) as problem:
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise CheckpointError(f"{located.name} cannot be loaded: {reason}") from problem


def _place(pipeline: Any, device: torch.device, dtype: torch.dtype) -> None:
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
        part.requires_grad_(requires_grad=False).eval().to(device=device)
        if part.dtype != dtype:
            part.to(dtype=dtype)
    if dtype == torch.float16 and pipeline.vae.config.force_upcast:
        pipeline.vae.to(dtype=torch.float32)  # it says itself that fp16 overflows; for good, not per picture
    # convolutions run faster with channels last, on CPUs through oneDNN and on tensor cores
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.vae.to(memory_format=torch.channels_last)


def _describe(
    described: Metadata, digest: str, *, device: torch.device, dtype: torch.dtype, attention: str
) -> EngineInfo:
    versions = {name: found for name in REPORTED if (found := _version(name))}
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return EngineInfo(
        checkpoint=described.name,
        sha256=digest,
        demonstration=described.demonstration,
        device=device_name,
        dtype=str(dtype).removeprefix("torch."),
        attention=attention,
        defaults=described.defaults,
        schedulers=(),
        versions={"python": platform.python_version(), **versions},
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def weights_sha256(located: Located) -> str:
    """One SHA-256 over the names and digests of every weight file that is loaded, in hexadecimal."""
    if located.single_file is not None:
        return _file_sha256(located.single_file)
    suffix = f".{located.variant}.safetensors" if located.variant else ".safetensors"
    total = hashlib.sha256()
    for path in sorted(located.folder.glob(f"*/*{suffix}")):
        total.update(f"{path.relative_to(located.folder)}:{_file_sha256(path)}\n".encode())
    return total.hexdigest()


def _file_sha256(path: Path) -> str:
    blob = path.resolve().name
    if path.is_symlink() and len(blob) == 64:  # noqa: PLR2004 - the hub's cache names a blob by its SHA-256
        return blob
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
