"""The wire between every caller and a generator of pictures: RunPod's serverless queue API.

The shapes of both directions, so the gateway, the self-hosted server and the RunPod worker cannot drift apart; the
job's input is in `wire_input` and imported from here. All types are frozen. The input is a superset of worker-sdxl's.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from models.errors import InvalidInputError, problems_from_pydantic
from models.wire_fields import PROMPT_MAX_CHARS, SEED_COUNT, JobId, OutputFormat, PictureSource, PlainText, Wire
from models.wire_input import HiresInput, JobInput, LoraInput, names_of

__all__ = [
    "PROMPT_MAX_CHARS",
    "RECEIPT_PROMPT_CHARS",
    "SEED_COUNT",
    "Health",
    "HiresInput",
    "JobAnswer",
    "JobId",
    "JobInput",
    "JobOutput",
    "JobRequest",
    "JobState",
    "LoraInput",
    "OutputFormat",
    "PictureCheck",
    "Policy",
    "Progress",
    "Receipt",
    "ReceiptHires",
    "ReceiptLora",
    "ReceiptRefiner",
    "S3Config",
    "VerifyOutput",
    "VerifyRequest",
    "invalid_input",
    "names_of",
    "parse_input",
]


RECEIPT_PROMPT_CHARS = 20_000  # styles add to what a caller may send


class JobState(StrEnum):
    """The states of a job on RunPod's wire."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"

    @property
    def terminal(self) -> bool:
        """Whether a job in this state will never change again."""
        return self not in (JobState.IN_QUEUE, JobState.IN_PROGRESS)


class Policy(Wire):
    """RunPod's execution policy. Times in milliseconds."""

    executionTimeout: int = Field(600_000, strict=True, ge=5_000, le=7 * 86_400_000)  # noqa: N815
    lowPriority: bool = Field(False, strict=True)  # noqa: N815
    ttl: int = Field(86_400_000, strict=True, ge=10_000, le=7 * 86_400_000)


class S3Config(Wire):
    """Where to put the pictures of one request, instead of returning them as base64."""

    accessId: PlainText = Field(min_length=1, max_length=256)  # noqa: N815
    accessSecret: PlainText = Field(min_length=1, max_length=256, repr=False)  # noqa: N815
    bucketName: str = Field(min_length=3, max_length=63, pattern=r"^[a-z0-9][a-z0-9.-]+$")  # noqa: N815
    endpointUrl: PlainText = Field(min_length=8, max_length=2048)  # noqa: N815


class JobRequest(Wire):
    """The body of `/run` and `/runsync`."""

    input: JobInput
    webhook: PlainText | None = Field(None, min_length=8, max_length=2048)
    policy: Policy = Policy()
    s3Config: S3Config | None = None  # noqa: N815


class Progress(Wire):
    """What `/status` shows as `output.progress` while a job waits or runs."""

    step: int = 0
    steps: int = 0
    eta_s: float | None = None
    queue_position: int = 0
    preview_seq: int = 0


Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ReceiptLora(Wire):
    """A LoRA that took part; `sha256` is over its file."""

    name: str
    scale: float
    sha256: str


class ReceiptHires(Wire):
    """The second pass as it was drawn."""

    width: int
    height: int
    steps: int
    strength: float
    upscaler: Literal["lanczos", "latent"]


class ReceiptRefiner(Wire):
    """The refiner's part as it was drawn."""

    checkpoint: str
    sha256: str
    steps: int
    switch_at: float
    negative_prompt: str


class Receipt(Wire):
    """What is needed to draw the same pictures again.

    `prompt` and `negative_prompt` are as drawn, after styles. `width` and `height` are before the hires pass.
    `pixels_sha256` is over each picture's raw pixels (uint8 RGB, row by row), before any hook and any encoding;
    `init_sha256` and `mask_sha256` are over the given files. `levers` are the engine's choices that move a picture's
    last bits: attention kernel, compilation, CUDA graphs, fused projections, the VAE's precision, the memory mode.
    """

    checkpoint: str
    checkpoint_sha256: str
    scheduler: str
    seeds: list[int] = Field(min_length=1, max_length=16)
    prompt: str = Field(max_length=RECEIPT_PROMPT_CHARS)
    negative_prompt: str = Field(max_length=RECEIPT_PROMPT_CHARS)
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    strict: bool
    device: str
    dtype: str
    buckets: list[int]
    versions: dict[str, str]
    levers: dict[str, str] = Field(default_factory=dict)
    prompt_syntax: Literal["a1111", "plain"] = "a1111"
    refiner: ReceiptRefiner | None = None
    loras: list[ReceiptLora] = Field(default_factory=list)
    hires: ReceiptHires | None = None
    strength: float | None = None
    init_sha256: str | None = None
    mask_sha256: str | None = None
    output_format: OutputFormat = "png"
    pixels_sha256: list[str] = Field(default_factory=list)


