"""Latents to pixels, safe in half precision."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

log = logging.getLogger(__name__)


class LatentDecoder:
    """The VAE's decoder, in the precision that it was loaded in.

    SDXL's own VAE overflows in fp16; a checkpoint says so by `force_upcast`, and the loader then keeps it in fp32
    for good, because moving it to and fro for every picture is slow. Where an fp16 VAE yields values that are not
    finite all the same, it is moved to fp32 once and stays there.
    """

    def __init__(self, vae: Any) -> None:
        """`vae` is an AutoencoderKL on its device."""
        self._vae = vae
        self._mean: list[float] | None = getattr(vae.config, "latents_mean", None)
        self._std: list[float] | None = getattr(vae.config, "latents_std", None)

    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Latents float32 [n, 4, h, w] to RGB uint8 [n, 8h, 8w, 3].

        Raises:
            FloatingPointError: the latents themselves are not finite, so there is no picture in them.

        """
        if not bool(torch.isfinite(latents).all()):
            raise FloatingPointError("the latents are not finite")
        pixels = self._run(latents)
        if self._vae.dtype != torch.float32 and not bool(torch.isfinite(pixels).all()):
            log.warning("the VAE overflowed in %s; it stays in float32 from now on", self._vae.dtype)
            self._vae.to(dtype=torch.float32)
            pixels = self._run(latents)
        scaled = (pixels / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        array: NDArray[np.uint8] = scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return array

    def _run(self, latents: Tensor) -> Tensor:
        scaled = latents / self._vae.config.scaling_factor
        if self._mean is not None and self._std is not None:
            # made here: where the VAE waits in host memory its device now is not the one that it works on
            mean, std = (
                torch.tensor(each, device=scaled.device).view(1, -1, 1, 1) for each in (self._mean, self._std)
            )
            scaled = scaled * std + mean
        return self._vae.decode(scaled.to(self._vae.dtype), return_dict=False)[0].float()
