"""Small rough pictures of what is being drawn, without the VAE: RGB as a linear function of the four latents.

A latent stands for 8x8 pixels, and its decoded mean colour is close to linear in it. The matrix is fitted to the
checkpoint's own VAE when it is loaded, since fine-tuned VAEs differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import avg_pool2d, interpolate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

PICTURES = 8
SIDE = 128  # pixels; a 64th of SDXL's own size, so that fitting costs an eighth of one encoding at 1024x1024
GRIDS = (1, 2, 3, 5)  # cells of flat colour on a side: from one colour to what a preview can still tell apart


@dataclass(frozen=True, slots=True)
class LatentPreview:
    """`matrix` float32 [5, 3]: what each latent, and a constant, adds to red, green and blue in 0..1."""

    matrix: Tensor

    @classmethod
    @torch.inference_mode()
    def fit(cls, vae: Any, *, seed: int = 0) -> LatentPreview:
        """Least squares over a few pictures of coloured fields, which the VAE encodes.

        Takes milliseconds for the bundled checkpoint, and for SDXL about 1.5 TFLOP: milliseconds on a GPU, seconds
        on a CPU. `vae` must be on its device.
        """
        pictures = _fields(torch.Generator().manual_seed(seed))
        encoded = [_encode(vae, pictures[i : i + 1]) for i in range(len(pictures))]  # one by one: little memory
        latents = torch.cat(encoded)
        rows = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
        known = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
        wanted = avg_pool2d(pictures, pictures.shape[-1] // latents.shape[-1]).permute(0, 2, 3, 1).reshape(-1, 3)
        # in double precision by the normal equations, so that one LAPACK serves every build of torch
        square, right = known.double().T @ known.double(), known.double().T @ wanted.double()
        ridge = 1e-4 * len(rows) * torch.eye(len(square), dtype=torch.float64)
        return cls(torch.linalg.solve(square + ridge, right).float())

    def rgb(self, latents: Tensor) -> NDArray[np.uint8]:
        """Latents float32 [4, h, w], of any amount of noise, to RGB uint8 [h, w, 3]."""
        flat = torch.nan_to_num(latents).permute(1, 2, 0).float()
        matrix = self.matrix.to(latents.device)
        colours = flat @ matrix[:-1] + matrix[-1]
        pixels: NDArray[np.uint8] = colours.clamp(0, 1).mul(255).round().to(torch.uint8).cpu().numpy()
        return pixels


def _fields(generator: torch.Generator) -> Tensor:
    """Pictures of coloured fields, flat and blurred by turns. float32 [n, 3, SIDE, SIDE] in 0..1."""
    made = []
    for i in range(PICTURES):
        grid = GRIDS[i % len(GRIDS)]
        colours = torch.rand(1, 3, grid, grid, generator=generator)
        mode = "nearest" if i < PICTURES // 2 else "bilinear"
        made.append(interpolate(colours, (SIDE, SIDE), mode=mode))
    return torch.cat(made)


def _encode(vae: Any, pictures: Tensor) -> Tensor:
    """The most likely latents, as the UNet sees them; float32 on the CPU."""
    config = vae.config
    latents = vae.encode((pictures * 2 - 1).to(vae.device, vae.dtype)).latent_dist.mode().float().cpu()
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        latents = (latents - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1)
    scaled: Tensor = latents * config.scaling_factor
    return scaled
