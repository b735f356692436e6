"""A slot is one picture under way; a ticket is the job that it belongs to; a pass is one way through a schedule."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from inference.engine.types import Predicted, Progressed

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from inference.engine.loaded import Loaded
    from inference.engine.loras import Lora
    from inference.engine.prompts import Embedding
    from inference.engine.samplers import Sampler
    from inference.engine.types import EngineEvent, EngineInfo, EngineJob, LoraUsed, PictureSpec


@dataclass(eq=False, slots=True)
class Ticket:
    """A job in the engine. Times are `time.monotonic()` seconds."""

    job: EngineJob
    listener: Callable[[EngineEvent], None]
    submitted_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    steps_done: int = 0
    steps_total: int = 0
    pictures_done: int = 0
    reported_position: int | None = None
    notes: tuple[str, ...] = ()
    over: bool = False
    previews: int = 0
    device_s: float = 0.0
    predicted: Predicted = field(default_factory=Predicted)
    drawn_with: EngineInfo | None = None
    refined_with: EngineInfo | None = None
    loras: tuple[LoraUsed, ...] = ()

    def progress(self) -> Progressed:
        """Steps done over all pictures, and the time left at the pace so far."""
        eta = None
        if self.started_at is not None and self.steps_done:
            pace = (time.monotonic() - self.started_at) / self.steps_done
            eta = round(pace * (self.steps_total - self.steps_done), 3)
        return Progressed(self.job.id, self.steps_done, self.steps_total, eta)

    def note(self, *lines: str) -> None:
        """Remember what is to be told at the end, each line once."""
        self.notes = tuple(dict.fromkeys((*self.notes, *lines)))


@dataclass(frozen=True, slots=True)
class GroupKey:
    """Slots with the same key may share one UNet call.

    `alone` is the slot's serial number for a strict one. `bucket` is 0 unless slots are held to one batch size.
    `model` names the checkpoint, `loras` the side weights with their scales, `tokens` the length of the embeddings.
    """

    height: int
    width: int
    alone: int
    bucket: int
    model: str = ""
    loras: tuple[tuple[str, float], ...] = ()
    tokens: int = 0


class PassKind(StrEnum):
    """What a pass is for. Every picture begins with BASE."""

    BASE = "base"
    REFINER = "refiner"
    HIRES = "hires"


@dataclass(frozen=True, slots=True)
class Inpaint:
    """What an inpainted picture keeps: its latents, its own noise [4, h, w], and where to draw anew, [1, h, w]."""

    original: Tensor
    noise: Tensor
    mask: Tensor


@dataclass(eq=False, slots=True)
class Pass:
    """One way through a schedule, at one size, with one checkpoint.

    `positive_ids` and `negative_ids` are SDXL's micro-conditioning of the two rows.
    """

    kind: PassKind
    loaded: Loaded
    loras: tuple[tuple[Lora, float], ...]
    height: int
    width: int
    sampler: Sampler
    positive: Embedding
    negative: Embedding | None
    positive_ids: tuple[float, ...]
    negative_ids: tuple[float, ...]
    inpaint: Inpaint | None = None


@dataclass(eq=False, slots=True)
class Slot:
    """One picture: latents float32 [4, height/8, width/8] on the device, and the pass that it is in.

    `todo` are the passes to come; `pixels` is what the next pass begins with where that is a finished picture.
    """

    serial: int
    ticket: Ticket
    index: int
    spec: PictureSpec
    key: GroupKey
    generator: torch.Generator
    latents: Tensor
    current: Pass
    todo: deque[PassKind]
    last_tick: int = 0
    calls: int = 0  # of the UNet, over all passes
    bucket_used: int = 0
    pixels: NDArray[np.uint8] | None = None
    clean: Tensor | None = None  # the latest guess of the finished latents, for previews

    @property
    def sampler(self) -> Sampler:
        """The schedule of the pass under way."""
        return self.current.sampler

    @property
    def guided(self) -> bool:
        """Whether the picture takes two rows of a batch: one with the prompt, one with the negative prompt."""
        return self.current.negative is not None

    @property
    def rows(self) -> int:
        """Rows of a UNet batch that one step takes."""
        return 2 if self.guided else 1

    @property
    def finished(self) -> bool:
        """Whether every step of the pass was made."""
        return self.sampler.index >= self.sampler.steps

    @property
    def wants_preview(self) -> bool:
        """Whether the step to come is one after which a preview is due."""
        every = self.ticket.job.preview_every
        return bool(every) and (self.sampler.index + 1) % every == 0
