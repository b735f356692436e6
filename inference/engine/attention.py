"""Which attention kernel the UNet runs. diffusers' `set_attention_backend` does nothing on SDXL's UNet.

xformers is a processor on the module. PyTorch's own kernels are asked for around each call, the others behind in line
for shapes that the wanted one cannot do.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch.nn.attention import SDPBackend, sdpa_kernel

from inference.engine.types import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

log = logging.getLogger(__name__)

KERNELS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
"""Of PyTorch, by the names of the settings."""


def choose_attention(
    unet: Any, wanted: str, device: torch.device, fastest: Callable[[Sequence[str]], str] | None = None
) -> str:
    """Set the UNet's attention and return which it is.

    `auto` asks `fastest` which of those that work here it is to be, PyTorch's choice (`sdpa`) the first of them;
    without `fastest`, and on a CPU, it is `sdpa`.

    Raises:
        CheckpointError: what was demanded cannot be had.

    """
    on_cuda = device.type == "cuda"
    if wanted == "sdpa" or (wanted == "auto" and (not on_cuda or fastest is None)):
        return "sdpa"
    if wanted == "auto" and fastest is not None:
        return _choose(unet, device, fastest)
    if wanted in KERNELS:
        if not on_cuda:
            raise CheckpointError(f"IGEN_ATTENTION asks for {wanted}, which needs a CUDA device")
        return wanted
    try:
        _enable_xformers(unet, device)
    except Exception as problem:
        # an extension built for another torch may throw anything
        raise CheckpointError(
            f"IGEN_ATTENTION asks for xformers, which does not work here: {_reason(problem)}"
        ) from problem
    return "xformers"


def _choose(unet: Any, device: torch.device, fastest: Callable[[Sequence[str]], str]) -> str:
    names = ["sdpa", *KERNELS]
    try:
        _enable_xformers(unet, device)
    except Exception as problem:  # noqa: BLE001 - as above; PyTorch's own kernels always work
        log.info("xformers is not used: %s", _reason(problem))
    else:
        names.append("xformers")
    chosen = fastest(names)
    if chosen != "xformers":
        unet.disable_xformers_memory_efficient_attention()  # some layers may have it even where it failed
    return chosen


def _reason(problem: Exception) -> str:
    return str(problem).strip().split("\n", maxsplit=1)[0] or type(problem).__name__


def _enable_xformers(unet: Any, device: torch.device) -> None:
    if device.type != "cuda":
        raise RuntimeError("it needs a CUDA device")
    import_module("xformers.ops")
    unet.enable_xformers_memory_efficient_attention()


def attention_context(name: str) -> AbstractContextManager[Any]:
    """Within it, PyTorch's attention prefers this kernel; for `sdpa` and `xformers` nothing changes."""
    if name not in KERNELS:
        return nullcontext()
    rest = [kernel for kernel in KERNELS.values() if kernel is not KERNELS[name]]
    context: AbstractContextManager[Any] = sdpa_kernel([KERNELS[name], *rest, SDPBackend.MATH], set_priority=True)
    return context
