"""A loaded checkpoint with all that drawing with it takes: texts, schedules, pixels in and out, side weights."""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from diffusers import DDIMScheduler

from inference.engine.canvas import LatentEncoder
from inference.engine.decode import LatentDecoder
from inference.engine.loras import LoraSwitch
from inference.engine.memory import MemoryKeeper
from inference.engine.pace import Pace
from inference.engine.previews import LatentPreview
from inference.engine.prompts import PromptEncoder
from inference.engine.samplers import Samplers

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from inference.engine.checkpoint import Checkpoint
    from inference.engine.loras import Lora
    from inference.engine.pace import WorkKind
    from inference.engine.prompts import Conditioning
    from inference.engine.samplers import Sampler
    from inference.engine.types import PromptSyntax

LoraSet = tuple[tuple["Lora", float], ...]

SMALLEST_SHARE = 0.02  # at pure noise the guess would be a division by nothing
AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5  # what SDXL's refiner was trained to tell apart


class Loaded:
    """Belongs to the engine's thread. `last_used` counts the pool's turns; see `CheckpointPool`."""

    def __init__(self, checkpoint: Checkpoint, pace: Pace | None = None, name: str = "") -> None:
        """Hold what every picture of this checkpoint shares. Measurements go to `pace` under `name`."""
        self.checkpoint = checkpoint
        self._pace = pace or Pace()
        self._name = name
        self.name = checkpoint.info.checkpoint
        self.last_used = 0
        self.samplers = Samplers(checkpoint.scheduler_config)
        self.keeper = MemoryKeeper(
            checkpoint.text_encoders, checkpoint.vae, checkpoint.memory_mode, checkpoint.device
        )
        self.decoder = LatentDecoder(checkpoint.vae)
        self._pixels_in = LatentEncoder(checkpoint.vae)
        self._texts = PromptEncoder(
            checkpoint.tokenizers,
            checkpoint.text_encoders,
            zero_empty=checkpoint.zero_empty_prompt,
            device=checkpoint.device,
            dtype=checkpoint.dtype,
        )

    @cached_property
    def switch(self) -> LoraSwitch:
        """Turns LoRAs on and off; made when the first is asked for."""
        return LoraSwitch(self.checkpoint.unet, self.checkpoint.text_encoders)

    @cached_property
    def preview(self) -> LatentPreview:
        """Fitted when the first preview is asked for."""
        with self.keeper.vae():
            return LatentPreview.fit(self.checkpoint.vae)

    def use(self, loras: LoraSet) -> None:
        """Let exactly these LoRAs act from now on."""
        if loras or "switch" in self.__dict__:
            self.switch.apply(loras)

    def embed(self, prompt: str, negative: str | None, *, syntax: PromptSyntax, loras: LoraSet) -> Conditioning:
        """Both prompts' embeddings, of one length, with the LoRAs acting on the encoders too."""
        self.use(loras)
        key = tuple((lora.name, lora.sha256, scale) for lora, scale in loras)
        second = "refiner_negative_prompt" if self.checkpoint.wants_aesthetics else "negative_prompt"
        with self.keeper.text(), self._measured("text"):
            return self._texts.encode(prompt, negative, syntax=syntax, key=key, fields=("prompt", second))

    def encode(self, pixels: NDArray[np.uint8]) -> Tensor:
        """RGB uint8 [h, w, 3] to latents float32 [4, h/8, w/8]."""
        height, width = pixels.shape[:2]
        with self.keeper.vae(), self._measured("vae_encode", height, width):
            return self._pixels_in.encode(pixels)

    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Latents float32 [n, 4, h, w] to RGB uint8 [n, 8h, 8w, 3]; see `LatentDecoder.decode`."""
        with self.keeper.vae():
            return self.decoder.decode(latents)

    def clean(self, sampler: Sampler, scaled: Tensor, output: Tensor, timestep: float) -> Tensor:
        """The finished latents as the UNet sees them at a step, float32 [4, h, w]; for previews.

        What the UNet is given is sqrt(a) x0 + sqrt(1 - a) noise whatever the scheduler, with `a` the product of
        alphas at the timestep (Ho et al. 2020), and v is sqrt(a) noise - sqrt(1 - a) x0 (Salimans & Ho 2022).
        """
        alphas = self._alphas
        signal = alphas[min(round(timestep), len(alphas) - 1)]
        share, noise_share = math.sqrt(signal), math.sqrt(1 - signal)
        if sampler.prediction_type == "v_prediction":
            return share * scaled - noise_share * output
        if sampler.prediction_type == "sample":
            return output
        return (scaled - noise_share * output) / max(share, SMALLEST_SHARE)

    @cached_property
    def _alphas(self) -> list[float]:
        config = {key: value for key, value in self.checkpoint.scheduler_config.items() if key != "_class_name"}
        return [float(value) for value in DDIMScheduler.from_config(config).alphas_cumprod]

    @contextmanager
    def _measured(self, kind: WorkKind, height: int = 0, width: int = 0) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._pace.ran(kind, height, width, 1, time.monotonic() - started, model=self._name)

    def time_ids(self, height: int, width: int, *, negative: bool) -> tuple[float, ...]:
        """SDXL's micro-conditioning, as the stock pipelines send it.

        Original size, crop offset and target size; a refiner has an aesthetic score instead of the last (Podell et
        al. 2023, 2.2).
        """
        if self.checkpoint.wants_aesthetics:
            return (height, width, 0, 0, NEGATIVE_AESTHETIC_SCORE if negative else AESTHETIC_SCORE)
        return (height, width, 0, 0, height, width)
