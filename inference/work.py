"""One job's pictures between engine and output: each is finished and delivered, or compared, as it comes."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from inference.finishing import finish_picture
from inference.infotext import DrawnWith

if TYPE_CHECKING:
    from inference.delivery import Delivery, Observer
    from inference.engine.types import Completed, Engine, PictureDone
    from inference.finishing import Finished
    from inference.hooks import Hooks
    from inference.pictures import PictureEncoder
    from inference.plan import Plan
    from models.wire import PictureCheck


class Work:
    """What has come out of the engine for one job so far; by the picture's index, since they come in any order."""

    def __init__(
        self,
        plan: Plan,
        *,
        engine: Engine,
        encoder: PictureEncoder,
        hooks: Hooks,
        observer: Observer,
        delivery: Delivery,
    ) -> None:
        self.plan = plan
        self.started_at = time.monotonic()
        self.links: dict[int, asyncio.Task[str]] = {}
        self.checks: dict[int, asyncio.Task[PictureCheck]] = {}
        self.files: dict[int, Finished] = {}
        self.buckets: dict[int, int] = {}
        self.encode_s = 0.0
        self.deliver_s = 0.0
        self._held: list[PictureDone] = []
        self._engine = engine
        self._encoder = encoder
        self._hooks = hooks
        self._observer = observer
        self._delivery = delivery

    def drawn(self, event: PictureDone) -> None:
        """One picture came out of the engine."""
        self.buckets[event.index] = event.bucket
        if self.plan.check is not None:
            check = self._encoder.run(self.plan.check.check, event.index, event.seed, event.pixels)
            self.checks[event.index] = asyncio.create_task(check)
            return
        drawn = self.drawn_with(None)
        if self.plan.first.loras or not drawn.hashed:
            self._held.append(event)  # its file names hashes that come at the end
        else:
            self._start(event, drawn)

    def completed(self, done: Completed) -> None:
        """The engine's last word."""
        for event in self._held:
            self._start(event, self.drawn_with(done))

    async def wait(self) -> None:
        """Until every picture is where it belongs.

        Raises:
            GenerationFailedError: a hook failed.
            UploadFailedError: a picture could not be stored.

        """
        await asyncio.gather(*self.links.values(), *self.checks.values())

    async def give_up(self) -> None:
        """Stop what is under way."""
        tasks = [*self.links.values(), *self.checks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def drawn_with(self, done: Completed | None) -> DrawnWith:
        """What the job is drawn with; what the engine says at the end is final."""
        first = self.plan.first
        checkpoint = done.checkpoint if done else None
        refiner = done.refiner if done else None
        if checkpoint is None:
            checkpoint = self._engine.describe(first.checkpoint) if first.checkpoint else self._engine.info
        if refiner is None and first.refiner is not None:
            refiner = self._engine.describe(first.refiner.checkpoint)
        return DrawnWith(checkpoint, refiner, done.loras if done else ())

    def _start(self, event: PictureDone, drawn: DrawnWith) -> None:
        self.links[event.index] = asyncio.create_task(self._deliver(event, drawn))

    async def _deliver(self, event: PictureDone, drawn: DrawnWith) -> str:
        begun = time.monotonic()
        finished = await self._encoder.run(finish_picture, self.plan, event, drawn, self._hooks)
        self.files[event.index] = finished
        encoded = time.monotonic()
        link = await self._delivery.deliver(self.plan.job.id, event.index, finished.file)
        self.encode_s += encoded - begun
        self.deliver_s += time.monotonic() - encoded
        self._observer.picture(event.index, event.seed, link)
        return link
