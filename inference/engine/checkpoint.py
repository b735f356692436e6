"""Loads an SDXL checkpoint and puts its parts on the device in the right precision."""

from __future__ import annotations

import logging
import platform
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

import torch

from inference.engine.fitting import Tuning, fit_levers
from inference.engine.gauge import Probe
from inference.engine.levers import Levers
from inference.engine.locate import locate
from inference.engine.memory import choose_mode, free_bytes, needs_of
from inference.engine.metadata import read_metadata
from inference.engine.parts import load_parts
from inference.engine.schedulers import ALIASES, allowed, resolve_name
from inference.engine.types import CheckpointError, EngineInfo, UnknownSchedulerError
from inference.engine.weights import fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from inference.engine.compiling import FastUnet
    from inference.engine.fitting import Fitted
    from inference.engine.locate import Located
    from inference.engine.memory import MemoryMode
    from inference.engine.metadata import Metadata
    from inference.engine.parts import Parts

log = logging.getLogger(__name__)

REPORTED = ("torch", "diffusers", "transformers", "safetensors", "xformers")
MAX_MESSAGE = 600

Kind = Literal["base", "refiner"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded checkpoint: modules in eval mode on `device`, `unet` in `dtype`, `vae` perhaps in fp32.

    A refiner has one tokenizer and text encoder, the second. `wants_aesthetics`: its UNet is told a score of beauty
    in place of the target size. `weight_bytes` are those of all modules. `runner` is the UNet with its `levers` set;
    None where it is called as it is.
    """

    unet: Any
    vae: Any
    tokenizers: tuple[Any, ...]
    text_encoders: tuple[Any, ...]
    scheduler_config: Mapping[str, Any]
    zero_empty_prompt: bool
    latent_channels: int
    device: torch.device
    dtype: torch.dtype
    info: EngineInfo
    memory_mode: MemoryMode = "resident"
    wants_aesthetics: bool = False
    weight_bytes: int = 0
    levers: Levers = field(default_factory=Levers)
    runner: FastUnet | None = None

    def unet_for(self, *, hooked: bool) -> Any:
        """What to call for a step. `hooked`: LoRAs act on the modules, which only the modules themselves notice."""
        if self.runner is None:
            return self.unet
        return self.runner.original if hooked else self.runner


def load_checkpoint(
    name: str,
    revision: str | None,
    search: tuple[Path, ...],
    *,
    device: str = "auto",
    attention: str = "auto",
    memory_mode: str = "auto",
    kind: Kind = "base",
    tuning: Tuning | None = None,
) -> Checkpoint:
    """Load by name; see `locate` for what a name may be. fp16 on CUDA, fp32 on a CPU.

    `tuning` says how the levers are chosen; its attention is the one given here.

    Raises:
        CheckpointError: with the reason in plain words, on one line.

    """
    try:
        target = choose_device(device)
        located = locate(name, revision, search, half=dtype_on(target) == torch.float16, kind=kind)
        tuning = tuning or Tuning()
        tuning = replace(tuning, wanted=replace(tuning.wanted, attention=attention))
        return _load(located, target, tuning, memory_mode)
    except CheckpointError as problem:
        # paths and the libraries' own messages may hold line breaks; a log line and a health answer may not
        raise CheckpointError(re.sub(r"\s+", " ", str(problem)).strip()[:MAX_MESSAGE]) from problem


def _load(located: Located, target: torch.device, tuning: Tuning, memory_mode: str) -> Checkpoint:
    dtype = dtype_on(target)
    described = metadata_of(located)
    _check_scheduler(described)
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(weights_sha256, located)  # reads the files while they are being loaded
        free = free_bytes(target)
        try:
            parts = load_parts(located, dtype, target if target.type == "cuda" else None)
        except torch.OutOfMemoryError:
            raise CheckpointError(f"{located.name} does not fit into the memory of {target}") from None
        size = sum(_bytes_of(module) for module in _modules(parts))
        mode = _choose_mode(memory_mode, parts, described, free)
        try:
            _place(parts, target, dtype, mode)
        except torch.OutOfMemoryError:
            raise CheckpointError(f"{located.name} does not fit into the memory of {target}") from None
        fitted = _fit(parts, described, target, tuning, mode)
        levers = fitted.chosen.levers
        config = {**parts.scheduler_config, **described.scheduler_overrides}
        info = describe(described, config, device=target, mode=mode, sha256=digest.result(), levers=levers)
    log.info("checkpoint %s loaded on %s in %s, %s, %s", info.checkpoint, info.device, info.dtype, levers, mode)
    return Checkpoint(
        unet=parts.unet,
        vae=fitted.vae,
        tokenizers=parts.used_tokenizers,
        text_encoders=parts.used_encoders,
        scheduler_config=config,
        zero_empty_prompt=parts.zero_empty_prompt,
        latent_channels=int(parts.unet.config.in_channels),
        device=target,
        dtype=dtype,
        info=info,
        memory_mode=mode,
        wants_aesthetics=parts.requires_aesthetics_score,
        weight_bytes=size,
        levers=levers,
        runner=fitted.runner,
    )


def _fit(parts: Parts, described: Metadata, target: torch.device, tuning: Tuning, mode: MemoryMode) -> Fitted:
    """Levers are measured with one guided picture of the checkpoint's own size."""
    ids = 5 if parts.requires_aesthetics_score else 6
    probe = Probe(described.defaults.height, described.defaults.width, ids=ids)
    return fit_levers(parts.unet, parts.vae, target, tuning, probe, resident=mode == "resident")


def metadata_of(located: Located) -> Metadata:
    """What a checkpoint says of itself, and where it is silent the catalogue's entry.

    Raises:
        CheckpointError: its `igen.json` is wrong.

    """
    entry = located.entry
    if entry is None:
        return read_metadata(located.name, located.folder)
    return read_metadata(located.name, located.folder, preset=entry.preset or "none", defaults=entry.defaults)


def dtype_on(device: torch.device) -> torch.dtype:
    """The precision of a device's weights."""
    return torch.float16 if device.type == "cuda" else torch.float32


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


def _choose_mode(wanted: str, parts: Parts, described: Metadata, free: int | None) -> MemoryMode:
    """By the memory that was free before any weights were there; for one guided picture of the checkpoint's size."""
    needs = None
    if free is not None:
        size = {"height": described.defaults.height, "width": described.defaults.width}
        needs = needs_of(parts.unet, parts.used_encoders, parts.vae, **size, rows=2)
    return choose_mode(wanted, free, needs)


def _modules(parts: Parts) -> list[Any]:
    found = (parts.unet, parts.vae, parts.text_encoder, parts.text_encoder_2)
    return [module for module in found if module is not None]


def _bytes_of(module: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))


