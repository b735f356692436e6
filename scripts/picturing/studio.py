"""Draws requests as the inference server does: the wire's fields, the planner, the engine."""

from __future__ import annotations

import base64
import queue
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.__main__ import open_engine
from inference.bounds import Bounds
from inference.engine.types import Completed, Failed, PictureDone, Previewed
from inference.inputs import read_inputs
from inference.pictures import encode
from inference.plan import plan_job
from inference.settings import InferenceSettings
from inference.styles import Styles
from models.wire import JobInput

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from inference.engine.types import Engine, EngineEvent

    Pixels = NDArray[np.uint8]

DRAWN_WITHIN_S = 300


@dataclass(slots=True)
class Drawn:
    """What became of one request. `previews` are step and pixels; all pixels are uint8 [h, w, 3]."""

    pictures: list[Pixels] = field(default_factory=list)
    previews: list[tuple[int, Pixels]] = field(default_factory=list)
    notes: tuple[str, ...] = ()


class Studio:
    """One engine, asked for one request at a time, so that a picture depends on nothing but its request."""

    def __init__(self, engine: Engine, settings: InferenceSettings) -> None:
        self.engine = engine
        self._bounds = Bounds.of(settings)
        self._styles = Styles()
        self._ids = count()

    def draw(self, *, image: Pixels | None = None, mask: Pixels | None = None, **fields: Any) -> Drawn:
        """Draw one request; `fields` are those of its `input`, pictures as pixels.

        Raises:
            InvalidInputError, ValidationError: the request is wrong.
            EngineError: it could not be drawn.

        """
        given = {name: _file(pixels) for name, pixels in (("image", image), ("mask", mask)) if pixels is not None}
        encoded = {name: base64.b64encode(data).decode() for name, data in given.items()}
        wanted = JobInput.model_validate({"strict": True, **fields, **encoded})
        inputs = None
        if image is not None:
            inputs = read_inputs(given["image"], given.get("mask"), wanted.width, wanted.height, self._bounds)
        plan = plan_job(
            f"gallery-{next(self._ids)}", wanted, self.engine, self._bounds, styles=self._styles, inputs=inputs
        )
        events: queue.SimpleQueue[EngineEvent] = queue.SimpleQueue()
        self.engine.submit(plan.job, events.put)
        return _collect(events)

    def picture(self, **fields: Any) -> Pixels:
        """The only picture of a request."""
        return self.draw(**fields).pictures[0]


@contextmanager
def open_studio(home: Path) -> Iterator[Studio]:
    """A studio with the bundled checkpoint on one thread of the CPU, so that its pictures are the same everywhere.

    `home` is an empty folder: this machine's own checkpoints and styles have no part in it.
    """
    settings = InferenceSettings(home=home, checkpoint="tiny", device="cpu", memory_mode="resident", threads=1)
    engine = open_engine(settings)
    try:
        yield Studio(engine, settings)
    finally:
        engine.close()


def _file(pixels: Pixels) -> bytes:
    rgb = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)  # noqa: PLR2004 - dimensions
    return encode(rgb).data


def _collect(events: queue.SimpleQueue[EngineEvent]) -> Drawn:
    drawn, found = Drawn(), {}
    while True:
        match events.get(timeout=DRAWN_WITHIN_S):
            case PictureDone() as done:
                found[done.index] = done.pixels
            case Previewed() as preview:
                drawn.previews.append((preview.step, preview.pixels))
            case Completed() as completed:
                drawn.pictures = [found[index] for index in sorted(found)]
                drawn.notes = completed.notes
                return drawn
            case Failed(error=error):
                raise error
