"""The whole training, stage after stage, each resumed from what its work folder holds."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKL

from scripts.train_tiny.architecture import FULL, SMOKE, Shape, build_text_encoders, build_unet, build_vae
from scripts.train_tiny.captions import vocabulary
from scripts.train_tiny.export import Parts, export
from scripts.train_tiny.loop import Plan
from scripts.train_tiny.pool import CHUNK, fill_pool, load_pool
from scripts.train_tiny.tokens import build_tokenizers
from scripts.train_tiny.unet_stage import train_unet, trainable
from scripts.train_tiny.vae_stage import centre_latents, picture_batch, train_vae
from scripts.train_tiny.vae_start import set_start

if TYPE_CHECKING:
    from pathlib import Path

_CENTRING_PICTURES = 256
_CENTRING_STREAM = 2


_VAE_PLAN = Plan(steps=14_000, batch=4, rate=9e-4, warmup=100, warmdown=0.6, ema=0.998)
_UNET_PLAN = Plan(steps=25_000, batch=16, rate=7e-4, warmup=100, warmdown=0.4, ema=0.998)


@dataclass(frozen=True, slots=True)
class Training:
    """Everything that decides a training: sizes, both stages' plans, and the pool."""

    shape: Shape = FULL
    vae: Plan = _VAE_PLAN
    unet: Plan = _UNET_PLAN
    chunks: int = 26
    chunk_size: int = CHUNK
    seed: int = 0


SMOKE_TRAINING = Training(
    shape=SMOKE,
    vae=Plan(steps=4, batch=2, rate=1e-3, warmup=2),
    unet=Plan(steps=6, batch=4, rate=1e-3, warmup=2),
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
    parts = build_parts(training)
    if not _have_vae(parts, training, work, stop_after):
        return False
    pool_folder = work / "pool"
    fill_pool(parts.vae, training.seed, range(training.chunks), pool_folder, training.chunk_size)
    pool = load_pool(pool_folder, training.chunks)
    plan = replace(training.unet, seed=training.seed, stop_after=stop_after)
    outcome = train_unet(parts, pool, plan, work)
    if outcome.finished:
        trainable(parts).load_state_dict(outcome.ema)
        export(parts, output)
    return outcome.finished


def export_saved(training: Training, work: Path, output: Path) -> int:
    """Export the averaged weights of the last save in `work`, and return its step."""
    parts = build_parts(training)
    parts.vae = AutoencoderKL.from_pretrained(work / "vae")
    state = torch.load(work / "unet.pt", map_location="cpu", weights_only=True)
    trainable(parts).load_state_dict(state["ema"])
    export(parts, output)
    return int(state["step"])


def _have_vae(parts: Parts, training: Training, work: Path, stop_after: float | None) -> bool:
    """Put the trained and centred autoencoder into `parts`, training it first where `work` has none."""
    finished = work / "vae"
    if not finished.exists():
        outcome = train_vae(parts.vae, replace(training.vae, seed=training.seed, stop_after=stop_after), work)
        if not outcome.finished:
            return False
        parts.vae.load_state_dict(outcome.ema)
        _keep(parts.vae.cpu(), finished)
    parts.vae = AutoencoderKL.from_pretrained(finished)
    return True


def _keep(vae: AutoencoderKL, folder: Path) -> None:
    fresh = folder.with_suffix(".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    vae.save_pretrained(fresh)
    fresh.rename(folder)
