from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from inference.engine.decode import LatentDecoder
from inference.engine.previews import LatentPreview
from inference.engine.samplers import Samplers, scale_inputs, step_all

if TYPE_CHECKING:
    from inference.engine.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def preview(checkpoint: Checkpoint) -> LatentPreview:
    return LatentPreview.fit(checkpoint.vae)


@torch.inference_mode()
def finished_latents(checkpoint: Checkpoint, prompt: str, seed: int) -> torch.Tensor:
    """A picture of the tiny checkpoint, before it is decoded. float32 [4, 16, 16]."""
    states = []
    for tokenizer, encoder in zip(checkpoint.tokenizers, checkpoint.text_encoders, strict=True):
        tokens = tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
        states.append(encoder(tokens, output_hidden_states=True))
    joined = torch.cat([answer.hidden_states[-2] for answer in states], dim=-1)
    conditions = {"text_embeds": states[1].text_embeds, "time_ids": torch.tensor([[128.0, 128, 0, 0, 128, 128]])}
    sampler = Samplers(checkpoint.scheduler_config).make("euler", 10, torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(1, 4, 16, 16, generator=generator) * sampler.init_noise_sigma
    while not sampler.finished:
        output = checkpoint.unet(
            scale_inputs([sampler], latents),
            sampler.timesteps[sampler.index],
            encoder_hidden_states=joined,
            added_cond_kwargs=conditions,
        ).sample
        latents = step_all([sampler], output, latents, [generator])
    return latents[0]


@pytest.mark.parametrize("prompt", ["a red circle on a blue background", "a yellow square on a green background"])
def test_a_preview_of_a_finished_picture_is_that_picture_made_small(
    checkpoint: Checkpoint, preview: LatentPreview, prompt: str
) -> None:
    latents = finished_latents(checkpoint, prompt, seed=3)
    with torch.inference_mode():
        picture = LatentDecoder(checkpoint.vae).decode(latents[None])[0]
    small = picture.reshape(16, 8, 16, 8, 3).mean(axis=(1, 3))
    shown = preview.rgb(latents)
    assert shown.shape == (16, 16, 3)
    assert shown.dtype == np.uint8
    assert small.std() > 20  # there is something to be seen
    assert np.corrcoef(shown.ravel(), small.ravel())[0, 1] > 0.9


def test_the_same_vae_gives_the_same_preview(checkpoint: Checkpoint, preview: LatentPreview) -> None:
    assert torch.equal(LatentPreview.fit(checkpoint.vae).matrix, preview.matrix)


@pytest.mark.parametrize("value", [0.0, 4096.0, -4096.0, float("nan"), float("inf")])
def test_any_latents_have_a_preview(preview: LatentPreview, value: float) -> None:
    shown = preview.rgb(torch.full((4, 3, 5), value))
    assert shown.shape == (3, 5, 3)
