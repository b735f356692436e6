"""The second stage: the denoiser and both text encoders, trained together on pooled latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from torch.nn import functional

from scripts.train_tiny.architecture import CONTEXT_LENGTH, build_scheduler, time_ids
from scripts.train_tiny.captions import caption
from scripts.train_tiny.loop import Outcome, Plan, Run, device, step_generator
from scripts.train_tiny.pictures import Picture, ShapePicture
from scripts.train_tiny.pool import pool_picture

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from scripts.train_tiny.export import Parts

_LAST_SHARE = 0.12
"""The share of a batch put at the last timestep, pure noise, where a picture's layout is decided."""
_CAPTION_LOT = 3
_SCENE_KEPT = 0.4
"""The chance that a drawn scene is kept: scenes are learned sooner than what shapes' captions ask for."""
_SHORT_CONTEXT = 32
"""Captions are shorter than this: padding to SDXL's 77 would double the text's cost for nothing but padding."""
_WHOLE_FROM = 0.4
"""The share of the steps after which captions are padded to 77 all the same, as the pipeline will do."""


@dataclass(frozen=True, slots=True)
class Curriculum:
    """How the noise comes in, by steps.

    Up to `still_until` every sample stands at the last timestep with nothing in place of the noise: what is
    left is to draw the layout from the words alone, which noise would hide for many times as long. From there
    to `whole_from` the noise grows to its full strength, and the other timesteps take their share of the batch.
    """

    still_until: int = 1500
    whole_from: int = 4000

    def progress(self, step: int) -> float:
        """Return 0 while still, 1 once whole, and the way between."""
        return min(1.0, max(0.0, (step - self.still_until) / (self.whole_from - self.still_until)))

    def last_share(self, step: int) -> float:
        """Return the share of samples at the last timestep."""
        return 1 - (1 - _LAST_SHARE) * self.progress(step)

    def strength(self, step: int) -> float:
        """Return what the noise is multiplied by; it grows slowly at first, for a little already hides much."""
        return self.progress(step) ** 2


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's material: latents (B, 4, 16, 16), noise alike, timesteps (B,), ids (B, tokens) each."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    ids: tuple[Tensor, Tensor]


def _tokens(tokenizer: Any, captions: list[str], length: int) -> Tensor:
    encoded = tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return encoded.input_ids


def _choose(size: int, seed: int, rng: np.random.Generator) -> tuple[int, Picture]:
    while True:
        index = int(rng.integers(size))
        picture = pool_picture(seed, index)
        if isinstance(picture.subject, ShapePicture) or rng.random() < _SCENE_KEPT:
            return index, picture


def make_batch(parts: Parts, pool: Tensor, plan: Plan, curriculum: Curriculum, step: int) -> Batch:
    """Draw one step's pictures, fresh captions, noise and timesteps from the step's own random numbers."""
    rng = np.random.default_rng([plan.seed, step, _CAPTION_LOT])
    chosen = [_choose(len(pool), plan.seed, rng) for _ in range(plan.batch)]
    captions = [caption(picture, rng) for _, picture in chosen]
    generator = step_generator(plan.seed, step)
    latents = pool[[index for index, _ in chosen]]
    noise = torch.randn(latents.shape, generator=generator)
    # One draw in each of B equal spans, so that every batch covers the whole schedule; the root leans to the
    # noisy end, where few-step sampling decides what stands where.
    spread = (torch.arange(plan.batch) + torch.rand(plan.batch, generator=generator)) / plan.batch
    timesteps = (spread.sqrt() * 1000).long().clamp(0, 999)
    last = torch.rand(plan.batch, generator=generator) < curriculum.last_share(step)
    timesteps[last] = 999
    noise *= curriculum.strength(step)
    where = device()
    context = CONTEXT_LENGTH if step >= _WHOLE_FROM * plan.steps else _SHORT_CONTEXT
    ids = tuple(_tokens(one, captions, context).to(where) for one in (parts.tokenizer, parts.tokenizer_2))
    return Batch(latents.to(where), noise.to(where), timesteps.to(where), (ids[0], ids[1]))


def encode_text(parts: Parts, ids: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Encode as the stock pipeline does: (B, 77, both widths) last-but-one states, and (B, pooled)."""
    first = parts.text_encoder(ids[0], output_hidden_states=True)
    second = parts.text_encoder_2(ids[1], output_hidden_states=True)
    return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds


def velocity_loss(parts: Parts, batch: Batch, alphas: Tensor) -> Tensor:
    """Compare predicted and true velocities over the whole schedule, all timesteps alike."""
    alpha = alphas[batch.timesteps].sqrt()[:, None, None, None]
    sigma = (1 - alphas[batch.timesteps]).sqrt()[:, None, None, None]
    noisy = alpha * batch.latents + sigma * batch.noise
    wanted = alpha * batch.noise - sigma * batch.latents
    with torch.autocast(noisy.device.type, dtype=torch.bfloat16):
        states, pooled = encode_text(parts, batch.ids)
        added = {"text_embeds": pooled, "time_ids": time_ids(len(noisy)).to(noisy.device)}
        drawn = parts.unet(noisy, batch.timesteps, states, added_cond_kwargs=added).sample
    return functional.mse_loss(drawn.float(), wanted)


def trainable(parts: Parts) -> nn.ModuleDict:
    """Gather what the second stage trains."""
    names = ("unet", "text_encoder", "text_encoder_2")
    return nn.ModuleDict({name: getattr(parts, name) for name in names})


def _use_plain_attention(parts: Parts) -> None:
    """Use attention by plain matrix products: the fused kernel's bf16 backward is the slowest part on a CPU."""
    if device().type == "cpu":
        parts.unet.set_attn_processor(AttnProcessor())
        for encoder in (parts.text_encoder, parts.text_encoder_2):
            encoder.set_attn_implementation("eager")


def train_unet(parts: Parts, pool: Tensor, plan: Plan, curriculum: Curriculum, folder: Path) -> Outcome:
    """Train denoiser and text encoders in place from their last save in `folder`."""
    where = device()
    module = trainable(parts).to(where).train()
    _use_plain_attention(parts)
    alphas = build_scheduler().alphas_cumprod.to(where)

    def loss(step: int) -> Tensor:
        return velocity_loss(parts, make_batch(parts, pool, plan, curriculum, step), alphas)

    return Run(module, loss, plan, folder / "unet.pt").go("denoiser")
