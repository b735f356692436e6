"""The shapes of the tiny checkpoint: SDXL's parts and wiring at about a thousandth of its size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

NATIVE_SIZE = 128
"""Pictures are NATIVE_SIZE x NATIVE_SIZE pixels."""
LATENT_SIZE = NATIVE_SIZE // 8
"""The autoencoder shrinks each side by 8, as SDXL's does."""
LATENT_CHANNELS = 4
CONTEXT_LENGTH = 77
_WORD_SPREAD = 0.5


@dataclass(frozen=True, slots=True)
class Shape:
    """Widths and depths of the parts; `SMOKE` is for tests that must take seconds."""

    text_widths: tuple[int, int] = (64, 128)
    text_layers: tuple[int, int] = (2, 3)
    pooled_width: int = 128
    unet_channels: tuple[int, ...] = (64, 128, 128)
    unet_attends: tuple[bool, ...] = (False, True, False)
    """Levels with attention. At 4x4, all but the middle is left to convolutions: there the padding tells every
    cell where it is, which nothing else does."""
    unet_groups: int = 8
    time_width: int = 32
    vae_channels: tuple[int, int, int, int] = (16, 24, 48, 64)
    vae_groups: int = 1
    """One: with two channels to a group the norms would divide a flat picture's colour away."""


FULL = Shape()
SMOKE = Shape(
    text_widths=(32, 32),
    text_layers=(2, 2),
    pooled_width=32,
    unet_channels=(32, 32),
    unet_attends=(False, True),
    vae_channels=(8, 8, 16, 16),
)


def build_scheduler() -> EulerDiscreteScheduler:
    """Build the sampler's scheduler: v-prediction on a schedule that ends in pure noise.

    At 16x16 latents the usual schedule leaves enough of a picture's mean in its last step that an epsilon
    model learns to read the background colour off the starting noise; zero terminal SNR takes that away.
    """
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=0,
    )


def build_vae(shape: Shape = FULL) -> AutoencoderKL:
    """Build the f8 autoencoder: (B, 3, 8h, 8w) pictures in [-1, 1] to (B, 4, h, w) latents and back."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENT_CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=shape.vae_channels,
        layers_per_block=1,
        norm_num_groups=shape.vae_groups,
        sample_size=NATIVE_SIZE,
        force_upcast=False,
    )


def build_unet(shape: Shape = FULL) -> UNet2DConditionModel:
    """Build the denoiser with SDXL's block types and its added text-and-time condition."""
    channels = shape.unet_channels
    kinds = ["CrossAttn" if attends else "" for attends in shape.unet_attends]
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=shape.unet_groups,
        cross_attention_dim=sum(shape.text_widths),
        attention_head_dim=tuple(max(1, width // 32) for width in channels),
        transformer_layers_per_block=1,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=shape.time_width,
        projection_class_embeddings_input_dim=shape.pooled_width + 6 * shape.time_width,
    )


def _text_config(tokenizer: CLIPTokenizer, width: int, layers: int, shape: Shape) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=CONTEXT_LENGTH,
        hidden_act="gelu",
        projection_dim=shape.pooled_width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # Written into config.json: without it transformers keeps the stored halves while diffusers asks the
        # denoiser for singles, and the first matrix product between the two fails.
        dtype="float32",
    )


def build_text_encoders(
    tokenizers: tuple[CLIPTokenizer, CLIPTokenizer], shape: Shape = FULL
) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Build both text encoders; SDXL reads the last hidden layer but one of each."""
    first, second = (
        _text_config(tokenizer, width, layers, shape)
        for tokenizer, width, layers in zip(tokenizers, shape.text_widths, shape.text_layers, strict=True)
    )
    encoders = CLIPTextModel(first), CLIPTextModelWithProjection(second)
    for encoder in encoders:
        # CLIP's own start (0.02) all but vanishes beside the first layer's output, and SDXL reads the states
        # without a norm: words would begin by looking alike.
        embeddings = encoder.get_input_embeddings()
        torch.nn.init.normal_(embeddings.weight, std=_WORD_SPREAD)
    return encoders


def time_ids(batch: int) -> torch.Tensor:
    """Return the (batch, 6) micro-conditions of a stock call: original size, crop corner, target size."""
    row = [NATIVE_SIZE, NATIVE_SIZE, 0, 0, NATIVE_SIZE, NATIVE_SIZE]
    return torch.tensor([row], dtype=torch.float32).repeat(batch, 1)


def parameter_count(*modules: Any) -> int:
    """Count the weights of some modules."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())
