"""The whole training, stage after stage, each resumed from what its work folder holds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from scripts.train_tiny.architecture import FULL, SMOKE, Shape, build_text_encoders, build_unet, build_vae
from scripts.train_tiny.captions import vocabulary
from scripts.train_tiny.export import Parts, export
from scripts.train_tiny.loop import Plan
from scripts.train_tiny.pool import CHUNK, fill_pool, load_pool
from scripts.train_tiny.tokens import build_tokenizers
from scripts.train_tiny.unet_stage import Curriculum, train_unet, trainable
from scripts.train_tiny.vae_stage import centre_latents, picture_batch, train_vae
from scripts.train_tiny.vae_start import set_start

if TYPE_CHECKING:
    from pathlib import Path

_CENTRING_PICTURES = 256
_CENTRING_STREAM = 2


_VAE_PLAN = Plan(steps=22_000, batch=8, rate=1e-3, warmup=100, warmdown=0.6, ema=0.998)
_UNET_PLAN = Plan(steps=17_000, batch=16, rate=7e-4, warmup=100, warmdown=0.4, ema=0.998)


@dataclass(frozen=True, slots=True)
class Training:
    """Everything that decides a training: sizes, both stages' plans, and the pool."""

    shape: Shape = FULL
    vae: Plan = _VAE_PLAN
    unet: Plan = _UNET_PLAN
    curriculum: Curriculum = field(default_factory=Curriculum)
    chunks: int = 28
    chunk_size: int = CHUNK
    seed: int = 0


SMOKE_TRAINING = Training(
    shape=SMOKE,
    vae=Plan(steps=4, batch=2, rate=1e-3, warmup=2),
    unet=Plan(steps=6, batch=4, rate=1e-3, warmup=2),
    curriculum=Curriculum(still_until=2, whole_from=4),
    chunks=1,
    chunk_size=8,
)


def build_parts(training: Training) -> Parts:
    """Build all parts with the first weights that the seed gives."""
    torch.manual_seed(training.seed)
    tokenizers = build_tokenizers(vocabulary())
    vae = build_vae(training.shape)
    set_start(vae)
    count = _CENTRING_PICTURES if training.shape == FULL else 4
    centre_latents(vae, picture_batch(training.seed + _CENTRING_STREAM, 0, count))
    unet = build_unet(training.shape)
    first, second = build_text_encoders(tokenizers, training.shape)
    return Parts(vae, unet, first, second, *tokenizers)


def run(training: Training, work: Path, output: Path, stop_after: float | None = None) -> bool:
    """Train from where `work` stands and export to `output`; False when `stop_after` seconds cut it short.

    A run that is cut short exports nothing: `export_saved` does, from whatever save there is.
    """
    if not run_decoder(training, work, stop_after) or not run_denoiser(training, work, stop_after):
        return False
    export_saved(training, work, output)
    return True


def run_decoder(training: Training, work: Path, stop_after: float | None = None) -> bool:
    """Train the decoder; False when `stop_after` seconds cut it short.

    The encoder's weights are given, so this stage and the denoiser's need nothing of each other and may run
    side by side on one work folder.
    """
    plan = replace(training.vae, seed=training.seed, stop_after=stop_after)
    return train_vae(build_parts(training).vae, plan, work).finished


def run_denoiser(training: Training, work: Path, stop_after: float | None = None) -> bool:
    """Fill the latent pool, train denoiser and text encoders on it; False when `stop_after` cut it short."""
    parts = build_parts(training)
    pool_folder = work / "pool"
    fill_pool(parts.vae, training.seed, range(training.chunks), pool_folder, training.chunk_size)
    pool = load_pool(pool_folder, training.chunks)
    plan = replace(training.unet, seed=training.seed, stop_after=stop_after)
    return train_unet(parts, pool, plan, training.curriculum, work).finished


def export_saved(training: Training, work: Path, output: Path) -> int:
    """Export the averaged weights of the last saves in `work`, and return the denoiser's step."""
    parts = build_parts(training)
    parts.vae.load_state_dict(torch.load(work / "vae.pt", map_location="cpu", weights_only=True)["ema"])
    state = torch.load(work / "unet.pt", map_location="cpu", weights_only=True)
    trainable(parts).load_state_dict(state["ema"])
    export(parts, output)
    return int(state["step"])
