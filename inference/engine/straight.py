"""Weights from their files straight onto the device, without a copy in host memory, while other parts are loaded.

Reading touches no state of the libraries, so it may go on beside them; making modules does, and is left to one
thread.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

log = logging.getLogger(__name__)


def read_tensors(files: Iterable[Path], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor of safetensors files, on the device, numbers with a point in `dtype`."""
    found: dict[str, Tensor] = {}
    for file in files:
        with safe_open(str(file), framework="pt", device=str(device)) as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                tensor = opened.get_tensor(name)
                found[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return found


def module_of(kind: Any, folder: Path, tensors: Mapping[str, Tensor]) -> Any | None:
    """A diffusers model over these tensors themselves; None where they are not exactly what it has.

    Then the library is to load it, which knows older names and says what is missing.
    """
    with torch.device("meta"):
        module = kind.from_config(kind.load_config(str(folder), local_files_only=True))
    wanted = {name: tensor.shape for name, tensor in module.state_dict().items()}
    if wanted != {name: tensor.shape for name, tensor in tensors.items()}:
        log.info("the weights in %s are not named as %s names its own", folder, kind.__name__)
        return None
    module.load_state_dict(dict(tensors), assign=True)
    if any(tensor.is_meta for tensor in module.buffers()):  # of those that no file holds
        return None
    return module.eval()
