"""A real engine but for the checkpoint: a thread of its own, slots, a queue, steps that take a scripted time."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from inference.engine.types import (
    Cancelled,
    CannotStartInTimeError,
    CheckpointDefaults,
    Completed,
    DeadlineMissedError,
    EngineError,
    EngineFullError,
    EngineInfo,
    EngineJob,
    EngineStats,
    Failed,
    LoraUsed,
    PictureDone,
    PictureSpec,
    Predicted,
    Previewed,
    Progressed,
    Started,
    UnknownCheckpointError,
    UnknownLoraError,
    UnknownSchedulerError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from inference.engine.types import EngineEvent

SCHEDULERS = ("euler", "euler_a", "ddim")
ALIASES = {"k_euler": "euler"}

DEFAULT_INFO = EngineInfo(
    checkpoint="fake",
    sha256="0" * 64,
    demonstration=True,
    device="cpu",
    dtype="float32",
    attention="none",
    defaults=CheckpointDefaults(64, 64, 4, 3.0, "euler", "blurry"),
    schedulers=SCHEDULERS,
    versions={"fake": "1"},
    scheduler_aliases=tuple(ALIASES),
)
OTHER = replace(
    DEFAULT_INFO,
    checkpoint="other",
    sha256="1" * 64,
    demonstration=False,
    defaults=CheckpointDefaults(128, 128, 2, 1.0, "ddim", ""),
    schedulers=("ddim",),
    scheduler_aliases=(),
)
REFINER = replace(DEFAULT_INFO, checkpoint="fake-refiner", sha256="2" * 64)
LORAS = {"red": "a" * 64, "blue": "b" * 64}


def colour_of(seed: int) -> tuple[int, int, int]:
    """The flat colour of every picture with this seed."""
    return seed & 255, (seed >> 8) & 255, (seed >> 16) & 255


@dataclass(eq=False)
class _Ticket:
    job: EngineJob
    listener: Callable[[EngineEvent], None]
    submitted: float
    started: float | None = None
    waiting: deque[int] = field(default_factory=deque)
    slots: dict[int, int] = field(default_factory=dict)  # picture index -> steps done
    done: int = 0
    steps_done: int = 0
    previews: int = 0

    @property
    def steps(self) -> int:
        return sum(spec.steps for spec in self.job.pictures)


class FakeEngine:
    """Satisfies `inference.engine.types.Engine`.

    There are the checkpoints `fake` and `other` (whose hash is known once it has drawn), the refiner `fake-refiner`
    and the LoRAs `red` and `blue`. A picture that starts from another keeps it where the mask is black, and without
    a mask in its left half. `wait_s` is what admission predicts. `failures` maps a prompt to the error its job ends
    with after its first step. `hold()` freezes every step until `release()`, so that a test can look at a queue that
    stands still. `drawn` and `cancelled` say what happened.
    """

    def __init__(
        self,
        *,
        step_s: float = 0.002,
        capacity: int = 4,
        max_waiting: int = 64,
        retry_after_s: float = 2.4,
        failures: Mapping[str, EngineError] | None = None,
        info: EngineInfo = DEFAULT_INFO,
        noise: bool = False,
        wait_s: float | None = None,
    ) -> None:
        self.info = info
        self.drawn: list[PictureSpec] = []
        self.cancelled: list[str] = []
        self.submitted: list[EngineJob] = []
        self.steps_run = 0
        self.healthy = True
        self._step_s = step_s
        self._capacity = capacity
        self._max_waiting = max_waiting
        self._retry_after_s = retry_after_s
        self._failures = dict(failures or {})
        self._noise = noise
        self.wait_s = wait_s
        self._loaded = {"", info.checkpoint}
        self._changed = threading.Condition()
        self._tickets: dict[str, _Ticket] = {}
        self._to_cancel: set[str] = set()
        self._held = False
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="fake-engine", daemon=True)
        self._thread.start()

    def hold(self) -> None:
        with self._changed:
            self._held = True

    def release(self) -> None:
        with self._changed:
            self._held = False
            self._changed.notify_all()

    def describe(self, checkpoint: str = "") -> EngineInfo:
        known = {"": self.info, self.info.checkpoint: self.info, "other": OTHER, "fake-refiner": REFINER}
        if checkpoint not in known:
            raise UnknownCheckpointError(f"no checkpoint is called '{checkpoint}'")
        return known[checkpoint] if checkpoint in self._loaded else replace(known[checkpoint], sha256="")

    def checkpoints(self) -> tuple[str, ...]:
        return (self.info.checkpoint, "other")

    def refiners(self) -> tuple[str, ...]:
        return ("fake-refiner",)

    def loras(self) -> tuple[str, ...]:
        return tuple(LORAS)

    def _check_names(self, spec: PictureSpec) -> None:
        info = self.describe(spec.checkpoint)
        name = spec.scheduler.strip().lower()
        if ALIASES.get(name, name) not in info.schedulers:
            raise UnknownSchedulerError(f"scheduler '{spec.scheduler}' is not one of {', '.join(info.schedulers)}")
        for lora in spec.loras:
            if lora.name not in LORAS:
                raise UnknownLoraError(f"no LoRA is called '{lora.name}'")

    def submit(self, job: EngineJob, listener: Callable[[EngineEvent], None]) -> None:
        self._check_names(job.pictures[0])
        with self._changed:
            if self._closing:
                raise EngineError("the engine is shutting down")
            if job.id in self._tickets:
                raise EngineError(f"job {job.id} is under way already")
            waiting = self._waiting_count()
            if waiting + len(job.pictures) > self._max_waiting:
                raise EngineFullError(waiting, self._retry_after_s)
            if self.wait_s is not None and job.start_within_s is not None and self.wait_s > job.start_within_s:
                raise CannotStartInTimeError(waiting, self.wait_s, job.start_within_s)
            ticket = _Ticket(job, listener, time.monotonic(), waiting=deque(range(len(job.pictures))))
            self._tickets[job.id] = ticket
            self.submitted.append(job)
            self._changed.notify_all()
            position = len(self._tickets) - 1
        if position:
            listener(Progressed(job.id, 0, ticket.steps, None, position))

    def cancel(self, job_id: str) -> bool:
        with self._changed:
            if job_id not in self._tickets:
                return False
            self._to_cancel.add(job_id)
            self._changed.notify_all()
            return True

    def stats(self) -> EngineStats:
        running = sum(len(ticket.slots) for ticket in list(self._tickets.values()))
        return EngineStats(
            running=running,
            waiting=self._waiting_count(),
            capacity=self._capacity,
            step_ms=1000 * self._step_s,
            ticks=self.steps_run,
            pictures_done=len(self.drawn),
            batch_rows=running,
            healthy=self.healthy,
        )

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout=10)

    def _waiting_count(self) -> int:
        return sum(len(ticket.waiting) for ticket in list(self._tickets.values()))

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work, timeout=0.05)
                if self._closing:
                    break
            self._cancel_asked()
            self._drop_late()
            if self._held or not self._tickets:
                continue
            self._admit()
            time.sleep(self._step_s)
            self._step()
        for ticket in list(self._tickets.values()):
            self._end(ticket, Failed(ticket.job.id, EngineError("the server is shutting down")))

    def _has_work(self) -> bool:
        return bool(self._closing or self._to_cancel or (self._tickets and not self._held))

    def _drop_late(self) -> None:
        now = time.monotonic()
        for ticket in list(self._tickets.values()):
            deadline = ticket.job.start_within_s
            if ticket.started is None and deadline is not None and now - ticket.submitted > deadline:
                late = DeadlineMissedError(f"drawing did not begin within {deadline:g} s")
                self._end(ticket, Failed(ticket.job.id, late))

    def _cancel_asked(self) -> None:
        with self._changed:
            asked, self._to_cancel = self._to_cancel, set()
        for job_id in asked:
            if job_id in self._tickets:
                self.cancelled.append(job_id)
                self._end(self._tickets[job_id], Cancelled(job_id, self._tickets[job_id].done))

    def _admit(self) -> None:
        free = self._capacity - sum(len(ticket.slots) for ticket in self._tickets.values())
        for ticket in list(self._tickets.values()):
            while free > 0 and ticket.waiting:
                ticket.slots[ticket.waiting.popleft()] = 0
                free -= 1
                if ticket.started is None:
                    ticket.started = time.monotonic()
                    first = ticket.job.pictures[0]
                    self._loaded |= {first.checkpoint, first.refiner.checkpoint if first.refiner else ""}
                    ticket.listener(Started(ticket.job.id))

    def _step(self) -> None:
        self.steps_run += 1
        for ticket in list(self._tickets.values()):
            if ticket.slots:
                self._step_ticket(ticket)

    def _step_ticket(self, ticket: _Ticket) -> None:
        job = ticket.job
        for index in list(ticket.slots):
            ticket.slots[index] += 1
            ticket.steps_done += 1
            failure = self._failures.get(job.pictures[index].prompt)
            if failure is not None:
                self._end(ticket, Failed(job.id, failure))
                return
            if job.preview_every and ticket.slots[index] % job.preview_every == 0:
                ticket.listener(self._preview(ticket, index))
            if ticket.slots[index] >= job.pictures[index].steps:
                del ticket.slots[index]
                ticket.done += 1
                self.drawn.append(job.pictures[index])
                ticket.listener(self._picture(job, index))
        ticket.listener(Progressed(job.id, ticket.steps_done, ticket.steps, 0.1))
        if ticket.done == len(job.pictures) and ticket.started is not None:
            self._end(ticket, self._completed(ticket, ticket.started))

    def _completed(self, ticket: _Ticket, started: float) -> Completed:
        first = ticket.job.pictures[0]
        return Completed(
            ticket.job.id,
            started - ticket.submitted,
            time.monotonic() - started,
            device_s=self._step_s * ticket.steps,
            predicted=Predicted(self.wait_s, self._step_s * ticket.steps),
            checkpoint=self.describe(first.checkpoint),
            refiner=self.describe(first.refiner.checkpoint) if first.refiner else None,
            loras=tuple(LoraUsed(lora.name, lora.scale, LORAS[lora.name]) for lora in first.loras),
        )

    def _preview(self, ticket: _Ticket, index: int) -> Previewed:
        ticket.previews += 1
        spec = ticket.job.pictures[index]
        pixels = np.full((spec.height // 8, spec.width // 8, 3), colour_of(spec.seed), np.uint8)
        return Previewed(ticket.job.id, index, ticket.previews, ticket.slots[index], spec.steps, pixels)

    def _picture(self, job: EngineJob, index: int) -> PictureDone:
        spec = job.pictures[index]
        pixels = np.empty((spec.height, spec.width, 3), np.uint8)
        pixels[:] = colour_of(spec.seed)
        if self._noise:  # does not compress, for tests of sizes
            pixels[:] = np.random.default_rng(spec.seed).integers(0, 256, pixels.shape, np.uint8)
        if spec.init is not None:
            kept = np.arange(spec.width)[None, :] < spec.width // 2
            kept = np.broadcast_to(kept, pixels.shape[:2]) if spec.init.mask is None else spec.init.mask == 0
            pixels[kept] = spec.init.pixels[kept]
        if spec.hires is not None:
            down, across = spec.hires.height // spec.height + 1, spec.hires.width // spec.width + 1
            pixels = np.tile(pixels, (down, across, 1))[: spec.hires.height, : spec.hires.width]
        return PictureDone(job.id, index, spec.seed, 1, pixels)

    def _end(self, ticket: _Ticket, event: EngineEvent) -> None:
        with self._changed:
            self._tickets.pop(ticket.job.id, None)
        ticket.listener(event)
