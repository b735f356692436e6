"""From a picture's specification to a slot: embeddings, schedule, starting noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from inference.engine.prompts import PromptEncoder
from inference.engine.samplers import Samplers
from inference.engine.slots import Slot

if TYPE_CHECKING:
    from inference.engine.checkpoint import Checkpoint
    from inference.engine.prompts import Embedding
    from inference.engine.slots import GroupKey, Ticket

PIXELS_PER_LATENT = 8


class SlotMaker:
    """Prepares slots for one checkpoint, on the engine's thread."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Hold what every slot of this checkpoint shares."""
        self._device = checkpoint.device
        self._channels = checkpoint.latent_channels
        self.samplers = Samplers(checkpoint.scheduler_config)
        self._encoder = PromptEncoder(
            checkpoint.tokenizers,
            checkpoint.text_encoders,
            zero_empty=checkpoint.zero_empty_prompt,
            device=checkpoint.device,
            dtype=checkpoint.dtype,
        )

    def make(self, serial: int, ticket: Ticket, index: int, key: GroupKey, tick: int) -> Slot:
        """Encode, schedule and draw the starting noise of one picture."""
        spec = ticket.job.pictures[index]
        positive = self._encoder.positive(spec.prompt)
        negative = self._encoder.negative(spec.negative_prompt) if spec.guided else None
        _note_dropped(ticket, "prompt", positive)
        _note_dropped(ticket, "negative_prompt", negative)
        sampler = self.samplers.make(spec.scheduler, spec.steps, self._device)
        ticket.steps_total += sampler.steps - spec.steps
        generator = torch.Generator("cpu").manual_seed(spec.seed)
        latents = self._noise(spec.height, spec.width, generator) * sampler.init_noise_sigma
        return Slot(serial, ticket, index, spec, key, sampler, generator, latents, positive, negative, tick)

    def _noise(self, height: int, width: int, generator: torch.Generator) -> torch.Tensor:
        """Starting noise, on the CPU in float32 whatever the device, so that a seed means the same everywhere."""
        shape = (1, self._channels, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
        return torch.randn(shape, generator=generator, dtype=torch.float32)[0].to(self._device)


def _note_dropped(ticket: Ticket, name: str, embedding: Embedding | None) -> None:
    if embedding is not None and embedding.dropped:
        note = f"{name}: its last {embedding.dropped} tokens did not fit and were left out"
        ticket.notes = tuple(dict.fromkeys((*ticket.notes, note)))
