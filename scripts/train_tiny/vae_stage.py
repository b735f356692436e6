"""The first stage: the autoencoder's decoder, trained on pictures rendered as it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from scripts.train_tiny.architecture import NATIVE_SIZE
from scripts.train_tiny.loop import Outcome, Plan, Run, device, step_generator
from scripts.train_tiny.pictures import sample_picture
from scripts.train_tiny.renderer import render

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers import AutoencoderKL
    from numpy.typing import NDArray
    from torch import Tensor

_EDGE_WEIGHT = 1.0
_SQUARE_WEIGHT = 1.0
_CROPS = 2
"""Crops taken of one rendered picture."""
_TRIES = 3
_WHOLE_FROM = 0.9
"""The share of the steps after which pictures come whole."""


def to_tensor(pictures: list[np.ndarray]) -> Tensor:
    """Turn (H, W, 3) bytes into one (B, 3, H, W) float tensor in [-1, 1]."""
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return stacked.float().div_(127.5).sub_(1).contiguous()


def picture_batch(seed: int, first: int, count: int) -> Tensor:
    """Render pictures `first` to `first + count` of a stream: (count, 3, 128, 128) in [-1, 1]."""
    numbers = range(first, first + count)
    return to_tensor([render(sample_picture(seed, number, shape_share=0.65)) for number in numbers])


def training_batch(plan: Plan, step: int) -> Tensor:
    """Return the batch of one step: crops of a quarter of the area at first, whole pictures at last.

    Crops cost a quarter and teach the convolutions as well; the norms, which see a whole picture's
    statistics at inference, settle on those in the last part.
    """
    if step >= _WHOLE_FROM * plan.steps:
        return picture_batch(plan.seed, step * plan.batch, plan.batch)
    count = (plan.batch + _CROPS - 1) // _CROPS
    whole = picture_batch(plan.seed, step * plan.batch, count).repeat_interleave(_CROPS, 0)[: plan.batch]
    rng = np.random.default_rng([plan.seed, step, _CROPS])
    half = NATIVE_SIZE // 2
    corners = rng.integers(0, half + 1, (plan.batch, _TRIES, 2))
    crops = [_liveliest(one, places, half) for one, places in zip(whole, corners, strict=True)]
    return torch.stack(crops)


def _liveliest(picture: Tensor, corners: NDArray[np.int64], side: int) -> Tensor:
    """Return the crop with most in it: flat ones are learned soon, and most of a shape picture is flat."""
    crops = [picture[:, y : y + side, x : x + side] for y, x in corners]
    return max(crops, key=lambda crop: float(crop.std()))


def _edges(pictures: Tensor) -> tuple[Tensor, Tensor]:
    return pictures[..., 1:, :] - pictures[..., :-1, :], pictures[..., 1:] - pictures[..., :-1]


def reconstruction_loss(drawn: Tensor, wanted: Tensor) -> Tensor:
    """Compare pictures by colour and by edge; absolute differences keep flat areas flat and edges sharp."""
    colour = functional.l1_loss(drawn, wanted) + _SQUARE_WEIGHT * functional.mse_loss(drawn, wanted)
    pairs = zip(_edges(drawn), _edges(wanted), strict=True)
    return colour + _EDGE_WEIGHT * torch.stack([functional.l1_loss(a, b) for a, b in pairs]).sum()


def vae_loss(vae: AutoencoderKL, pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Encode, sample, decode and compare (B, 3, H, W) pictures; only the decoder learns.

    The posterior's spread is fixed, and small: it makes the decoder bear the denoiser's small errors.
    """
    with torch.autocast(pictures.device.type, dtype=torch.bfloat16):
        with torch.no_grad():
            posterior = vae.encode(pictures).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(pictures.device)
        drawn = vae.decode(posterior.mean + posterior.std * noise).sample
    return reconstruction_loss(drawn.float(), pictures)


def train_vae(vae: AutoencoderKL, plan: Plan, folder: Path) -> Outcome:
    """Train `vae` in place from its last save in `folder`; the outcome holds the averaged weights."""
    where = device()
    vae.to(where).train()

    def loss(step: int) -> Tensor:
        pictures = training_batch(plan, step).to(where)
        return vae_loss(vae, pictures, step_generator(plan.seed, step))

    for frozen in (vae.encoder, vae.quant_conv):
        frozen.requires_grad_(False)
    return Run(vae, loss, plan, folder / "vae.pt").go("decoder")


@torch.no_grad()
def centre_latents(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Fold the latents' channel means and uneven scales into the 1x1 convolutions, and set scaling_factor.

    The denoiser then meets channels of mean 0 and equal spread. The pictures do not change: what the
    convolution after the encoder takes out, the one before the decoder puts back.
    """
    means = vae.encode(pictures).latent_dist.mean
    shift, spread = means.mean((0, 2, 3)), means.std((0, 2, 3))
    overall = float((means - shift[None, :, None, None]).std())
    gain = overall / spread
    into, out = vae.quant_conv, vae.post_quant_conv
    # The first four rows give the mean, the last four the log-variance.
    into.weight[:4] *= gain[:, None, None, None]
    into.bias[:4] = (into.bias[:4] - shift) * gain
    into.bias[4:] += 2 * gain.log()
    out.bias += (out.weight[:, :, 0, 0] * shift[None]).sum(1)
    out.weight /= gain[None, :, None, None]
    vae.register_to_config(scaling_factor=round(1 / overall, 5))
