"""How far the engine's pictures are from stock diffusers' in float32, beside how far stock's own fp16 is."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from inference.engine.compiling import twin_of
from scripts.gpubench.contestants import Load, draw, engine_over, run_stock, stock_pipeline
from scripts.gpubench.rows import Row

if TYPE_CHECKING:
    from inference.engine.levers import Levers
    from scripts.gpubench.contestants import Pixels
    from scripts.gpubench.sdxl import Models

STEPS = 4
WORSE = 1.5
"""The engine may be so many times as far from float32 as stock diffusers in the same precision is."""
CLOSE = 0.02
"""And below this relative error it is right however exact stock was."""


def reference(models: Models, size: int) -> Pixels:
    """Stock diffusers' picture of the same weights in float32, without TF32.

    The models themselves are made float32 for it and go back after it, which loses nothing: a second copy in float32
    would not fit into 24 GB beside them.
    """
    parts = (models.unet, *models.encoders)
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        for part in parts:
            part.float()
        return run_stock(stock_pipeline(replace(models, dtype=torch.float32)), Load(1, size, STEPS))[2]
    finally:
        torch.backends.cudnn.allow_tf32 = before
        for part in parts:
            part.to(models.dtype)
        gc.collect()
        if models.device.type == "cuda":
            torch.cuda.empty_cache()


def check(models: Models, levers: Levers, size: int, exact: Pixels) -> dict[str, Any]:
    """Relative errors against `exact`, and whether the engine's is what the precision explains."""
    load = Load(1, size, STEPS)
    with engine_over(models, Row("engine", "check", 1, levers), load, twin_of(models.unet)) as engine:
        ours = draw(engine, load, "same")[2]
    stock = run_stock(stock_pipeline(models), load)[2]
    found = {"engine": relative_error(ours, exact), "stock": relative_error(stock, exact)}
    right = found["engine"] <= max(CLOSE, WORSE * found["stock"])
    return {**found, "levers": str(levers), "steps": STEPS, "right": right}


def relative_error(pictures: Pixels, exact: Pixels) -> float:
    """Norm of the difference over the norm of what is right. Pixels in 0..255."""
    ours, right = (np.stack(each).astype(np.float64) for each in (pictures, exact))
    return float(np.linalg.norm(ours - right) / np.linalg.norm(right))
