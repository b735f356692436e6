"""Step-level continuous batching: one thread owns the device, pictures join and leave between UNet calls.

Each turn of the loop is: take commands, admit waiting pictures to slots, one UNet call for one group of slots, at
most one VAE batch. A job's events leave in order through its listener.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from inference.engine.decode import LatentDecoder
from inference.engine.denoise import StepBatch
from inference.engine.grouping import choose_bucket, choose_members, group_size, rows_waiting_for
from inference.engine.prepare import SlotMaker
from inference.engine.samplers import ALIASES, resolve_name
from inference.engine.slots import GroupKey, Slot, Ticket
from inference.engine.types import (
    Cancelled,
    Completed,
    EngineError,
    EngineFullError,
    EngineInfo,
    EngineJob,
    EngineStats,
    Failed,
    OutOfMemoryError,
    PictureDone,
    Progressed,
    Started,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference.engine.checkpoint import Checkpoint
    from inference.engine.types import EngineEvent

log = logging.getLogger(__name__)

UNHEALTHY_AFTER = 3  # failed calls in a row; a CUDA context that has failed once seldom works again


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """How much is under way at once.

    Attributes:
        max_batch: most pictures in one UNet call (twice as many rows where all use guidance).
        max_waiting: most pictures that wait for a slot; more are refused.
        decode_batch: most pictures in one VAE call.
        buckets: sizes, in rows, to which a batch is padded, ascending. Empty: no padding, every size may occur.
            A picture keeps one bucket from its first step to its last.

    """

    max_batch: int = 8
    max_waiting: int = 64
    decode_batch: int = 4
    buckets: tuple[int, ...] = ()


class BatchingEngine:
    """Satisfies `types.Engine`. Knows no HTTP, users or storage."""

    def __init__(self, checkpoint: Checkpoint, limits: EngineLimits) -> None:
        """Take over the checkpoint's modules and start the thread."""
        self._checkpoint = checkpoint
        self._limits = limits
        self._device, self._dtype = checkpoint.device, checkpoint.dtype
        self._maker = SlotMaker(checkpoint)
        self._decoder = LatentDecoder(checkpoint.vae)
        self._info = replace(
            checkpoint.info, schedulers=self._maker.samplers.names, scheduler_aliases=tuple(sorted(ALIASES))
        )
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards the next three, which callers' threads read and write
        self._tickets: dict[str, Ticket] = {}
        self._waiting_count = 0
        self._closing = False
        self._waiting: deque[tuple[Ticket, int]] = deque()
        self._running: list[Slot] = []
        self._decoding: deque[Slot] = deque()
        self._batch: StepBatch | None = None
        self._max_rows = 2 * limits.max_batch
        self._serial = self._ticks = self._done = self._failures = self._last_rows = 0
        self._row_ms = 0.0
        self._previous_tick: torch.cuda.Event | None = None
        self._thread = threading.Thread(target=self._run, name="igen-engine", daemon=True)
        self._thread.start()

    # ---- called from any thread

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""
        return self._info

    def submit(self, job: EngineJob, listener: Callable[[EngineEvent], None]) -> None:
        """Queue a job; see `types.Engine.submit`.

        Raises:
            EngineFullError: too many pictures wait; nothing was queued.
            UnknownSchedulerError: a picture names a scheduler that there is not.
            EngineError: the engine is closed, or the job's id is under way already.

        """
        for spec in job.pictures:
            resolve_name(spec.scheduler)
        ticket = Ticket(job, listener, steps_total=sum(spec.steps for spec in job.pictures))
        with self._lock:
            if self._closing:
                raise EngineError("the engine is shutting down")
            if job.id in self._tickets:
                raise EngineError(f"job {job.id} is under way already")
            free = self._limits.max_batch - len(self._running)
            if self._waiting_count and self._waiting_count + len(job.pictures) > self._limits.max_waiting + max(
                0, free
            ):
                raise EngineFullError(self._waiting_count, self._predict_wait_s(self._waiting_count))
            self._waiting_count += len(job.pictures)
            self._tickets[job.id] = ticket
        self._inbox.put(lambda: self._enqueue(ticket))

    def cancel(self, job_id: str) -> bool:
        """End a job at its next step; see `types.Engine.cancel`."""
        with self._lock:
            ticket = self._tickets.get(job_id)
        if ticket is None:
            return False
        self._inbox.put(lambda: self._cancel(ticket))
        return True

    def stats(self) -> EngineStats:
        """The load now."""
        return EngineStats(
            running=len(self._running) + len(self._decoding),
            waiting=self._waiting_count,
            capacity=self._limits.max_batch,
            step_ms=round(self._row_ms, 3),
            ticks=self._ticks,
            pictures_done=self._done,
            batch_rows=self._last_rows,
            healthy=self._failures < UNHEALTHY_AFTER and self._thread.is_alive(),
        )

    def close(self) -> None:
        """Stop the thread; jobs under way get Failed."""
        with self._lock:
            self._closing = True
        self._inbox.put(lambda: None)
        self._thread.join(timeout=60)

    # ---- the engine's thread

    @torch.inference_mode()
    def _run(self) -> None:
        while True:
            self._take_commands(block=not (self._running or self._decoding or self._waiting))
            if self._closing:
                break
            self._admit()
            if self._running:
                self._tick()
            if self._decoding:
                self._decode()
        for ticket in list(self._tickets.values()):
            self._end(ticket, Failed(ticket.job.id, EngineError("the server is shutting down")))

    def _take_commands(self, *, block: bool) -> None:
        try:
            while True:
                self._inbox.get(block=block)()
                block = False
        except queue.Empty:
            return

    def _enqueue(self, ticket: Ticket) -> None:
        self._waiting.extend((ticket, index) for index in range(len(ticket.job.pictures)))
        self._report_positions()

    def _report_positions(self) -> None:
        """Tell each job that has not started how many jobs are ahead of it, when that has changed."""
        ahead = len({id(slot.ticket) for slot in self._running})
        for position, ticket in enumerate(dict.fromkeys(ticket for ticket, _ in self._waiting)):
            if ticket.started_at is None and ticket.reported_position != position + ahead:
                ticket.reported_position = position + ahead
                event = Progressed(ticket.job.id, 0, ticket.steps_total, None, max(1, position + ahead))
                self._emit(ticket, event)

    def _cancel(self, ticket: Ticket) -> None:
        self._end(ticket, Cancelled(ticket.job.id, ticket.pictures_done))

    # ---- admission

    def _admit(self) -> None:
        """Give slots to waiting pictures in order, as long as their group and the whole have room."""
        kept: deque[tuple[Ticket, int]] = deque()
        admitted = False
        while self._waiting and len(self._running) < 2 * self._limits.max_batch:
            ticket, index = self._waiting.popleft()
            if ticket.over:  # it failed while this picture of it was set aside below
                with self._lock:
                    self._waiting_count -= 1
                continue
            if group_size(self._running, ticket, index) >= self._limits.max_batch:
                kept.append((ticket, index))
                continue
            admitted = True
            self._open_slot(ticket, index)
        self._waiting.extendleft(reversed(kept))
        if admitted:
            self._report_positions()

    def _open_slot(self, ticket: Ticket, index: int) -> None:
        with self._lock:
            self._waiting_count -= 1
        if ticket.started_at is None:
            ticket.started_at = time.monotonic()
            self._emit(ticket, Started(ticket.job.id))
        try:
            self._running.append(self._make_slot(ticket, index))
        except Exception as problem:
            log.exception("job %s could not be prepared", ticket.job.id)
            self._end(ticket, Failed(ticket.job.id, _as_engine_error(problem)))

    def _make_slot(self, ticket: Ticket, index: int) -> Slot:
        spec = ticket.job.pictures[index]
        self._serial += 1
        key = GroupKey(spec.height, spec.width, self._serial if ticket.job.strict else 0, 0)
        bucket = choose_bucket(
            key,
            2 if spec.guided else 1,
            self._running,
            rows_waiting_for(key, self._waiting),
            buckets=self._limits.buckets,
            max_rows=self._max_rows,
        )
        return self._maker.make(self._serial, ticket, index, replace(key, bucket=bucket), self._ticks)

    # ---- steps

    def _tick(self) -> None:
        """One UNet call for the group that has waited longest."""
        members = choose_members(self._running, self._limits.max_batch, self._max_rows)
        rows = sum(slot.rows for slot in members)
        bucket = max(rows, members[0].key.bucket)
        started = time.monotonic()
        try:
            if self._batch is None or not self._batch.holds(members, bucket):
                self._batch = StepBatch(members, bucket, self._device, self._dtype)
            self._batch.step(self._checkpoint.unet)
            self._pace()
        except torch.OutOfMemoryError:
            self._shrink(members, bucket)
            return
        except Exception as problem:  # noqa: BLE001 - the thread must outlive one job's fault; logged there
            self._fail_members(members, problem)
            return
        self._failures = 0
        self._ticks += 1
        self._last_rows = bucket
        self._row_ms += (1000 * (time.monotonic() - started) / bucket - self._row_ms) / min(self._ticks, 20)
        self._after_step(members)

    def _pace(self) -> None:
        """On CUDA, stay at most one step ahead of the device, so that cancel and progress mean what they say."""
        if self._device.type != "cuda":
            return
        event = torch.cuda.Event()
        event.record()
        if self._previous_tick is not None:
            self._previous_tick.synchronize()
        self._previous_tick = event

    def _after_step(self, members: list[Slot]) -> None:
        for slot in members:
            slot.last_tick = self._ticks
            slot.ticket.steps_done += 1
            if slot.finished:
                self._running.remove(slot)
                self._decoding.append(slot)
        for ticket in dict.fromkeys(slot.ticket for slot in members):
            self._emit(ticket, ticket.progress())

    def _shrink(self, members: list[Slot], bucket: int) -> None:
        """Out of memory: free what can be freed and go on with half the rows; alone, the picture fails."""
        self._batch = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if len(members) == 1:
            problem = OutOfMemoryError("the device has not enough memory for a picture of this size")
            self._end(members[0].ticket, Failed(members[0].ticket.job.id, problem))
            return
        self._max_rows = max(2, bucket // 2)
        log.warning("out of memory with %d rows; no more than %d from now on", bucket, self._max_rows)
        for slot in self._running:
            if slot.key.bucket > self._max_rows:
                slot.key = replace(slot.key, bucket=self._max_rows)

    def _fail_members(self, members: list[Slot], problem: Exception) -> None:
        log.error("a step failed for jobs %s", [slot.ticket.job.id for slot in members], exc_info=problem)
        self._batch = None
        self._failures += 1
        for ticket in dict.fromkeys(slot.ticket for slot in members):
            self._end(ticket, Failed(ticket.job.id, _as_engine_error(problem)))

    # ---- pixels

    def _decode(self) -> None:
        """Decode one batch of finished pictures: the oldest and others of its size."""
        first = self._decoding[0]
        batch = [first]
        if not first.key.alone:
            same = (slot for slot in self._decoding if slot.key == first.key and slot is not first)
            batch += [slot for slot, _ in zip(same, range(self._limits.decode_batch - 1), strict=False)]
        for slot in batch:
            self._decoding.remove(slot)
        try:
            pixels = self._decoder.decode(torch.stack([slot.latents for slot in batch]))
        except (torch.OutOfMemoryError, FloatingPointError) as problem:
            self._decode_apart(batch, problem)
            return
        except Exception as problem:  # noqa: BLE001 - as in _tick
            self._fail_members(batch, problem)
            return
        for slot, picture in zip(batch, pixels, strict=True):
            self._deliver(slot, picture)

    def _decode_apart(self, batch: list[Slot], problem: Exception) -> None:
        """One picture's fault must not cost its neighbours theirs: try each alone, fail the one at fault."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if len(batch) == 1:
            self._end(batch[0].ticket, Failed(batch[0].ticket.job.id, _as_engine_error(problem)))
            return
        for slot in batch:
            try:
                picture = self._decoder.decode(slot.latents[None])[0]
            except (torch.OutOfMemoryError, FloatingPointError) as own:
                self._end(slot.ticket, Failed(slot.ticket.job.id, _as_engine_error(own)))
            else:
                self._deliver(slot, picture)

    def _deliver(self, slot: Slot, picture: object) -> None:
        ticket = slot.ticket
        if ticket.over:
            return
        self._done += 1
        ticket.pictures_done += 1
        self._emit(ticket, PictureDone(ticket.job.id, slot.index, slot.spec.seed, slot.bucket_used, picture))  # type: ignore[arg-type]
        if ticket.pictures_done == len(ticket.job.pictures) and ticket.started_at is not None:
            now = time.monotonic()
            waited, ran = ticket.started_at - ticket.submitted_at, now - ticket.started_at
            self._end(ticket, Completed(ticket.job.id, waited, ran, ticket.notes))

    # ---- ends

    def _end(self, ticket: Ticket, event: EngineEvent) -> None:
        """Take a job out of everything and send its last event, once."""
        if ticket.over:
            return
        ticket.over = True
        dropped = sum(1 for waiting, _ in self._waiting if waiting is ticket)
        self._waiting = deque(item for item in self._waiting if item[0] is not ticket)
        self._running = [slot for slot in self._running if slot.ticket is not ticket]
        self._decoding = deque(slot for slot in self._decoding if slot.ticket is not ticket)
        with self._lock:
            self._waiting_count -= dropped
            self._tickets.pop(ticket.job.id, None)
        self._emit(ticket, event)
        self._report_positions()

    def _emit(self, ticket: Ticket, event: EngineEvent) -> None:
        try:
            ticket.listener(event)
        except Exception:
            log.exception("the listener of job %s failed", ticket.job.id)

    def _predict_wait_s(self, pictures: int) -> float:
        """Seconds until `pictures` more have been drawn, from the steps under way and the recent pace."""
        steps = sum(slot.sampler.steps for slot in self._running) / max(1, len(self._running))
        return max(1.0, pictures * steps * 2 * self._row_ms / 1000)


def _as_engine_error(problem: Exception) -> EngineError:
    if isinstance(problem, EngineError):
        return problem
    if isinstance(problem, torch.OutOfMemoryError):
        return OutOfMemoryError("the device has not enough memory for a picture of this size")
    if isinstance(problem, FloatingPointError):
        return EngineError("the picture came out as numbers that are not finite")
    return EngineError("the engine failed at this picture; the failure has been logged")