class JobOutput(Wire):
    """worker-sdxl's `{images, image_url, seed}` and more keys beside.

    `images` are data URLs (`data:image/png;base64,...`, or `image/jpeg`, `image/webp`) or, after an upload, links.
    Times are in seconds; a prediction is absent where nothing like the job has been measured yet. `notes` say in
    plain words what could not be honoured in full. `flagged` are the pictures that the safety hook did not allow.
    """

    images: list[str]
    image_url: str
    seed: int
    seeds: list[int]
    width: int
    height: int
    output_format: OutputFormat = "png"
    demonstration: bool
    ignored: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    flagged: list[int] = Field(default_factory=list)
    receipt: Receipt
    timings: dict[str, float]


class VerifyRequest(Wire):
    """The body of `/verify`: a receipt, and what is to be compared with what it draws now.

    `images` are in the order of the receipt's seeds; without them only the receipt's hashes are compared. `image`
    and `mask` are the job's own again, where it had them.
    """

    receipt: Receipt
    images: list[PictureSource] = Field(default_factory=list, max_length=16, repr=False)
    image: PictureSource | None = Field(None, repr=False)
    mask: PictureSource | None = Field(None, repr=False)


class PictureCheck(Wire):
    """One picture drawn again. Differences are in 8-bit levels of one channel, None without a picture to compare."""

    seed: int
    pixels_sha256: str
    same_hash: bool | None = None
    same_size: bool | None = None
    max_difference: int | None = None
    mean_difference: float | None = None
    differing_pixels: float | None = None


class VerifyOutput(Wire):
    """What drawing from a receipt gave; `max_difference` is the largest of all given pictures that have the size.

    `identical`: every picture has the receipt's hash, or else every given picture is equal to the pixel. `differs`
    names what is not as the receipt says: `checkpoint_sha256`, `device`, `dtype`, `versions.torch`, `loras.name`.
    """

    identical: bool
    max_difference: int | None = None
    pictures: list[PictureCheck]
    differs: dict[str, list[str]]
    receipt: Receipt
    timings: dict[str, float]


class JobAnswer(Wire):
    """The body of every answer about a job. Times in milliseconds; absent keys are left out of the JSON."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # RunPod adds keys as it likes

    id: str
    status: JobState
    delayTime: int | None = None  # noqa: N815
    executionTime: int | None = None  # noqa: N815
    output: Any = None
    error: str | None = None
    workerId: str | None = None  # noqa: N815

    def to_json(self) -> dict[str, Any]:
        """The answer as RunPod shows it: keys without a value are absent."""
        return self.model_dump(mode="json", exclude_none=True)


WorkerState = Literal["idle", "running", "initializing", "unhealthy"]


class Health(BaseModel):
    """The body of `/health`; callers must tolerate more keys."""

    model_config = ConfigDict(frozen=True, extra="allow")

    jobs: dict[str, int]
    workers: dict[str, int]


def parse_input(payload: object) -> JobInput:
    """Validate a job's `input`.

    Raises:
        InvalidInputError: naming every wrong field.

    """
    try:
        return JobInput.model_validate(payload)
    except ValidationError as problem:
        raise invalid_input(problem) from None


def invalid_input(problem: ValidationError, skip: int = 0) -> InvalidInputError:
    """Our error for pydantic's, its message naming field and reason."""
    details = problems_from_pydantic(problem.errors(include_url=False, include_context=False), skip)
    message = "; ".join(f"{item.field}: {item.reason}" for item in details[:5])
    return InvalidInputError(message, details=details)
