"""What goes into the engine and what comes out of it, free of torch so that servers and fakes can share it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray


class EngineError(Exception):
    """Root of the engine's errors. `code` is stable; the message is plain words and safe to show a caller."""

    code: ClassVar[str] = "engine_error"


class EngineFullError(EngineError):
    """Admission refused: too many pictures are waiting already."""

    code = "queue_full"

    def __init__(self, waiting: int, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"{waiting} pictures are waiting already")


class UnknownSchedulerError(EngineError):
    """The scheduler's name is not known, or cannot honour the checkpoint's prediction type."""

    code = "unknown_scheduler"


class OutOfMemoryError(EngineError):
    """The device has not enough memory for this request, even in a batch of one."""

    code = "out_of_memory"


class CheckpointError(EngineError):
    """A checkpoint cannot be loaded: missing, incomplete, not safetensors, or not SDXL."""

    code = "checkpoint_error"


@dataclass(frozen=True, slots=True)
class PictureSpec:
    """One picture, every choice made. Sizes in pixels (multiples of 8); `seed` below 2**32."""

    prompt: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    seed: int
    scheduler: str

    @property
    def guided(self) -> bool:
        """Whether the negative prompt takes part, which doubles the rows of every step."""
        return self.guidance_scale > 1


@dataclass(frozen=True, slots=True)
class EngineJob:
    """Pictures that belong together. `strict` pins each to batches of one from first step to last."""

    id: str
    pictures: tuple[PictureSpec, ...]
    strict: bool = False


@dataclass(frozen=True, slots=True)
class CheckpointDefaults:
    """What a field that a caller did not send becomes; from `igen.json` beside `model_index.json`."""

    width: int = 1024
    height: int = 1024
    num_inference_steps: int = 30
    guidance_scale: float = 7.5
    scheduler: str = "euler"
    negative_prompt: str = ""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What is loaded and on what it runs.

    `sha256` is over the weight files, in hexadecimal; `scheduler_aliases` are other names, in lower case, that
    `schedulers` answer to.
    """

    checkpoint: str
    sha256: str
    demonstration: bool
    device: str
    dtype: str
    attention: str
    defaults: CheckpointDefaults
    schedulers: tuple[str, ...]
    versions: dict[str, str]
    scheduler_aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A moment's load, in pictures.

    `step_ms` is the recent mean of one UNet row in milliseconds, `batch_rows` the size of the last UNet call, `ticks`
    and `pictures_done` count since the start. Not `healthy`: call after call fails, the process should be replaced.
    """

    running: int
    waiting: int
    capacity: int
    step_ms: float
    ticks: int = 0
    pictures_done: int = 0
    batch_rows: int = 0
    healthy: bool = True


@dataclass(frozen=True, slots=True)
class Started:
    """The job's first picture got a slot."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Progressed:
    """Steps done and to do, summed over the job's pictures; `queue_position` counts jobs ahead, 0 once started."""

    job_id: str
    step: int
    steps: int
    eta_s: float | None
    queue_position: int = 0


@dataclass(frozen=True, slots=True)
class PictureDone:
    """One picture: `pixels` is uint8 [height, width, 3] in RGB; `bucket` is the batch size it was drawn in."""

    job_id: str
    index: int
    seed: int
    bucket: int
    pixels: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Completed:
    """Every picture was delivered. `queue_s` waited, `run_s` from first slot to last pixel, in seconds.

    `notes` say in plain words what of the request could not be honoured in full, such as a prompt cut short.
    """

    job_id: str
    queue_s: float
    run_s: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """The job ended without all its pictures."""

    job_id: str
    error: EngineError


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The job was cancelled; no event of it follows."""

    job_id: str
    pictures_done: int = field(default=0)


EngineEvent = Started | Progressed | PictureDone | Completed | Failed | Cancelled


class Engine(Protocol):
    """One device and its queue of pictures. Every method may be called from any thread."""

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""

    def submit(self, job: EngineJob, listener: Callable[[EngineEvent], None]) -> None:
        """Queue a job. `listener` is called from the engine's thread, in order, and must return at once.

        The last event of every submitted job is exactly one of Completed, Failed or Cancelled.

        Raises:
            EngineFullError: admission refused; nothing was queued.
            UnknownSchedulerError: one of the pictures names a scheduler that cannot be used.

        """

    def cancel(self, job_id: str) -> bool:
        """Ask that a job end at its next step. False when it is not known (any more)."""

    def stats(self) -> EngineStats:
        """The load now."""

    def close(self) -> None:
        """Stop the thread; jobs under way get Failed."""
