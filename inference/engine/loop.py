"""What the engine's thread does, turn after turn: admit pictures to slots, one UNet call, one VAE batch.

A picture whose pass is over is parked until the checkpoint of its next pass is there, or goes to the decoder.
"""

from __future__ import annotations

import logging
import queue
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from inference.engine.finish import Finisher, as_engine_error
from inference.engine.grouping import group_size, key_of
from inference.engine.passes import checkpoint_of, next_pass, open_slot
from inference.engine.slots import PassKind, Slot
from inference.engine.stepper import Stepper
from inference.engine.types import (
    EngineError,
    LoraUsed,
    Started,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference.engine.checkpoint import Kind
    from inference.engine.desk import Desk
    from inference.engine.loaded import Loaded, LoraSet
    from inference.engine.loras import LoraShelf
    from inference.engine.pace import Pace
    from inference.engine.pool import CheckpointPool
    from inference.engine.slots import Ticket
    from inference.engine.stepper import EngineLimits

log = logging.getLogger(__name__)


class EngineLoop:
    """Everything here belongs to the engine's thread; counts may be read from others."""

    def __init__(
        self, desk: Desk, pool: CheckpointPool, shelf: LoraShelf | None, pace: Pace, limits: EngineLimits
    ) -> None:
        self.inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.parked: list[Slot] = []
        own = pool.own
        self.stepper = Stepper(desk, pace, limits, own.device, own.dtype, over=self._after_pass)
        self.finisher = Finisher(desk, pace, limits.decode_batch, again=self.parked.append)
        self._desk = desk
        self._pool = pool
        self._shelf = shelf
        self._limits = limits
        self._serial = 0
        desk.watch_ends(self._drop)

    @property
    def under_way(self) -> int:
        """Pictures that have a slot and are not finished."""
        return len(self.stepper.running) + len(self.parked) + len(self.finisher.slots)

    def slots(self) -> list[Slot]:
        """The pictures under way. From another thread it is a glance, not a snapshot."""
        return [*self.stepper.running, *self.parked, *self.finisher.slots]

    @torch.inference_mode()
    def run(self) -> None:
        """Until the desk closes."""
        while True:
            self._take_commands()
            if self._desk.closing:
                break
            self._desk.end_late()
            self._unpark()
            self._admit()
            if self.stepper.running:
                self.stepper.tick()
            if self.finisher.slots:
                self.finisher.decode()
        self._desk.fail_all(EngineError("the server is shutting down"))
        self._pool.forget_all()

    def _take_commands(self) -> None:
        """Every command there is; where nothing can be drawn, wait for one."""
        wait = not (self.stepper.running or self.finisher.slots)
        if wait and (self._desk.waiting or self.parked):
            wait = self._pool.busy  # they wait for a checkpoint, whose arrival is a command
        try:
            if wait:
                self.inbox.get(timeout=self._desk.until_next_deadline())()
            while True:
                self.inbox.get_nowait()()
        except queue.Empty:
            return

    # ---- what callers asked for

    def enqueue(self, ticket: Ticket) -> None:
        """A job has been accepted."""
        self._desk.queue(ticket)
        self._report_positions()

    def cancel(self, ticket: Ticket) -> None:
        """A job is not wanted any more."""
        self._desk.cancel(ticket)

    def _drop(self, ticket: Ticket) -> None:
        self.stepper.drop(ticket)
        self.parked[:] = [slot for slot in self.parked if slot.ticket is not ticket]
        self.finisher.drop(ticket)
        self._report_positions()

    def _report_positions(self) -> None:
        self._desk.report_positions(len({id(slot.ticket) for slot in (*self.stepper.running, *self.parked)}))

    # ---- admission

    def _admit(self) -> None:
        """Give slots to waiting pictures in order, as long as their group and the whole have room."""
        if self.parked and not self._pool.busy:
            return  # no room for a checkpoint that a picture needs to go on: let what runs come to its end first
        kept: list[tuple[Ticket, int]] = []
        admitted = False
        while self._desk.waiting and len(self.stepper.running) + len(self.parked) < 2 * self._limits.max_batch:
            ticket, index = self._desk.waiting.popleft()
            if ticket.over:  # it failed while this picture of it was set aside below
                self._desk.taken()
                continue
            if group_size(self.stepper.running, ticket, index) >= self._limits.max_batch:
                kept.append((ticket, index))
                continue
            loaded = self._loaded(ticket, index)
            if loaded is None:
                if ticket.over:
                    self._desk.taken()
                    continue
                kept.append((ticket, index))
                if not self._pool.busy:
                    break  # no room for its checkpoint: let what runs come to its end, or it would wait for ever
                continue
            admitted = True
            self._open_slot(ticket, index, loaded)
        self._desk.set_aside(kept)
        if admitted:
            self._report_positions()

    def _loaded(self, ticket: Ticket, index: int, kind: PassKind = PassKind.BASE) -> Loaded | None:
        """The checkpoint of a pass, None while it is not there; the job fails where it cannot be had."""
        name = checkpoint_of(ticket.job.pictures[index], kind)
        role: Kind = "refiner" if kind is PassKind.REFINER else "base"
        in_use = {slot.key.model for slot in (*self.stepper.running, *self.finisher.slots)}
        try:
            return self._pool.get(name, role, in_use)
        except EngineError as problem:
            self._desk.fail(ticket, problem)
            return None

    def _open_slot(self, ticket: Ticket, index: int, loaded: Loaded) -> None:
        self._desk.taken()
        if ticket.started_at is None:
            ticket.started_at = time.monotonic()
            self._desk.emit(ticket, Started(ticket.job.id))
        begun = time.monotonic()
        try:
            self._serial += 1
            loras = self._take_loras(ticket, index, loaded)
            key = key_of(ticket, index, self._serial if ticket.job.strict else 0)
            slot = open_slot(ticket, index, key, self._serial, loaded=loaded, loras=loras)
        except Exception as problem:
            log.exception("job %s could not be prepared", ticket.job.id)
            self._desk.fail(ticket, as_engine_error(problem))
            return
        ticket.drawn_with = loaded.checkpoint.info
        ticket.device_s += time.monotonic() - begun
        self._join(slot)

    def _take_loras(self, ticket: Ticket, index: int, loaded: Loaded) -> LoraSet:
        uses = ticket.job.pictures[index].loras
        if not uses:
            return ()
        if self._shelf is None:
            raise EngineError("this engine has no LoRAs")
        checkpoint = loaded.checkpoint
        found = []
        for use in uses:
            lora = self._shelf.take(use.name, checkpoint.info.sha256, checkpoint.unet, checkpoint.text_encoders)
            if lora.unused:
                ticket.note(f"lora {use.name}: {lora.unused} of its weights belong to no part of this checkpoint")
            found.append((lora, use.scale))
        ticket.loras = tuple(LoraUsed(lora.name, scale, lora.sha256) for lora, scale in found)
        return tuple(found)

    def _join(self, slot: Slot) -> None:
        """Let a slot run in the group of its pass."""
        current = slot.current
        slot.key = replace(
            slot.key,
            height=current.height,
            width=current.width,
            model=checkpoint_of(slot.spec, current.kind),
            loras=tuple((lora.name, scale) for lora, scale in current.loras),
            tokens=len(current.positive.states),
            bucket=0,
        )
        self.stepper.join(slot)

    # ---- from pass to pass

    def _after_pass(self, slot: Slot) -> None:
        """Where a slot goes whose pass has made its last step."""
        hires = slot.spec.hires
        if not slot.todo:
            self.finisher.add(slot)
        elif slot.todo[0] is PassKind.HIRES and hires is not None and hires.upscaler != "latent":
            self.finisher.add(slot)  # it is enlarged as a picture
        else:
            self.parked.append(slot)

    def _unpark(self) -> None:
        for slot in list(self.parked):
            if slot not in self.parked:  # its job failed with another of its pictures
                continue
            loaded = self._loaded(slot.ticket, slot.index, slot.todo[0])
            if loaded is None:
                continue
            self.parked.remove(slot)
            if slot.todo[0] is PassKind.REFINER:
                slot.ticket.refined_with = loaded.checkpoint.info
            begun = time.monotonic()
            try:
                refining = slot.todo[0] is PassKind.REFINER  # LoRAs are made for the base
                loras = () if refining else self._take_loras(slot.ticket, slot.index, loaded)
                next_pass(slot, loaded, loras)
            except Exception as problem:
                log.exception("job %s could not go on", slot.ticket.job.id)
                self._desk.fail(slot.ticket, as_engine_error(problem))
                continue
            slot.ticket.device_s += time.monotonic() - begun
            self._join(slot)
