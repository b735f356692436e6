"""Progress and previews of one job on their way to its observer; of previews only each picture's newest."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from inference.delivery import Preview
from inference.pictures import encode_preview
from models.wire import Progress

if TYPE_CHECKING:
    from inference.delivery import Observer
    from inference.engine.types import Previewed, Progressed
    from inference.pictures import PictureEncoder


class PreviewFeed:
    """Encodes previews beside the job's other events, one at a time; a picture's unread one gives way to a newer."""

    def __init__(self, encoder: PictureEncoder, observer: Observer) -> None:
        self._encoder = encoder
        self._observer = observer
        self._progress = Progress()
        self._waiting: dict[int, Previewed] = {}
        self._task: asyncio.Task[None] | None = None

    def progressed(self, event: Progressed) -> None:
        """A step is done."""
        # JSON has no infinity
        eta_s = event.eta_s if event.eta_s is not None and math.isfinite(event.eta_s) else None
        change = {
            "step": event.step,
            "steps": event.steps,
            "eta_s": eta_s,
            "queue_position": event.queue_position,
        }
        self._progress = self._progress.model_copy(update=change)
        self._observer.progressed(self._progress)

    def previewed(self, event: Previewed) -> None:
        """There is a preview to encode."""
        self._waiting[event.index] = event
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._encode())

    async def close(self) -> None:
        """Encode nothing more."""
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _encode(self) -> None:
        while self._waiting:
            event = self._waiting.pop(next(iter(self._waiting)))
            image = await self._encoder.run(encode_preview, event.pixels)
            self._progress = self._progress.model_copy(
                update={"preview_seq": max(event.seq, self._progress.preview_seq)}
            )
            self._observer.previewed(Preview(event.index, event.seq, event.step, event.steps, image))
            self._observer.progressed(self._progress)
