"""One loaded tiny checkpoint for all engine tests; an engine of its own where a test changes one."""

from __future__ import annotations

import queue
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from inference.engine.checkpoint import load_checkpoint
from inference.engine.engine import BatchingEngine, EngineLimits
from inference.engine.types import Cancelled, Completed, EngineJob, Failed, PictureDone, PictureSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from inference.engine.checkpoint import Checkpoint
    from inference.engine.types import EngineEvent

CHECKPOINTS = Path(__file__).resolve().parents[3] / "inference" / "checkpoints"


@dataclass
class Outcome:
    """What one job's listener heard."""

    events: list[EngineEvent] = field(default_factory=list)

    @property
    def last(self) -> EngineEvent:
        return self.events[-1]

    @property
    def pictures(self) -> dict[int, NDArray[np.uint8]]:
        return {event.index: event.pixels for event in self.events if isinstance(event, PictureDone)}

    @property
    def picture(self) -> NDArray[np.uint8]:
        assert isinstance(self.last, Completed), self.last
        return self.pictures[0]


class Driver:
    """Submits jobs and waits for their ends."""

    def __init__(self, engine: BatchingEngine) -> None:
        self.engine = engine
        self._serial = 0

    def start(
        self, *specs: PictureSpec, strict: bool = False, previews: int = 0, within_s: float | None = None
    ) -> tuple[str, queue.SimpleQueue[EngineEvent]]:
        self._serial += 1
        job = EngineJob(f"job-{self._serial}", specs, strict, previews, within_s)
        events: queue.SimpleQueue[EngineEvent] = queue.SimpleQueue()
        self.engine.submit(job, events.put)
        return job.id, events

    @staticmethod
    def wait(events: queue.SimpleQueue[EngineEvent]) -> Outcome:
        outcome = Outcome()
        while not outcome.events or not isinstance(outcome.last, Completed | Failed | Cancelled):
            outcome.events.append(events.get(timeout=60))
        return outcome

    def draw(self, *specs: PictureSpec, strict: bool = False, previews: int = 0) -> Outcome:
        return self.wait(self.start(*specs, strict=strict, previews=previews)[1])

    def draw_together(self, specs: list[PictureSpec], *, strict: bool = False) -> list[Outcome]:
        started = [self.start(spec, strict=strict)[1] for spec in specs]
        return [self.wait(events) for events in started]


def spec(**changes: object) -> PictureSpec:
    """A small picture; keywords change it."""
    values: dict[str, object] = {
        "prompt": "a red circle on a blue background",
        "negative_prompt": "",
        "width": 128,
        "height": 128,
        "steps": 4,
        "guidance_scale": 3.0,
        "seed": 7,
        "scheduler": "euler",
    }
    return PictureSpec(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., PictureSpec]:
    return spec


@pytest.fixture(scope="session")
def tiny_folder() -> str:
    """The bundled checkpoint, for the stock pipelines."""
    return str(CHECKPOINTS / "tiny")


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    return load_checkpoint("tiny", None, (CHECKPOINTS,), device="cpu")


@pytest.fixture(scope="session")
def driver(checkpoint: Checkpoint) -> Iterator[Driver]:
    engine = BatchingEngine(checkpoint, EngineLimits())
    yield Driver(engine)
    engine.close()


@pytest.fixture(scope="session")
def tiny_picture(driver: Driver) -> NDArray[np.uint8]:
    """A picture to begin with: uint8 [128, 128, 3]."""
    return driver.draw(spec(steps=10, prompt="a yellow square on a green background")).picture


@pytest.fixture
def make_driver(checkpoint: Checkpoint) -> Iterator[Callable[..., Driver]]:
    engines: list[BatchingEngine] = []

    def make(limits: EngineLimits | None = None, *, using: Checkpoint | None = None, **options: Any) -> Driver:
        engines.append(BatchingEngine(using or checkpoint, limits or EngineLimits(), **options))
        return Driver(engines[-1])

    yield make
    for engine in engines:
        engine.close()
