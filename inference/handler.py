"""One job's way: into the engine, its events out, pictures finished and delivered, the output put together.

The queue server and the RunPod worker both run this; neither HTTP nor a queue is known here.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from inference.delivery import InlineDelivery
from inference.drawing import Drawing
from inference.engine.types import (
    Cancelled,
    CannotStartInTimeError,
    Completed,
    EngineError,
    EngineFullError,
    Failed,
    LoraError,
    PictureDone,
    Previewed,
    Progressed,
    Started,
    UnknownCheckpointError,
    UnknownLoraError,
    UnknownSchedulerError,
)
from inference.errors import DeadlineUnreachableError, GenerationFailedError, QueueFullError
from inference.hooks import Hooks
from inference.outputs import job_output, verified_output
from inference.plan import invalid
from inference.previewing import PreviewFeed
from inference.work import Work
from models.errors import FieldProblem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inference.delivery import Delivery, Observer
    from inference.engine.types import Engine
    from inference.pictures import PictureEncoder
    from inference.plan import Plan
    from models.errors import InvalidInputError
    from models.wire import JobOutput, VerifyOutput

NO_PREVIEWS = "no previews: this server's safety hook sees finished pictures only"
FIELDS: dict[type[EngineError], str] = {
    UnknownSchedulerError: "scheduler",
    UnknownCheckpointError: "checkpoint",
    UnknownLoraError: "loras",
    LoraError: "loras",
}
"""What a caller named that the engine does not know, by the engine's error."""


class PictureHandler:
    """Runs jobs on one engine."""

    def __init__(self, engine: Engine, encoder: PictureEncoder, hooks: Hooks | None = None) -> None:
        self.engine = engine
        self.encoder = encoder
        self.inline = InlineDelivery(encoder)
        self._hooks = hooks or Hooks()

    def submit(
        self, plan: Plan, *, attempt: int = 1, prefix: Sequence[str] = (), start_within_s: float | None = None
    ) -> Drawing:
        """Hand the job to the engine.

        Args:
            plan: what to draw, its pictures read.
            attempt: a job's second attempt may meet the end of its first, so each has an engine id of its own.
            prefix: where the input stands in the body, for the names of wrong fields.
            start_within_s: what is left until drawing must have begun; None for no deadline.

        Raises:
            QueueFullError: admission refused; nothing is queued.
            DeadlineUnreachableError: the same, for a job that would begin too late.
            InvalidInputError: scheduler, checkpoint or LoRA is not known.
            GenerationFailedError: the engine is closed.

        """
        engine_id = plan.job.id if attempt == 1 else f"{plan.job.id}/{attempt}"
        drawing = Drawing(plan, engine_id)
        every = 0 if self._hooks.safety else plan.job.preview_every
        job = replace(plan.job, id=engine_id, preview_every=every, start_within_s=start_within_s)
        try:
            self.engine.submit(job, drawing.listen)
        except CannotStartInTimeError as late:
            raise DeadlineUnreachableError(
                f"Not accepted: {late}.", retry_after_s=math.ceil(late.retry_after_s)
            ) from None
        except EngineFullError as full:
            raise QueueFullError(f"The queue is full: {full}.", retry_after_s=math.ceil(full.retry_after_s)) from None
        except EngineError as problem:
            if unknown := _unknown(problem, prefix):
                raise unknown from None
            raise GenerationFailedError(problem.code, str(problem)) from problem
        return drawing

    async def finish(self, drawing: Drawing, observer: Observer, delivery: Delivery) -> JobOutput | VerifyOutput:
        """Follow a submitted job to its end. Cancelled, it stops the engine at the next step.

        Raises:
            GenerationFailedError: the engine ended the job without its pictures, or a hook failed.
            UploadFailedError: a picture could not be stored.

        """
        plan = drawing.plan
        work = Work(
            plan,
            engine=self.engine,
            encoder=self.encoder,
            hooks=self._hooks,
            observer=observer,
            delivery=delivery,
        )
        feed = PreviewFeed(self.encoder, observer)
        try:
            done = await _follow(drawing, observer, work, feed)
            await work.wait()
        except BaseException:
            # every way out, a cancel above all, leaves neither the engine nor an upload busy for nobody
            self.engine.cancel(drawing.engine_id)
            await work.give_up()
            raise
        finally:
            await feed.close()
        if plan.check is not None:
            return verified_output(plan.check, done, work)
        return job_output(done, work, [NO_PREVIEWS] if self._hooks.safety and plan.job.preview_every else [])


async def _follow(drawing: Drawing, observer: Observer, work: Work, feed: PreviewFeed) -> Completed:
    while True:
        match await drawing.next_event():
            case Started():
                observer.started()
            case Progressed() as event:
                feed.progressed(event)
            case Previewed() as event:
                feed.previewed(event)
            case PictureDone() as event:
                work.drawn(event)
            case Completed() as event:
                work.completed(event)
                return event
            case Failed(error=error):
                raise GenerationFailedError(error.code, str(error))
            case Cancelled():
                raise GenerationFailedError("cancelled", "the engine cancelled the job")


def _unknown(problem: EngineError, prefix: Sequence[str]) -> InvalidInputError | None:
    for kind, name in FIELDS.items():
        if isinstance(problem, kind):
            return invalid([FieldProblem(name, str(problem))], prefix)
    return None
