from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from inference.engine.decode import LatentDecoder

if TYPE_CHECKING:
    from inference.engine.checkpoint import Checkpoint


@torch.inference_mode()
def test_pixels_have_the_right_shape_and_match_diffusers(checkpoint: Checkpoint) -> None:
    latents = torch.randn(2, 4, 16, 12, generator=torch.Generator().manual_seed(0))
    pixels = LatentDecoder(checkpoint.vae).decode(latents)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (2, 128, 96, 3)
    raw = checkpoint.vae.decode(latents / checkpoint.vae.config.scaling_factor).sample
    expected = ((raw / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(expected - pixels).max() == 0


@torch.inference_mode()
def test_latents_that_are_not_finite_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(FloatingPointError):
        LatentDecoder(checkpoint.vae).decode(torch.full((1, 4, 8, 8), float("nan")))


class OverflowingVae:
    """Overflows in half precision, as SDXL's own VAE does."""

    def __init__(self) -> None:
        self.dtype = torch.float16
        self.device = torch.device("cpu")
        self.config = SimpleNamespace(scaling_factor=1.0)
        self.calls: list[torch.dtype] = []

    def to(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def decode(self, latents: torch.Tensor, *, return_dict: bool) -> tuple[Any]:
        assert not return_dict
        self.calls.append(latents.dtype)
        image = latents[:, :3] * 1e6
        return (image - image,) if latents.dtype == torch.float16 else (torch.zeros_like(image),)


def test_an_overflowing_vae_moves_to_float32_once_and_stays() -> None:
    vae = OverflowingVae()
    decoder = LatentDecoder(vae)
    assert decoder.decode(torch.ones(1, 4, 2, 2)).tolist()[0][0][0] == [128, 128, 128]
    decoder.decode(torch.ones(1, 4, 2, 2))
    assert vae.calls == [torch.float16, torch.float32, torch.float32]
