"""The latent pool: pictures rendered and encoded once, read many times with ever new captions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from scripts.train_tiny.loop import device
from scripts.train_tiny.pictures import Picture, sample_picture
from scripts.train_tiny.renderer import render
from scripts.train_tiny.vae_stage import to_tensor

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from diffusers import AutoencoderKL
    from torch import Tensor

CHUNK = 1024
_ENCODE = 32
STREAM = 1
"""Added to a run's seed for the pool's pictures, so that they are not the autoencoder's own."""


def pool_picture(seed: int, index: int) -> Picture:
    """Return picture `index` of the pool."""
    return sample_picture(seed + STREAM, index)


def encode_chunk(vae: AutoencoderKL, seed: int, number: int, size: int) -> np.ndarray:
    """Encode pictures `number * size` onwards: (size, 4, 16, 16) scaled latents."""
    where = device()
    found = []
    for first in range(number * size, (number + 1) * size, _ENCODE):
        last = min(first + _ENCODE, (number + 1) * size)
        pictures = to_tensor([render(pool_picture(seed, index)) for index in range(first, last)]).to(where)
        with torch.no_grad(), torch.autocast(where.type, dtype=torch.bfloat16):
            means = vae.encode(pictures).latent_dist.mean
        found.append((means.float() * vae.config.scaling_factor).cpu().numpy())
    return np.concatenate(found)


def fill_pool(vae: AutoencoderKL, seed: int, numbers: Iterable[int], folder: Path, size: int = CHUNK) -> None:
    """Encode the chunks that `folder` lacks; a chunk appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    vae.to(device()).eval()
    for number in numbers:
        path = folder / f"{number:04d}.npy"
        if not path.exists():
            fresh = path.with_suffix(".partial")
            with fresh.open("wb") as file:
                np.save(file, encode_chunk(vae, seed, number, size))
            fresh.replace(path)


def load_pool(folder: Path, chunks: int) -> Tensor:
    """Read the pool: (chunks * CHUNK, 4, 16, 16)."""
    return torch.from_numpy(np.concatenate([np.load(folder / f"{number:04d}.npy") for number in range(chunks)]))
