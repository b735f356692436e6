"""SDXL base 1.0's architecture with random weights: speed and memory do not depend on what the weights say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ROOT / "inference" / "checkpoints"

UNET: Mapping[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),  # heads, by an old mistake in the name
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE: Mapping[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
CLIP_L: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}
CLIP_BIG_G: Mapping[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
CLIP_VOCABULARY, CLIP_TOKENS = 49408, 77
SCHEDULER: Mapping[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "interpolation_type": "linear",
    "use_karras_sigmas": False,
}
REFERENCE_TFLOP = {"unet": 6.76, "vae": 10.47}
"""What others counted for one UNet row and one decoded picture at 1024x1024."""


@dataclass(frozen=True, slots=True)
class Models:
    """What both contestants draw with. `size` in pixels; `vae` is in float32 where it asks for that."""

    unet: Any
    vae: Any
    tokenizers: tuple[Any, Any]
    encoders: tuple[Any, Any]
    scheduler: Mapping[str, Any]
    size: int
    device: torch.device
    dtype: torch.dtype

    @property
    def weight_bytes(self) -> int:
        """Of the UNet, the VAE and the encoders."""
        modules = (self.unet, self.vae, *self.encoders)
        return sum(tensor.nbytes for module in modules for tensor in module.parameters())


def full_size(device: torch.device, dtype: torch.dtype = torch.float16) -> Models:
    """SDXL base with random weights, made on the device: 6.9 GB in half precision, and little more in the making."""
    import diffusers  # noqa: PLC0415 - seconds, and after the libraries were made quiet

    tokenizers = bundled_tokenizers()
    unet = _on(device, dtype, lambda: diffusers.UNet2DConditionModel(**UNET), seed=1)
    vae = _on(device, torch.float32, lambda: diffusers.AutoencoderKL(**VAE), seed=2)
    encoders = _encoders(tokenizers, device, dtype)
    unet.to(memory_format=torch.channels_last)
    vae.to(memory_format=torch.channels_last)
    return Models(unet, vae, tokenizers, encoders, SCHEDULER, 1024, device, dtype)


def tiny(device: torch.device) -> Models:
    """The bundled checkpoint, in the precision of its device."""
    from inference.engine.checkpoint import load_checkpoint  # noqa: PLC0415 - as above

    loaded = load_checkpoint("tiny", None, (BUNDLED,), device=str(device), attention="sdpa")
    tokenizers, encoders = loaded.tokenizers, loaded.text_encoders
    return Models(
        loaded.unet,
        loaded.vae,
        (tokenizers[0], tokenizers[1]),
        (encoders[0], encoders[1]),
        loaded.scheduler_config,
        loaded.info.defaults.width,
        device,
        loaded.dtype,
    )


def bundled_tokenizers() -> tuple[Any, Any]:
    """The bundled checkpoint's: what a text becomes in numbers changes neither speed nor memory."""
    from transformers import CLIPTokenizer  # noqa: PLC0415 - as above

    folder = BUNDLED / "tiny"
    first, second = (CLIPTokenizer.from_pretrained(str(folder / name)) for name in ("tokenizer", "tokenizer_2"))
    return first, second


def _encoders(tokenizers: tuple[Any, Any], device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    import transformers  # noqa: PLC0415 - as above

    made = []
    for values, tokenizer, kind, seed in (
        (CLIP_L, tokenizers[0], transformers.CLIPTextModel, 3),
        (CLIP_BIG_G, tokenizers[1], transformers.CLIPTextModelWithProjection, 4),
    ):
        marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        config = transformers.CLIPTextConfig(
            vocab_size=CLIP_VOCABULARY, max_position_embeddings=CLIP_TOKENS, **marks, **values
        )
        made.append(_on(device, dtype, lambda kind=kind, config=config: kind(config), seed=seed))
    return made[0], made[1]


def _on(device: torch.device, dtype: torch.dtype, make: Any, seed: int) -> Any:
    """A module on the device with random weights that keep activations of one size from layer to layer."""
    with torch.device("meta"):
        module = make()
    buffers = {name: tensor.shape for name, tensor in module.named_buffers()}
    module = module.to(dtype).to_empty(device=device).eval().requires_grad_(requires_grad=False)
    generator = torch.Generator(device).manual_seed(seed)
    for name, tensor in module.named_parameters():
        _fill(name, tensor.data, generator)
    for name in buffers:  # CLIP's places of tokens, which are counted, not drawn
        if not name.endswith("position_ids"):
            raise RuntimeError(f"{name} is not known")
        places = module.get_buffer(name)
        places.copy_(torch.arange(places.shape[-1], device=device).expand_as(places))
    return module


def _fill(name: str, tensor: torch.Tensor, generator: torch.Generator) -> None:
    if tensor.ndim == 1:
        tensor.fill_(1.0 if name.endswith("weight") else 0.0)  # of a normalisation; a bias
        return
    bound = 0.02 if "embedding" in name and "linear" not in name else 1 / math.sqrt(tensor[0].numel())
    tensor.uniform_(-bound, bound, generator=generator)


# ---- the two numbers: operations and bytes


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one UNet row, one decoded picture: operations (a multiply and an add are two) and bytes of weights."""

    unet_flop: float
    vae_flop: float
    unet_bytes: int
    vae_bytes: int

    def picture(self, steps: int, rows: int = 2) -> float:
        """Operations of a whole picture; the text encoders' 0.2 TFLOP are left out."""
        return steps * rows * self.unet_flop + self.vae_flop


def count_full_size() -> Cost:
    """Counted by PyTorch on the architecture, without weights and without a GPU."""
    import diffusers  # noqa: PLC0415 - as above

    with torch.device("meta"):
        unet, vae = diffusers.UNet2DConditionModel(**UNET), diffusers.AutoencoderKL(**VAE)
    return count(unet, vae, 1024)


@torch.no_grad()
def count(unet: Any, vae: Any, size: int) -> Cost:
    """Of one row and one picture of `size` pixels a side; runs both modules once, on their device."""
    from inference.engine.compiling import call_with  # noqa: PLC0415 - as above
    from inference.engine.gauge import Probe, probe_inputs  # noqa: PLC0415 - as above

    with FlopCounterMode(display=False) as step:
        call_with(unet, probe_inputs(unet, Probe(size, size, rows=1)))
    weight = next(vae.parameters())
    latents = torch.randn(1, 4, size // 8, size // 8, device=weight.device, dtype=weight.dtype)
    with FlopCounterMode(display=False) as decode:
        vae.decode(latents)
    sizes = [sum(tensor.numel() * 2 for tensor in module.parameters()) for module in (unet, vae)]
    return Cost(step.get_total_flops(), decode.get_total_flops(), *sizes)
