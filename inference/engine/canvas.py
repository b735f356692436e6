"""Pixels in and out of latents for pictures that begin with a picture: encode, enlarge, put the kept part back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from inference.engine.counting import PIXELS_PER_LATENT

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

LANCZOS_LOBES = 3


class LatentEncoder:
    """The VAE's encoder. Takes the distribution's mode, so that the same picture always gives the same latents."""

    def __init__(self, vae: Any) -> None:
        """`vae` is an AutoencoderKL on its device."""
        self._vae = vae
        self._mean = getattr(vae.config, "latents_mean", None)
        self._std = getattr(vae.config, "latents_std", None)

    def encode(self, pixels: NDArray[np.uint8]) -> Tensor:
        """RGB uint8 [h, w, 3] to latents float32 [4, h/8, w/8] on the VAE's device.

        Raises:
            FloatingPointError: the VAE's answer is not finite even in float32.

        """
        picture = to_planes(pixels).mul(2).sub(1)[None].to(self._vae.device)
        latents = self._run(picture)
        if not bool(torch.isfinite(latents).all()) and self._vae.dtype != torch.float32:
            self._vae.to(dtype=torch.float32)  # it overflowed; see LatentDecoder
            latents = self._run(picture)
        if not bool(torch.isfinite(latents).all()):
            raise FloatingPointError("the picture's latents are not finite")
        return latents[0]

    def _run(self, picture: Tensor) -> Tensor:
        latents: Tensor = self._vae.encode(picture.to(self._vae.dtype)).latent_dist.mode().float()
        if self._mean is not None and self._std is not None:
            mean = torch.tensor(self._mean, device=latents.device).view(1, -1, 1, 1)
            std = torch.tensor(self._std, device=latents.device).view(1, -1, 1, 1)
            latents = (latents - mean) / std
        return latents * self._vae.config.scaling_factor


def to_planes(pixels: NDArray[np.uint8]) -> Tensor:
    """RGB uint8 [h, w, 3] to float32 [3, h, w] from 0 to 1, on the CPU."""
    return torch.tensor(pixels).permute(2, 0, 1).float() / 255  # a copy: the pixels may be read-only


def to_pixels(planes: Tensor) -> NDArray[np.uint8]:
    """Float [3, h, w] from 0 to 1 to RGB uint8 [h, w, 3]; what lies outside is clipped."""
    levels = planes.clamp(0, 1).mul(255).round().to(torch.uint8)
    array: NDArray[np.uint8] = levels.permute(1, 2, 0).contiguous().cpu().numpy()
    return array


def enlarge(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """RGB uint8 [h, w, 3] to [height, width, 3] by Lanczos' window of three lobes, one axis after the other."""
    planes = to_planes(pixels)
    rows = _lanczos(planes.shape[1], height)
    columns = _lanczos(planes.shape[2], width)
    return to_pixels(rows @ planes @ columns.T)


def enlarge_latents(latents: Tensor, height: int, width: int) -> Tensor:
    """Latents float32 [4, h, w] to a picture of `height` by `width` pixels, bicubic."""
    size = (height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
    return functional.interpolate(latents[None], size=size, mode="bicubic", antialias=True)[0]


def _lanczos(source: int, target: int) -> Tensor:
    """Weights float32 [target, source] that resample one axis; each row adds up to one (Duchon 1979)."""
    ratio = source / target
    stretch = max(1.0, ratio)  # shrinking widens the window, so that nothing is skipped
    centres = (torch.arange(target, dtype=torch.float64) + 0.5) * ratio - 0.5
    offset = (torch.arange(source, dtype=torch.float64)[None] - centres[:, None]) / stretch
    window = torch.sinc(offset) * torch.sinc(offset / LANCZOS_LOBES) * (offset.abs() < LANCZOS_LOBES)
    return (window / window.sum(dim=1, keepdim=True)).float()


def latent_mask(mask: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Mask uint8 [h, w] to float32 [1, h/8, w/8]: 1 where any of a latent's 64 pixels is to be drawn anew."""
    picture = torch.tensor(mask).float()[None, None]
    return (functional.max_pool2d(picture, PIXELS_PER_LATENT)[0] > 0).float().to(device)


def keep_outside(drawn: NDArray[np.uint8], kept: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`kept` where the mask is 0, `drawn` where it is 255, in between a blend. All of one size."""
    share = mask[..., None].astype(np.float32) / 255
    blend = drawn.astype(np.float32) * share + kept.astype(np.float32) * (1 - share)
    return np.asarray(np.rint(blend), dtype=np.uint8)


def enlarge_mask(mask: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Mask uint8 [h, w] to [height, width], bilinear."""
    picture = torch.tensor(mask).float()[None, None]
    grown = functional.interpolate(picture, size=(height, width), mode="bilinear", align_corners=False)[0, 0]
    array: NDArray[np.uint8] = grown.round().clamp(0, 255).to(torch.uint8).numpy()
    return array
