"""What the device can do at best: a large matrix product and a large copy, measured, not read off a datasheet."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from inference.engine.gauge import device_clock
from inference.engine.tuning import median_s

REPEATS = 10


@dataclass(frozen=True, slots=True)
class Ceilings:
    """`tflops` of a matrix product in the contestants' precision; `gbs` of a copy, bytes read and written."""

    tflops: float
    gbs: float


@torch.inference_mode()
def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """On random numbers: on zeros a GPU draws less power and runs faster than real work ever does."""
    on_cuda = device.type == "cuda"
    side = 8192 if on_cuda else 512
    clock = device_clock(device)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product_s = median_s(lambda: [a @ b for _ in range(REPEATS)], clock) / REPEATS
    source = torch.randn((1 << 28) if on_cuda else (1 << 20), device=device)
    target = torch.empty_like(source)
    copy_s = median_s(lambda: [target.copy_(source) for _ in range(REPEATS)], clock) / REPEATS
    return Ceilings(2 * side**3 / product_s / 1e12, 2 * source.nbytes / copy_s / 1e9)
