"""Loads an SDXL checkpoint and puts its parts on the device in the right precision."""

from __future__ import annotations

import logging
import platform
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch

from inference.engine.attention import choose_attention
from inference.engine.locate import locate
from inference.engine.metadata import read_metadata
from inference.engine.parts import load_parts
from inference.engine.samplers import resolve_name
from inference.engine.types import CheckpointError, EngineInfo, UnknownSchedulerError
from inference.engine.weights import fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from inference.engine.locate import Located
    from inference.engine.metadata import Metadata
    from inference.engine.parts import Parts

log = logging.getLogger(__name__)

REPORTED = ("torch", "diffusers", "transformers", "safetensors", "xformers")
MAX_MESSAGE = 600


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
        CheckpointError: with the reason in plain words, on one line.

    """
    try:
        return _load(name, revision, search, device, attention)
    except CheckpointError as problem:
        # paths and the libraries' own messages may hold line breaks; a log line and a health answer may not
        raise CheckpointError(re.sub(r"\s+", " ", str(problem)).strip()[:MAX_MESSAGE]) from problem


def _load(name: str, revision: str | None, search: tuple[Path, ...], device: str, attention: str) -> Checkpoint:
    target = choose_device(device)
    dtype = torch.float16 if target.type == "cuda" else torch.float32
    located = locate(name, revision, search, half=dtype == torch.float16)
    described = read_metadata(located.name, located.folder)
    _check_scheduler(described)
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(weights_sha256, located)  # reads the files while they are being loaded
        parts = load_parts(located, dtype)
        try:
            _place(parts, target, dtype)
        except torch.OutOfMemoryError:
            raise CheckpointError(f"{located.name} does not fit into the memory of {target}") from None
        used = choose_attention(parts.unet, attention, target)
        info = _describe(described, digest.result(), device=target, dtype=dtype, attention=used)
    log.info("checkpoint %s loaded on %s in %s with %s attention", info.checkpoint, info.device, info.dtype, used)
    return Checkpoint(
        unet=parts.unet,
        vae=parts.vae,
        tokenizers=parts.tokenizers,
        text_encoders=(parts.text_encoder, parts.text_encoder_2),
        scheduler_config=parts.scheduler_config,
        zero_empty_prompt=parts.zero_empty_prompt,
        latent_channels=int(parts.unet.config.in_channels),
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


def _check_scheduler(described: Metadata) -> None:
    try:
        resolve_name(described.defaults.scheduler)
    except UnknownSchedulerError as problem:
        raise CheckpointError(f"{described.name}: igen.json: {problem}") from None


def _place(parts: Parts, device: torch.device, dtype: torch.dtype) -> None:
    # a VAE that says itself that fp16 overflows stays in fp32, for good: moving it for every picture is slow
    upcast = dtype == torch.float16 and parts.vae.config.force_upcast
    for part in (parts.unet, parts.text_encoder, parts.text_encoder_2):
        part.requires_grad_(requires_grad=False).eval().to(device=device, dtype=dtype)
    parts.vae.requires_grad_(requires_grad=False).eval().to(device=device, dtype=torch.float32 if upcast else dtype)
    # convolutions run faster with channels last, on CPUs through oneDNN and on tensor cores
    parts.unet.to(memory_format=torch.channels_last)
    parts.vae.to(memory_format=torch.channels_last)


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
    """One SHA-256, in hexadecimal, over exactly the weight files that are loaded."""
    if located.single_file is not None:
        return fingerprint(located.single_file.parent, (located.single_file,))
    files = [file for weights in located.weights.values() for file in weights.files]
    return fingerprint(located.folder, files)