def _place(parts: Parts, device: torch.device, dtype: torch.dtype, mode: MemoryMode = "resident") -> None:
    # a VAE that says itself that fp16 overflows stays in fp32, for good: moving it for every picture is slow
    upcast = dtype == torch.float16 and parts.vae.config.force_upcast
    waiting = torch.device("cpu") if mode == "offload" else device
    for part in _modules(parts):
        where = device if part is parts.unet else waiting
        precision = torch.float32 if part is parts.vae and upcast else dtype
        part.requires_grad_(requires_grad=False).eval().to(device=where, dtype=precision)
    # convolutions run faster with channels last, on CPUs through oneDNN and on tensor cores
    parts.unet.to(memory_format=torch.channels_last)
    parts.vae.to(memory_format=torch.channels_last)


def describe(
    described: Metadata,
    scheduler_config: Mapping[str, Any],
    *,
    device: torch.device,
    sha256: str = "",
    levers: Levers | None = None,
    mode: MemoryMode = "resident",
) -> EngineInfo:
    """What is told of a checkpoint; `sha256` is empty and `levers` None where it has not been loaded."""
    versions = {name: found for name in REPORTED if (found := _version(name))}
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return EngineInfo(
        checkpoint=described.name,
        sha256=sha256,
        demonstration=described.demonstration,
        device=device_name,
        dtype=str(dtype_on(device)).removeprefix("torch."),
        attention="" if levers is None else levers.attention,
        defaults=described.defaults,
        schedulers=allowed(scheduler_config),
        scheduler_aliases=tuple(sorted(ALIASES)),
        versions={"python": platform.python_version(), **versions},
        memory_mode=mode,
        levers={} if levers is None else {**levers.named(), "memory_mode": mode},
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
