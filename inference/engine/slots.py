"""A slot is one picture under way; a ticket is the job that it belongs to."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from inference.engine.types import Progressed

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

    from inference.engine.prompts import Embedding
    from inference.engine.samplers import Sampler
    from inference.engine.types import EngineEvent, EngineJob, PictureSpec


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

    def progress(self) -> Progressed:
        """Steps done over all pictures, and the time left at the pace so far."""
        eta = None
        if self.started_at is not None and self.steps_done:
            pace = (time.monotonic() - self.started_at) / self.steps_done
            eta = round(pace * (self.steps_total - self.steps_done), 3)
        return Progressed(self.job.id, self.steps_done, self.steps_total, eta)


@dataclass(frozen=True, slots=True)
class GroupKey:
    """Slots with the same key may share one UNet call.

    `alone` is the slot's serial number for a strict one. `bucket` is 0 unless slots are held to one batch size.
    """

    height: int
    width: int
    alone: int
    bucket: int


@dataclass(eq=False, slots=True)
class Slot:
    """One picture: latents float32 [4, height/8, width/8] on the device, and all that its steps need."""

    serial: int
    ticket: Ticket
    index: int
    spec: PictureSpec
    key: GroupKey
    sampler: Sampler
    generator: torch.Generator
    latents: Tensor
    positive: Embedding
    negative: Embedding | None
    last_tick: int
    bucket_used: int = 0

    @property
    def guided(self) -> bool:
        """Whether the picture takes two rows of a batch: one with the prompt, one with the negative prompt."""
        return self.negative is not None

    @property
    def rows(self) -> int:
        """Rows of a UNet batch that one step takes."""
        return 2 if self.guided else 1

    @property
    def finished(self) -> bool:
        """Whether every step was made."""
        return self.sampler.index >= self.sampler.steps
