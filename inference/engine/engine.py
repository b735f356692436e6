"""Step-level continuous batching: one thread owns the device, pictures join and leave between UNet calls.

Each turn of the loop is: take commands, admit waiting pictures to slots, one UNet call for one group of slots, at
most one VAE batch. A job's events leave in order through its listener.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from inference.engine.desk import Desk
from inference.engine.loop import EngineLoop
from inference.engine.pace import Pace, predict
from inference.engine.pool import CheckpointPool
from inference.engine.schedulers import resolve_for
from inference.engine.stepper import EngineLimits
from inference.engine.types import EngineStats, Predicted, UnknownCheckpointError, UnknownLoraError

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference.engine.checkpoint import Checkpoint
    from inference.engine.loras import LoraShelf
    from inference.engine.pace import Load
    from inference.engine.source import CheckpointSource, Described
    from inference.engine.types import EngineEvent, EngineInfo, EngineJob, PictureSpec

__all__ = ["BatchingEngine", "EngineLimits"]

UNHEALTHY_AFTER = 3  # failed calls in a row; a CUDA context that has failed once seldom works again


class BatchingEngine:
    """Satisfies `types.Engine`. Knows no HTTP, users or storage."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        limits: EngineLimits,
        *,
        source: CheckpointSource | None = None,
        shelf: LoraShelf | None = None,
        budget_bytes: int | None = None,
    ) -> None:
        """Take over the checkpoint's modules and start the thread.

        Args:
            checkpoint: the engine's own.
            limits: how much is under way at once.
            source: other checkpoints that requests may name; None for none.
            shelf: LoRAs that requests may name; None for none.
            budget_bytes: most bytes of weights at once; None for no bound.

        """
        self._limits = limits
        self._source = source
        self._shelf = shelf
        self._pace = Pace()
        self._own = checkpoint.info
        self._own_schedule = checkpoint.scheduler_config
        self._desk = Desk(limits.max_waiting)
        self._pool = CheckpointPool(checkpoint, source, budget_bytes, self._pace, self._post)
        self._loop = EngineLoop(self._desk, self._pool, shelf, self._pace, limits)
        self._thread = threading.Thread(target=self._loop.run, name="igen-engine", daemon=True)
        self._thread.start()

    @property
    def info(self) -> EngineInfo:
        """The checkpoint that is drawn with where a request names none."""
        return self._own

    def describe(self, checkpoint: str = "") -> EngineInfo:
        """What is known of a checkpoint; see `types.Engine.describe`.

        Raises:
            UnknownCheckpointError: there is none of this name, or it is broken.

        """
        if checkpoint in ("", self._own.checkpoint):
            return self._own
        if self._source is None:
            raise UnknownCheckpointError(f"checkpoint '{checkpoint}' is not one of {self._own.checkpoint}")
        return self._source.describe(checkpoint).info

    def checkpoints(self) -> tuple[str, ...]:
        """Names that a picture's checkpoint may have, the engine's own first."""
        others = () if self._source is None else self._source.names("base")
        return (self._own.checkpoint, *(name for name in others if name != self._own.checkpoint))

    def refiners(self) -> tuple[str, ...]:
        """Names that a refiner's checkpoint may have."""
        return () if self._source is None else self._source.names("refiner")

    def loras(self) -> tuple[str, ...]:
        """Names that a LoRA may have."""
        return () if self._shelf is None else self._shelf.names()

    def submit(self, job: EngineJob, listener: Callable[[EngineEvent], None]) -> None:
        """Queue a job; see `types.Engine.submit`.

        Raises:
            EngineFullError: too many pictures wait, or too many for the job's deadline; nothing was queued.
            UnknownSchedulerError, UnknownCheckpointError, UnknownLoraError: a picture names what cannot be used.
            EngineError: the engine is closed, or the job's id is under way already.

        """
        for spec in dict.fromkeys(job.pictures):
            self._check(spec)
        job = replace(job, pictures=tuple(self._with_own_name(spec) for spec in job.pictures))
        free = self._limits.max_batch - len(self._loop.stepper.running)
        ticket = self._desk.accept(job, listener, free=free, predict=lambda: self._predict(job))
        self._loop.inbox.put(lambda: self._loop.enqueue(ticket))

    def cancel(self, job_id: str) -> bool:
        """End a job at its next step; see `types.Engine.cancel`."""
        ticket = self._desk.find(job_id)
        if ticket is None:
            return False
        self._loop.inbox.put(lambda: self._loop.cancel(ticket))
        return True

    def stats(self) -> EngineStats:
        """The load now."""
        loop, steps = self._loop, self._loop.stepper
        return EngineStats(
            running=loop.under_way,
            waiting=self._desk.waiting_count,
            capacity=self._limits.max_batch,
            step_ms=round(steps.row_ms, 3),
            ticks=steps.ticks,
            pictures_done=loop.finisher.done,
            batch_rows=steps.last_rows,
            healthy=steps.failures < UNHEALTHY_AFTER and self._thread.is_alive(),
        )

    def close(self) -> None:
        """Stop the thread; jobs under way get Failed."""
        self._desk.close()
        self._loop.inbox.put(lambda: None)
        self._thread.join(timeout=60)

    def _post(self, call: Callable[[], None]) -> None:
        self._loop.inbox.put(call)

    def _with_own_name(self, spec: PictureSpec) -> PictureSpec:
        """The engine's own checkpoint is the same with and without its name, so both may share a batch."""
        return replace(spec, checkpoint="") if spec.checkpoint == self._own.checkpoint else spec

    def _check(self, spec: PictureSpec) -> None:
        schedule = self._own_schedule
        if spec.checkpoint not in ("", self._own.checkpoint):
            schedule = self._describe_as(spec.checkpoint, "base").scheduler_config
        resolve_for(schedule, spec.scheduler)
        if spec.refiner is not None:
            resolve_for(self._describe_as(spec.refiner.checkpoint, "refiner").scheduler_config, spec.scheduler)
        for use in spec.loras:
            if self._shelf is None:
                raise UnknownLoraError(f"LoRA '{use.name}' is not known; this server has none")
            self._shelf.check(use.name)

    def _describe_as(self, name: str, kind: str) -> Described:
        if self._source is None:
            raise UnknownCheckpointError(f"checkpoint '{name}' is not one of {self._own.checkpoint}")
        found = self._source.describe(name)
        if found.kind != kind:
            raise UnknownCheckpointError(f"checkpoint '{name}' is a {found.kind}, and a {kind} is needed here")
        return found

    def _predict(self, job: EngineJob) -> Predicted:
        """Seconds until the job's first slot and from there to its end, by the pace so far."""
        under_way = self._loop.slots()
        waiting = [ticket.job.pictures[index] for ticket, index in self._desk.in_line()]
        rows = min(2 * self._limits.max_batch, 2 * (len(under_way) + len(waiting) + len(job.pictures)))
        seen: dict[Any, Load | None] = {}

        def load(spec: PictureSpec) -> Load | None:
            # pictures of one kind take the same time, and a long queue holds few kinds
            strength = None if spec.init is None else spec.init.strength
            kind = (spec.checkpoint, spec.height, spec.width, spec.steps, spec.guided, strength)
            key = (*kind, spec.hires, spec.refiner)
            if key not in seen:
                refiner = "" if spec.refiner is None else spec.refiner.checkpoint
                alone = job.strict and spec in job.pictures
                seen[key] = self._pace.load(
                    spec, rows_together=0 if alone else rows, model=spec.checkpoint, refiner=refiner
                )
            return seen[key]

        running = [found.after(slot.calls) for slot in under_way if (found := load(slot.spec)) is not None]
        if len(running) < len(under_way):
            return Predicted()
        return predict(
            running,
            [load(spec) for spec in waiting],
            [load(spec) for spec in job.pictures],
            slots=self._limits.max_batch,
        )
