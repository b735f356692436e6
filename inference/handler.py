"""One job's way: into the engine, its events out, pictures encoded and delivered, the output put together.

The queue server and the RunPod worker both run this; neither HTTP nor a queue is known here.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from inference.engine.types import (
    Cancelled,
    Completed,
    EngineError,
    EngineFullError,
    Failed,
    PictureDone,
    Progressed,
    Started,
    UnknownSchedulerError,
)
from inference.errors import GenerationFailedError, QueueFullError
from inference.plan import plan_job, unknown_scheduler
from models.logs import get_logger
from models.wire import JobOutput, Progress, Receipt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inference.engine.types import Engine, EngineEvent
    from inference.pictures import PictureEncoder
    from inference.plan import Bounds, Plan
    from models.wire import JobInput

log = get_logger(__name__)


class Observer(Protocol):
    """Who wants to know how a job goes. Called on the event loop; must return at once."""

    def started(self) -> None:
        """The first picture got a slot."""

    def progressed(self, progress: Progress) -> None:
        """A step is done, or the place in the queue changed."""

    def picture(self, index: int, seed: int, image: str) -> None:
        """A picture is finished; `image` is what the output will hold for it."""


class Delivery(Protocol):
    """Where finished pictures go."""

    async def deliver(self, job_id: str, index: int, png: bytes) -> str:
        """Store one PNG; the answer stands in the output's `images`.

        Raises:
            UploadFailedError: it could not be stored.

        """


class InlineDelivery:
    """Pictures stand in the output itself, as data URLs."""

    def __init__(self, encoder: PictureEncoder) -> None:
        self._encoder = encoder

    async def deliver(self, job_id: str, index: int, png: bytes) -> str:  # noqa: ARG002 - Delivery's signature
        """The picture as a data URL."""
        return await self._encoder.data_url(png)


class Drawing:
    """A job in the engine: its events, carried from the engine's thread to the event loop.

    Holds at most the pictures' and the few other events of one job: progress not yet read is replaced by newer.
    """

    def __init__(self, plan: Plan, engine_id: str) -> None:
        self.plan = plan
        self.engine_id = engine_id
        self._loop = asyncio.get_running_loop()
        self._events: deque[EngineEvent] = deque()
        self._arrived = asyncio.Event()

    def listen(self, event: EngineEvent) -> None:
        """The engine's listener; called from its thread."""
        if not self._loop.is_closed():  # closed: the process is ending and nobody is left to tell
            self._loop.call_soon_threadsafe(self._push, event)

    def _push(self, event: EngineEvent) -> None:
        if isinstance(event, Progressed) and self._events and isinstance(self._events[-1], Progressed):
            self._events.pop()
        self._events.append(event)
        self._arrived.set()

    async def next_event(self) -> EngineEvent:
        """The next event, in the engine's order."""
        while not self._events:
            self._arrived.clear()
            await self._arrived.wait()
        return self._events.popleft()


@dataclass(slots=True)
class _Drawn:
    """What has come out of the engine for one job so far."""

    started_at: float
    links: dict[int, asyncio.Task[str]] = field(
        default_factory=dict
    )  # by the picture's index: they come in any order
    buckets: dict[int, int] = field(default_factory=dict)
    encode_s: float = 0.0
    deliver_s: float = 0.0


