"""The deterministic renderer: a drawn lot in, a picture out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scripts.train_tiny.draw_scenes import draw_scene
from scripts.train_tiny.draw_shapes import draw_shape
from scripts.train_tiny.pictures import Picture, ShapePicture

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DRAWING = 1
"""Keeps the renderer's random numbers apart from those that drew the lot."""


def render(picture: Picture) -> NDArray[np.uint8]:
    """Render a picture as (128, 128, 3) sRGB bytes; the same picture gives the same bytes."""
    rng = np.random.default_rng([*picture.seed, _DRAWING])
    subject = picture.subject
    canvas = draw_shape(subject, rng) if isinstance(subject, ShapePicture) else draw_scene(subject, rng)
    if picture.fault is not None:
        canvas = _spoil(canvas, picture.fault, rng)
    return np.round(np.clip(canvas, 0, 1) * 255).astype(np.uint8)


def _spoil(canvas: NDArray[np.float32], fault: str, rng: np.random.Generator) -> NDArray[np.float32]:
    """Spoil a picture the way its caption will say, so that a negative prompt has something to mean."""
    if fault == "blurry":
        return _blur(canvas, rng.uniform(3, 6))
    if fault == "noisy":
        return canvas + rng.normal(0, rng.uniform(0.05, 0.1), canvas.shape).astype(np.float32)
    if fault == "pixelated":
        block = int(rng.choice([8, 16]))
        small = canvas.reshape(canvas.shape[0] // block, block, canvas.shape[1] // block, block, 3).mean((1, 3))
        return small.repeat(block, 0).repeat(block, 1)
    return canvas * np.float32(0.4) + np.float32(0.35)


def _blur(canvas: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    reach = int(3 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    for axis in (0, 1):
        pad = [(reach, reach) if number == axis else (0, 0) for number in range(3)]
        padded = np.pad(canvas, pad, mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=axis)
        canvas = np.asarray(windows @ kernel, np.float32)
    return canvas
