"""Sets the levers of a checkpoint that has just been put on its device."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from inference.engine.attention import choose_attention
from inference.engine.compiling import FastUnet
from inference.engine.gauge import DeviceGauge, Probe, halved
from inference.engine.levers import Chosen, Levers, WantedLevers, choose_levers
from inference.engine.tuning import read_table
from inference.engine.types import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from inference.engine.tuning import Tuned

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tuning:
    """How the levers are to be chosen. `table` is the file that the GPU benchmark wrote."""

    wanted: WantedLevers = field(default_factory=WantedLevers)
    table: Path | None = None


@dataclass(frozen=True, slots=True)
class Fitted:
    """What came of it: `runner` is to be called in the UNet's place, None where the UNet is called as it is."""

    vae: Any
    chosen: Chosen
    runner: FastUnet | None = None


def fit_levers(unet: Any, vae: Any, device: torch.device, tuning: Tuning, probe: Probe, *, resident: bool) -> Fitted:
    """Choose, and set what was chosen. On a CPU nothing but the attention that was asked for is looked at.

    `resident` says that the VAE is on the device to stay.

    Raises:
        CheckpointError: what was forced cannot be had here.

    """
    wanted = tuning.wanted
    if device.type != "cuda":
        used = choose_attention(unet, wanted.attention, device)
        return Fitted(vae, Chosen(Levers(attention=used)))
    table = _usable(unet, device, tuned_for(tuning.table, device), wanted)
    if wanted.attention != "auto":
        choose_attention(unet, wanted.attention, device)
    gauge = DeviceGauge(unet, vae if resident else None, device, probe)
    chosen = choose_levers(wanted, table, gauge)
    vae, precision = _with_precision(vae, chosen.levers.vae)
    chosen = replace(chosen, levers=replace(chosen.levers, vae=precision))
    log.info("levers: %s", chosen)
    return Fitted(vae, chosen, None if chosen.levers.plain else FastUnet(unet, chosen.levers))


def tuned_for(table: Path | None, device: torch.device) -> Tuned | None:
    """What the table says of a CUDA device, with this PyTorch."""
    return None if table is None else read_table(table, torch.cuda.get_device_name(device), torch.__version__)


def _usable(unet: Any, device: torch.device, tuned: Tuned | None, wanted: WantedLevers) -> dict[str, Any]:
    """The table without what does not work here any more or contradicts what is forced, and the attention set."""
    usable = {} if tuned is None else dict(tuned.levers)
    if wanted.attention == "auto" and "attention" in usable:
        try:
            choose_attention(unet, usable["attention"], device)
        except CheckpointError as problem:
            log.warning("the table's attention is not used: %s", problem)
            del usable["attention"]
    attention = usable.get("attention") if wanted.attention == "auto" else wanted.attention
    if attention == "xformers":
        usable["fused_qkv"] = False
    return usable


def _with_precision(vae: Any, wanted: str) -> tuple[Any, str]:
    """The VAE in the precision wanted, and which it is in the end."""
    if wanted == "fp32":
        return vae.to(dtype=torch.float32), "fp32"
    if vae.dtype == torch.float32 and halved(vae) is None:
        return vae, "fp32"
    return vae, "fp16"