class PictureHandler:
    """Runs jobs on one engine."""

    def __init__(self, engine: Engine, encoder: PictureEncoder, bounds: Bounds) -> None:
        self.engine = engine
        self.encoder = encoder
        self.inline = InlineDelivery(encoder)
        self._bounds = bounds

    def plan(self, job_id: str, wanted: JobInput, prefix: Sequence[str] = ()) -> Plan:
        """Make every choice that the caller left open.

        Raises:
            InvalidInputError: naming every field that is out of this server's bounds.

        """
        return plan_job(job_id, wanted, self.engine.info, self._bounds, prefix=prefix)

    def submit(self, plan: Plan, *, attempt: int = 1, prefix: Sequence[str] = ()) -> Drawing:
        """Hand the job to the engine.

        Args:
            plan: what to draw.
            attempt: a job's second attempt may meet the end of its first, so each has an engine id of its own.
            prefix: where the input stands in the body, for the names of wrong fields.

        Raises:
            QueueFullError: admission refused; nothing is queued.
            InvalidInputError: the scheduler is not known.
            GenerationFailedError: the engine is closed.

        """
        engine_id = plan.job.id if attempt == 1 else f"{plan.job.id}/{attempt}"
        drawing = Drawing(plan, engine_id)
        try:
            self.engine.submit(replace(plan.job, id=engine_id), drawing.listen)
        except EngineFullError as full:
            raise QueueFullError(f"The queue is full: {full}.", retry_after_s=math.ceil(full.retry_after_s)) from None
        except UnknownSchedulerError:
            raise unknown_scheduler(plan.first.scheduler, self.engine.info, prefix) from None
        except EngineError as problem:
            raise GenerationFailedError(problem.code, str(problem)) from problem
        return drawing

    async def finish(self, drawing: Drawing, observer: Observer, delivery: Delivery) -> JobOutput:
        """Follow a submitted job to its end. Cancelled, it stops the engine at the next step.

        Raises:
            GenerationFailedError: the engine ended the job without its pictures.
            UploadFailedError: a picture could not be stored.

        """
        drawn = _Drawn(time.monotonic())
        try:
            done = await self._follow(drawing, observer, delivery, drawn)
            images = await asyncio.gather(*(drawn.links[index] for index in sorted(drawn.links)))
        except BaseException:
            # every way out, a cancel above all, leaves neither the engine nor an upload busy for nobody
            self.engine.cancel(drawing.engine_id)
            for link in drawn.links.values():
                link.cancel()
            await asyncio.gather(*drawn.links.values(), return_exceptions=True)
            raise
        return self._output(drawing.plan, done, images, drawn)

    async def _follow(self, drawing: Drawing, observer: Observer, delivery: Delivery, drawn: _Drawn) -> Completed:
        while True:
            match await drawing.next_event():
                case Started():
                    observer.started()
                case Progressed() as event:
                    observer.progressed(_progress(event))
                case PictureDone() as event:
                    drawn.buckets[event.index] = event.bucket
                    link = self._deliver(drawing.plan, event, observer, delivery, drawn)
                    drawn.links[event.index] = asyncio.create_task(link)
                case Completed() as event:
                    return event
                case Failed(error=error):
                    raise GenerationFailedError(error.code, str(error))
                case Cancelled():
                    raise GenerationFailedError("cancelled", "the engine cancelled the job")

    async def _deliver(
        self, plan: Plan, event: PictureDone, observer: Observer, delivery: Delivery, drawn: _Drawn
    ) -> str:
        begun = time.monotonic()
        png = await self.encoder.png(event.pixels)
        encoded = time.monotonic()
        link = await delivery.deliver(plan.job.id, event.index, png)
        drawn.encode_s += encoded - begun
        drawn.deliver_s += time.monotonic() - encoded
        observer.picture(event.index, event.seed, link)
        return link

    def _output(self, plan: Plan, done: Completed, images: list[str], drawn: _Drawn) -> JobOutput:
        first, info = plan.first, self.engine.info
        timings = {
            "queue_s": done.queue_s,
            "run_s": done.run_s,
            "encode_s": drawn.encode_s,
            "deliver_s": drawn.deliver_s,
            "total_s": time.monotonic() - drawn.started_at,
        }
        return JobOutput(
            images=images,
            image_url=images[0],
            seed=first.seed,
            seeds=plan.seeds,
            width=first.width,
            height=first.height,
            demonstration=info.demonstration,
            ignored=list(plan.ignored),
            notes=list(done.notes),
            receipt=self._receipt(plan, [drawn.buckets[index] for index in sorted(drawn.buckets)]),
            timings={name: round(seconds, 4) for name, seconds in timings.items()},
        )

    def _receipt(self, plan: Plan, buckets: list[int]) -> Receipt:
        first, info = plan.first, self.engine.info
        return Receipt(
            checkpoint=info.checkpoint,
            checkpoint_sha256=info.sha256,
            scheduler=first.scheduler,
            seeds=plan.seeds,
            prompt=first.prompt,
            negative_prompt=first.negative_prompt,
            width=first.width,
            height=first.height,
            num_inference_steps=first.steps,
            guidance_scale=first.guidance_scale,
            strict=plan.job.strict,
            device=info.device,
            dtype=info.dtype,
            buckets=buckets,
            versions=info.versions,
        )


def _progress(event: Progressed) -> Progress:
    eta_s = event.eta_s if event.eta_s is not None and math.isfinite(event.eta_s) else None  # JSON has no infinity
    return Progress(step=event.step, steps=event.steps, eta_s=eta_s, queue_position=event.queue_position)
