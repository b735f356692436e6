"""What goes into the engine and what comes out of it, free of torch so that servers and fakes can share it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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


class CannotStartInTimeError(EngineFullError):
    """Admission refused: by the engine's reckoning the job would not begin before its deadline."""

    code = "deadline_unreachable"

    def __init__(self, waiting: int, wait_s: float, deadline_s: float) -> None:
        self.wait_s, self.deadline_s = wait_s, deadline_s
        super().__init__(waiting, max(1.0, wait_s - deadline_s))
        self.args = (f"drawing would begin in about {wait_s:.0f} s, and was to begin within {deadline_s:.4g} s",)


class DeadlineMissedError(EngineError):
    """The job did not begin before its deadline."""

    code = "deadline_missed"


class UnknownCheckpointError(EngineError):
    """No checkpoint of this name is in the catalogue, or it is of the wrong kind for its place."""

    code = "unknown_checkpoint"


class UnknownLoraError(EngineError):
    """No LoRA of this name is in the catalogue."""

    code = "unknown_lora"


class LoraError(EngineError):
    """A LoRA cannot be used: damaged, not safetensors, of an unsupported kind, or for another architecture."""

    code = "lora_error"


class CheckpointError(EngineError):
    """A checkpoint cannot be loaded: missing, incomplete, not safetensors, or not SDXL."""

    code = "checkpoint_error"


PromptSyntax = Literal["a1111", "plain"]
"""`a1111`: `(word:1.3)`, `[word]` and BREAK mean what they mean there; `plain`: every character is text."""
Upscaler = Literal["lanczos", "latent"]


@dataclass(frozen=True, slots=True)
class LoraUse:
    """A LoRA by its catalogue name, and how much of it."""

    name: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class InitPicture:
    """What a picture starts from instead of noise alone.

    `pixels` are uint8 [height, width, 3] in RGB, of the picture's own size. `strength` in (0, 1] is the share of the
    schedule that is drawn; 1 begins in noise. With a `mask`, uint8 [height, width], what is 255 is drawn anew and
    what is 0 stays as it is, to the pixel.
    """

    pixels: NDArray[np.uint8]
    strength: float
    mask: NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True)
class HiresPass:
    """A second pass at a larger size, in pixels: the finished picture is enlarged and drawn over by `strength`."""

    width: int
    height: int
    steps: int
    strength: float
    upscaler: Upscaler = "lanczos"


@dataclass(frozen=True, slots=True)
class RefinerPass:
    """The rest of the schedule on a refiner (SDXL's ensemble of experts).

    The base draws the first `switch_at` of the schedule's noise (diffusers' `denoising_end`), the refiner the rest
    of its own schedule of `steps`.
    """

    checkpoint: str
    steps: int
    switch_at: float = 0.8
    negative_prompt: str = ""


@dataclass(frozen=True, slots=True)
class PictureSpec:
    """One picture, every choice made. Sizes in pixels (multiples of 8); `seed` below 2**32.

    `checkpoint` is a catalogue name; empty is the one that the engine was opened with.
    """

    prompt: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    seed: int
    scheduler: str
    checkpoint: str = ""
    syntax: PromptSyntax = "a1111"
    loras: tuple[LoraUse, ...] = ()
    init: InitPicture | None = None
    hires: HiresPass | None = None
    refiner: RefinerPass | None = None

    @property
    def guided(self) -> bool:
        """Whether the negative prompt takes part, which doubles the rows of every step."""
        return self.guidance_scale > 1


@dataclass(frozen=True, slots=True)
class EngineJob:
    """Pictures that belong together. `strict` pins each to batches of one from first step to last.

    `preview_every`: a small preview of each picture every so many steps; 0 for none. `start_within_s`: admission is
    refused when the first picture would not get its slot in so many seconds, and the job fails when it did not.
    """

    id: str
    pictures: tuple[PictureSpec, ...]
    strict: bool = False
    preview_every: int = 0
    start_within_s: float | None = None


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
    `schedulers` answer to. `levers` are the choices that make a checkpoint faster and move its pictures' last bits,
    by name, with the memory mode; empty where it has not been loaded.
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
    memory_mode: str = "resident"
    levers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoraUsed:
    """A LoRA as it was used; `sha256` is over its file, in hexadecimal."""

    name: str
    scale: float
    sha256: str


@dataclass(frozen=True, slots=True)
class Predicted:
    """The engine's reckoning at admission, in seconds; None where nothing like it has been measured yet."""

    queue_s: float | None = None
    run_s: float | None = None


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


@dataclass(frozen=True, slots=True, eq=False)
class Previewed:
    """A small, rough picture of what is being drawn: `pixels` uint8 [height/8, width/8, 3] in RGB.

    `seq` counts the job's previews from 1; `step` and `steps` are this picture's own.
    """

    job_id: str
    index: int
    seq: int
    step: int
    steps: int
    pixels: NDArray[np.uint8]


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

    `notes` say in plain words what of the request could not be honoured in full. `device_s`
    is the device's time that the job took: its share of every batch. `checkpoint` and `refiner` are what it was
    drawn with.
    """

    job_id: str
    queue_s: float
    run_s: float
    notes: tuple[str, ...] = ()
    device_s: float = 0.0
    predicted: Predicted = Predicted()
    checkpoint: EngineInfo | None = None
    refiner: EngineInfo | None = None
    loras: tuple[LoraUsed, ...] = ()


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


EngineEvent = Started | Progressed | Previewed | PictureDone | Completed | Failed | Cancelled


class Engine(Protocol):
    """One device and its queue of pictures. Every method may be called from any thread."""

    @property
    def info(self) -> EngineInfo:
        """The checkpoint that is drawn with where a request names none."""

    def describe(self, checkpoint: str = "") -> EngineInfo:
        """What is known of a checkpoint of the catalogue; `sha256` is empty where it has not been loaded yet.

        Raises:
            UnknownCheckpointError: there is none of this name, or it is broken.

        """

    def checkpoints(self) -> tuple[str, ...]:
        """Names that `PictureSpec.checkpoint` may have, the engine's own first."""

    def refiners(self) -> tuple[str, ...]:
        """Names that `RefinerPass.checkpoint` may have."""

    def loras(self) -> tuple[str, ...]:
        """Names that `LoraUse.name` may have."""

    def submit(self, job: EngineJob, listener: Callable[[EngineEvent], None]) -> None:
        """Queue a job. `listener` is called from the engine's thread, in order, and must return at once.

        The last event of every submitted job is exactly one of Completed, Failed or Cancelled.

        Raises:
            EngineFullError: admission refused; nothing was queued.
            UnknownSchedulerError, UnknownCheckpointError, UnknownLoraError: a picture names what cannot be used.

        """

    def cancel(self, job_id: str) -> bool:
        """Ask that a job end at its next step. False when it is not known (any more)."""

    def stats(self) -> EngineStats:
        """The load now."""

    def close(self) -> None:
        """Stop the thread; jobs under way get Failed."""
