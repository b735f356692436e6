"""The wire between every caller and a generator of pictures: RunPod's serverless queue API.

One module holds the shapes of both directions, so the gateway, the self-hosted server and the RunPod worker
cannot drift apart. All types are frozen. The job input is a superset of worker-sdxl's, same names.
"""

from __future__ import annotations

import unicodedata
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from models.errors import InvalidInputError, problems_from_pydantic

SEED_COUNT = 2**32
"""Seeds are whole numbers below this; picture i of a job has seed (seed + i) mod SEED_COUNT."""

PROMPT_MAX_CHARS = 1000
IGNORED_WITHOUT_IMAGE = ("strength",)
IGNORED_WITHOUT_REFINER = ("refiner_inference_steps", "high_noise_frac")


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


def _multiple_of_eight(value: int) -> int:
    if value % 8:
        raise ValueError(f"must be a multiple of 8; {value - value % 8} and {value - value % 8 + 8} are nearest")
    return value


def _printable(value: str) -> str:
    if any(unicodedata.category(char) == "Cc" and char not in "\t\n\r" for char in value):
        raise ValueError("must not contain control characters")
    return value


PromptText = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=PROMPT_MAX_CHARS),
    AfterValidator(_printable),
]
NegativeText = Annotated[
    str, StringConstraints(strip_whitespace=True, max_length=PROMPT_MAX_CHARS), AfterValidator(_printable)
]
PlainText = Annotated[str, AfterValidator(_printable)]
Side = Annotated[int, Field(strict=True, ge=64, le=4096), AfterValidator(_multiple_of_eight)]
JobId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")]


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class JobInput(_Wire):
    """What to draw. A field that is not sent takes the checkpoint's own default.

    Sizes are in pixels. `negative_prompt` absent means the checkpoint's default, `""` means none. These are the
    hard bounds; a server's settings may be narrower.
    """

    prompt: PromptText = Field(description="What the picture shows.")
    negative_prompt: NegativeText | None = Field(
        None, description='What it must not show. Absent: the checkpoint\'s default; "": none.'
    )
    width: Side | None = Field(None, description="Pixels, a multiple of 8. Absent: the checkpoint's size.")
    height: Side | None = Field(None, description="Pixels, a multiple of 8. Absent: the checkpoint's size.")
    num_inference_steps: int | None = Field(None, strict=True, ge=1, le=150, description="Denoising steps.")
    guidance_scale: float | None = Field(
        None,
        strict=True,
        ge=0,
        le=50,
        description="Classifier-free guidance; at 1 or below the negative prompt has no effect.",
    )
    seed: int | None = Field(
        None, strict=True, ge=0, lt=SEED_COUNT, description="Absent: drawn at random and reported."
    )
    num_images: int = Field(1, strict=True, ge=1, le=16, description="Picture i has seed (seed + i) mod 2^32.")
    scheduler: PlainText | None = Field(None, min_length=1, max_length=64, description="Sampler name.")
    strict: bool = Field(
        False,
        strict=True,
        description="Alone in its batch from first to last step: equal bit for bit every time.",
    )
    request_id: JobId | None = Field(None, description="Correlation id; also the job's id on a self-hosted server.")
    # worker-sdxl's fields for img2img and the refiner. image_url is refused where it cannot be honoured; the
    # others mean nothing without it or a refiner, so they are accepted and named in the output's `ignored`.
    image_url: PlainText | None = Field(None, max_length=4096, description="img2img source; not available yet.")
    strength: float | None = Field(None, strict=True, ge=0, le=1, description="img2img only; otherwise ignored.")
    refiner_inference_steps: int | None = Field(None, strict=True, ge=0, le=150, description="Refiner only.")
    high_noise_frac: float | None = Field(None, strict=True, ge=0, le=1, description="Refiner only.")

    def ignored_fields(self) -> list[str]:
        """Names of fields that the caller sent and that change nothing."""
        names = (*IGNORED_WITHOUT_IMAGE, *IGNORED_WITHOUT_REFINER)
        return [name for name in names if getattr(self, name) is not None]


class Policy(_Wire):
    """RunPod's execution policy. Times in milliseconds."""

    executionTimeout: int = Field(600_000, strict=True, ge=5_000, le=7 * 86_400_000)  # noqa: N815
    lowPriority: bool = Field(False, strict=True)  # noqa: N815
    ttl: int = Field(86_400_000, strict=True, ge=10_000, le=7 * 86_400_000)


class S3Config(_Wire):
    """Where to put the pictures of one request, instead of returning them as base64."""

    accessId: PlainText = Field(min_length=1, max_length=256)  # noqa: N815
    accessSecret: PlainText = Field(min_length=1, max_length=256, repr=False)  # noqa: N815
    bucketName: str = Field(min_length=3, max_length=63, pattern=r"^[a-z0-9][a-z0-9.-]+$")  # noqa: N815
    endpointUrl: PlainText = Field(min_length=8, max_length=2048)  # noqa: N815


class JobRequest(_Wire):
    """The body of `/run` and `/runsync`."""

    input: JobInput
    webhook: PlainText | None = Field(None, min_length=8, max_length=2048)
    policy: Policy = Policy()
    s3Config: S3Config | None = None  # noqa: N815


class Progress(_Wire):
    """What `/status` shows as `output.progress` while a job waits or runs."""

    step: int = 0
    steps: int = 0
    eta_s: float | None = None
    queue_position: int = 0
    preview_seq: int = 0


class Receipt(_Wire):
    """What is needed to draw the same picture again."""

    checkpoint: str
    checkpoint_sha256: str
    scheduler: str
    seeds: list[int]
    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    strict: bool
    device: str
    dtype: str
    buckets: list[int]
    versions: dict[str, str]


class JobOutput(_Wire):
    """worker-sdxl's `{images, image_url, seed}` and more keys beside.

    `images` are `data:image/png;base64,...` or, after an upload, links. Times are in seconds. `notes` say in plain
    words what could not be honoured in full.
    """

    images: list[str]
    image_url: str
    seed: int
    seeds: list[int]
    width: int
    height: int
    demonstration: bool
    ignored: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    receipt: Receipt
    timings: dict[str, float]


class JobAnswer(_Wire):
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
