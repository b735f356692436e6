"""The steps: one UNet call after the other for the group of pictures that has waited longest."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from inference.engine.denoise import StepBatch
from inference.engine.finish import as_engine_error, free_memory
from inference.engine.grouping import choose_bucket, choose_members, rows_waiting_for
from inference.engine.types import OutOfMemoryError, Previewed

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference.engine.desk import Desk
    from inference.engine.pace import Pace
    from inference.engine.slots import Slot, Ticket

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """How much is under way at once.

    Attributes:
        max_batch: most pictures in one UNet call (twice as many rows where all use guidance).
        max_waiting: most pictures that wait for a slot; more are refused.
        decode_batch: most pictures in one VAE call.
        buckets: sizes, in rows, to which a batch is padded, ascending. Empty: no padding, every size may occur.
            A picture keeps one bucket from the first step of a pass to its last.

    """

    max_batch: int = 8
    max_waiting: int = 64
    decode_batch: int = 4
    buckets: tuple[int, ...] = ()


class Stepper:
    """The pictures that are being drawn. Belongs to the engine's thread; counts may be read from others."""

    def __init__(
        self,
        desk: Desk,
        pace: Pace,
        limits: EngineLimits,
        device: torch.device,
        dtype: torch.dtype,
        *,
        over: Callable[[Slot], None],
    ) -> None:
        """`over` takes each slot whose pass has made its last step."""
        self.running: list[Slot] = []
        self.ticks = self.failures = self.last_rows = 0
        self.row_ms = 0.0
        self._desk = desk
        self._pace = pace
        self._limits = limits
        self._device, self._dtype = device, dtype
        self._over = over
        self._batch: StepBatch | None = None
        self._max_rows = 2 * limits.max_batch
        self._previous_tick: torch.cuda.Event | None = None

    def join(self, slot: Slot) -> None:
        """Let a slot run, in the bucket that it keeps for this pass."""
        waiting = rows_waiting_for(slot.key, self._desk.waiting)
        bucket = choose_bucket(
            slot.key, slot.rows, self.running, waiting, buckets=self._limits.buckets, max_rows=self._max_rows
        )
        slot.key = replace(slot.key, bucket=bucket)
        slot.last_tick = self.ticks
        self.running.append(slot)

    def drop(self, ticket: Ticket) -> None:
        """Forget a job's slots."""
        self.running = [slot for slot in self.running if slot.ticket is not ticket]

    def tick(self) -> None:
        """One UNet call for the group that has waited longest."""
        members = choose_members(self.running, self._limits.max_batch, self._max_rows)
        rows = sum(slot.rows for slot in members)
        bucket = max(rows, members[0].key.bucket)
        current = members[0].current
        started = time.monotonic()
        full = False
        try:
            current.loaded.use(current.loras)
            if self._batch is None or not self._batch.holds(members, bucket):
                self._batch = StepBatch(members, bucket, self._device, self._dtype)
            self._batch.step(current.loaded.checkpoint.unet_for(hooked=bool(current.loras)))
            self._stay_close()
        except torch.OutOfMemoryError:
            full = True  # room is made below: while the exception is handled, its traceback keeps the call's tensors
        except Exception as problem:  # noqa: BLE001 - the thread must outlive one job's fault; logged there
            self._fail_members(members, problem)
            return
        if full:
            self._shrink(members, bucket)
            return
        self.failures = 0
        self.ticks += 1
        self.last_rows = bucket
        self._measure(members, bucket, time.monotonic() - started)
        self._after_step(members)

    def _stay_close(self) -> None:
        """On CUDA, stay at most one step ahead of the device, so that cancel and progress mean what they say."""
        if self._device.type != "cuda":
            return
        event = torch.cuda.Event()
        event.record()
        if self._previous_tick is not None:
            self._previous_tick.synchronize()
        self._previous_tick = event

    def _measure(self, members: list[Slot], bucket: int, seconds: float) -> None:
        self.row_ms += (1000 * seconds / bucket - self.row_ms) / min(self.ticks, 20)
        first = members[0]
        current = first.current
        self._pace.ran("unet", current.height, current.width, bucket, seconds, model=first.key.model)
        rows = sum(slot.rows for slot in members)
        for slot in members:
            slot.ticket.device_s += seconds * slot.rows / rows

    def _after_step(self, members: list[Slot]) -> None:
        for slot in members:
            slot.last_tick = self.ticks
            slot.calls += 1
            slot.ticket.steps_done += 1
            if slot.clean is not None:
                self._preview(slot)
            if slot.finished:
                self.running.remove(slot)
                self._over(slot)
        for ticket in dict.fromkeys(slot.ticket for slot in members):
            ticket.steps_total = max(ticket.steps_total, ticket.steps_done)
            self._desk.emit(ticket, ticket.progress())

    def _preview(self, slot: Slot) -> None:
        clean, slot.clean = slot.clean, None
        if clean is None or slot.ticket.over:
            return
        slot.ticket.previews += 1
        pixels = slot.current.loaded.preview.rgb(clean)
        sampler = slot.sampler
        self._desk.emit(
            slot.ticket,
            Previewed(slot.ticket.job.id, slot.index, slot.ticket.previews, sampler.index, sampler.steps, pixels),
        )

    def _shrink(self, members: list[Slot], bucket: int) -> None:
        """Out of memory: free what can be freed and go on with half the rows; alone, the picture fails."""
        self._batch = None
        runner = members[0].current.loaded.checkpoint.runner
        freed = runner is not None and runner.forget()
        free_memory(self._device)
        if len(members) == 1 and bucket <= members[0].rows:  # it cannot be smaller
            if freed:
                return  # but it has not been tried yet without the graphs
            problem = OutOfMemoryError("the device has not enough memory for a picture of this size")
            self._desk.fail(members[0].ticket, problem)
            return
        self._max_rows = max(1, bucket // 2)
        log.warning("out of memory with %d rows; no more than %d from now on", bucket, self._max_rows)
        for slot in self.running:
            if slot.key.bucket > self._max_rows:
                slot.key = replace(slot.key, bucket=self._max_rows)

    def _fail_members(self, members: list[Slot], problem: Exception) -> None:
        log.error("a step failed for jobs %s", [slot.ticket.job.id for slot in members], exc_info=problem)
        self._batch = None
        self.failures += 1
        for ticket in dict.fromkeys(slot.ticket for slot in members):
            self._desk.fail(ticket, as_engine_error(problem))
