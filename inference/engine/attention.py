"""Which attention kernel the UNet runs. diffusers' `set_attention_backend` does nothing on SDXL's UNet."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from inference.engine.types import CheckpointError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


def choose_attention(unet: Any, wanted: str, device: torch.device) -> str:
    """Set the UNet's attention and return what it runs: `xformers` or `sdpa`.

    `auto` takes xformers on CUDA when its compiled extension loads and accepts this device, PyTorch's SDPA otherwise.

    Raises:
        CheckpointError: `xformers` was demanded and cannot be had.

    """
    if wanted == "sdpa" or (wanted == "auto" and device.type != "cuda"):
        return "sdpa"
    try:
        _enable_xformers(unet, device)
    except Exception as problem:
        if wanted == "xformers":
            reason = str(problem).strip().split("\n", maxsplit=1)[0] or type(problem).__name__
            raise CheckpointError(
                f"IGEN_ATTENTION asks for xformers, which does not work here: {reason}"
            ) from problem
        # an extension built for another torch may throw anything; PyTorch's own kernels always work
        log.info("xformers is not used: %s", problem)
        unet.disable_xformers_memory_efficient_attention()  # some layers may have it already
        return "sdpa"
    return "xformers"


def _enable_xformers(unet: Any, device: torch.device) -> None:
    if device.type != "cuda":
        raise RuntimeError("it needs a CUDA device")
    import_module("xformers.ops")
    unet.enable_xformers_memory_efficient_attention()
