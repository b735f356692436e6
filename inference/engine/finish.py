"""Finished latents to pixels: decoded in batches, put back into what was to be kept, delivered."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import TYPE_CHECKING

import torch

from inference.engine.canvas import enlarge, enlarge_mask, keep_outside
from inference.engine.types import Completed, EngineError, OutOfMemoryError, PictureDone

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from inference.engine.desk import Desk
    from inference.engine.pace import Pace
    from inference.engine.slots import Slot, Ticket

log = logging.getLogger(__name__)


class Finisher:
    """Belongs to the engine's thread."""

    def __init__(self, desk: Desk, pace: Pace, batch: int, again: Callable[[Slot], None]) -> None:
        """`batch` is the most pictures in one VAE call; `again` takes those that another pass follows."""
        self.slots: deque[Slot] = deque()
        self.done = 0
        self._desk = desk
        self._pace = pace
        self._batch = batch
        self._again = again

    def add(self, slot: Slot) -> None:
        """Decode this slot's latents, some time."""
        self.slots.append(slot)

    def drop(self, ticket: Ticket) -> None:
        """Forget a job's slots."""
        self.slots = deque(slot for slot in self.slots if slot.ticket is not ticket)

    def decode(self) -> None:
        """Decode one batch: the oldest and others of its size."""
        first = self.slots[0]
        batch = [first]
        if not first.key.alone:
            same = (slot for slot in self.slots if slot.key == first.key and slot is not first)
            batch += [slot for slot, _ in zip(same, range(self._batch - 1), strict=False)]
        for slot in batch:
            self.slots.remove(slot)
        if (problem := self._attempt(batch)) is not None:
            self._decode_apart(batch, problem)

    def _attempt(self, batch: Sequence[Slot]) -> EngineError | None:
        """Decode and hand on; what another attempt may cure is the answer, what it cannot has failed its jobs."""
        try:
            pixels = self._pixels(batch)
        except (torch.OutOfMemoryError, FloatingPointError) as problem:
            # not the exception itself: as long as it lives, its traceback keeps the call's tensors
            return as_engine_error(problem)
        except Exception as problem:  # the thread must outlive one job's fault
            log.exception("pixels failed for jobs %s", [slot.ticket.job.id for slot in batch])
            for ticket in dict.fromkeys(slot.ticket for slot in batch):
                self._desk.fail(ticket, as_engine_error(problem))
            return None
        for slot, picture in zip(batch, pixels, strict=True):
            self._finish(slot, picture)
        return None

    def _pixels(self, batch: Sequence[Slot]) -> NDArray[np.uint8]:
        first = batch[0]
        started = time.monotonic()
        pixels = first.current.loaded.decode(torch.stack([slot.latents for slot in batch]))
        seconds = time.monotonic() - started
        current = first.current
        self._pace.ran("vae_decode", current.height, current.width, len(batch), seconds, model=first.key.model)
        for slot in batch:
            slot.ticket.device_s += seconds / len(batch)
        return pixels

    def _decode_apart(self, batch: Sequence[Slot], problem: EngineError) -> None:
        """One picture's fault must not cost its neighbours theirs: try each alone, fail the one at fault.

        For want of memory one picture is tried again too, once the room is free that graphs and caches took.
        """
        if isinstance(problem, OutOfMemoryError):
            if (runner := batch[0].current.loaded.checkpoint.runner) is not None:
                runner.forget()
            free_memory(batch[0].latents.device)
        elif len(batch) == 1:
            self._desk.fail(batch[0].ticket, problem)
            return
        for slot in batch:
            if (own := self._attempt([slot])) is not None:
                self._desk.fail(slot.ticket, own)

    def _finish(self, slot: Slot, picture: NDArray[np.uint8]) -> None:
        if slot.ticket.over:
            return
        if slot.todo:
            slot.pixels = picture
            self._again(slot)
            return
        self._deliver(slot, _keep(slot, picture))

    def _deliver(self, slot: Slot, picture: NDArray[np.uint8]) -> None:
        ticket = slot.ticket
        self.done += 1
        ticket.pictures_done += 1
        event = PictureDone(ticket.job.id, slot.index, slot.spec.seed, slot.bucket_used, picture)
        self._desk.emit(ticket, event)
        if ticket.pictures_done == len(ticket.job.pictures) and ticket.started_at is not None:
            self._desk.end(ticket, _completed(ticket, ticket.started_at))


def _keep(slot: Slot, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An inpainted picture with the old one's pixels outside its mask."""
    init = slot.spec.init
    if init is None or init.mask is None:
        return picture
    height, width = picture.shape[:2]
    if init.mask.shape == (height, width):
        return keep_outside(picture, init.pixels, init.mask)
    return keep_outside(picture, enlarge(init.pixels, height, width), enlarge_mask(init.mask, height, width))


def _completed(ticket: Ticket, started_at: float) -> Completed:
    return Completed(
        ticket.job.id,
        started_at - ticket.submitted_at,
        time.monotonic() - started_at,
        ticket.notes,
        device_s=ticket.device_s,
        predicted=ticket.predicted,
        checkpoint=ticket.drawn_with,
        refiner=ticket.refined_with,
        loras=ticket.loras,
    )


def free_memory(device: torch.device) -> None:
    """Give cached blocks back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def as_engine_error(problem: Exception) -> EngineError:
    """What a caller may be told of a failure."""
    if isinstance(problem, EngineError):
        return problem
    if isinstance(problem, torch.OutOfMemoryError):
        return OutOfMemoryError("the device has not enough memory for a picture of this size")
    if isinstance(problem, FloatingPointError):
        return EngineError("the picture came out as numbers that are not finite")
    return EngineError("the engine failed at this picture; the failure has been logged")
