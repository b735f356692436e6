"""How a generation can end without a picture. Its row keeps the failure by code, and it is told again by it."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar

from models.errors import FieldProblem, IgenError

if TYPE_CHECKING:
    from collections.abc import Sequence

RETRY_AFTER_S = 5
NEW_KEY = "Send it again with a new Idempotency-Key."


class GenerationError(IgenError):
    """Root of the ends of a generation that are not a picture.

    `consumes_key` says whether the caller's Idempotency-Key is used up. It is not where the backend certainly never
    took the job: there a retry with the same key must start it, since a replayed "try again later" would never end.
    """

    status = 502
    code = "backend_failed"
    consumes_key: ClassVar[bool] = True
    default_message = f"The backend failed to draw the picture. {NEW_KEY}"

    def __init__(
        self,
        message: str | None = None,
        *,
        details: Sequence[FieldProblem] = (),
        retry_after_s: int | None = None,
    ) -> None:
        """Every failure that is not the request's own says when to come back."""
        if retry_after_s is None and self.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            retry_after_s = RETRY_AFTER_S
        super().__init__(message, details=details, retry_after_s=retry_after_s)


class BackendUnavailableError(GenerationError):
    """No connection could be made, or the breaker knows that none can: the job was never sent."""

    status = 503
    code = "backend_unavailable"
    retryable = True
    report = False
    consumes_key = False
    default_message = "The backend cannot be reached. Try again later."


class BackendFullError(GenerationError):
    """The backend refused the job because its queue is full or it is still loading."""

    status = 503
    code = "backend_full"
    retryable = True
    report = False
    consumes_key = False
    default_message = "The backend takes no more jobs at the moment. Try again later."


class BackendLostError(GenerationError):
    """The backend had the job and does not know it any more, or died over it."""

    code = "backend_lost"
    default_message = f"The backend lost the job. {NEW_KEY}"


class DeadlineUnreachableError(GenerationError):
    """The backend reckons that drawing would not begin before the request's `deadline_s`: it took nothing."""

    status = 429
    code = "deadline_unreachable"
    retryable = True
    report = False
    consumes_key = False
    default_message = "Drawing would not begin in time. Try again later, or with a longer deadline_s."


class DeadlineMissedError(GenerationError):
    """Drawing did not begin before the request's `deadline_s`."""

    status = 504
    code = "deadline_missed"
    report = False
    default_message = f"Drawing did not begin in time. {NEW_KEY}"


class InputLostError(GenerationError):
    """A picture of the request cannot be read back from the store: the job was never sent."""

    status = 503
    code = "input_unavailable"
    retryable = True
    consumes_key = False
    default_message = "The request's picture could not be read back from the store. Send the request again."


class SubmissionUnknownError(GenerationError):
    """RunPod's answer to the submission was lost: the job may run, and sending it again might run it twice."""

    code = "submission_unknown"
    default_message = f"It is not known whether the backend took the job, so it was not sent again. {NEW_KEY}"


class BackendAuthError(GenerationError):
    """The backend refuses the gateway's key; an operator must set IGEN_BACKEND_KEY."""

    code = "backend_auth"
    default_message = "The backend refuses the gateway's key. An operator must correct it."


class BackendAnswerError(GenerationError):
    """The backend's answer is not what the wire allows: no JSON, no PNG, another size, too long."""

    code = "backend_bad_answer"
    default_message = f"The backend's answer could not be used. {NEW_KEY}"


class BackendCancelledError(GenerationError):
    """Somebody cancelled the job at the backend."""

    code = "backend_cancelled"
    default_message = f"The job was cancelled at the backend. {NEW_KEY}"


class GenerationTimeoutError(GenerationError):
    """The job took longer than the settings or the backend allow; it was cancelled there."""

    status = 504
    code = "generation_timeout"
    default_message = f"The picture was not ready in time; the job was cancelled. {NEW_KEY}"


class PictureStoreError(GenerationError):
    """The picture was drawn and could not be kept."""

    status = 503
    code = "store_unavailable"
    default_message = f"The picture could not be stored. {NEW_KEY}"


class GenerationInputError(GenerationError):
    """The backend refuses the input's content."""

    status = 422
    code = "invalid_input"
    report = False
    default_message = "The backend refuses a field of the request."


class UnknownSchedulerError(GenerationInputError):
    """The backend does not know the scheduler's name."""

    code = "unknown_scheduler"
    default_message = "The backend does not know this scheduler."


class UnknownLoraError(GenerationInputError):
    """The backend has no LoRA of this name."""

    code = "unknown_lora"
    default_message = "The backend has no LoRA of this name."


class LoraError(GenerationInputError):
    """The backend has a LoRA of this name that cannot be used: damaged, or for another architecture."""

    code = "lora_error"
    default_message = "The LoRA cannot be used with this checkpoint."


class UnknownCheckpointError(GenerationInputError):
    """The backend has no checkpoint of this name."""

    code = "unknown_checkpoint"
    default_message = "The backend has no checkpoint of this name."


class CheckpointChangedError(GenerationInputError):
    """The backend's checkpoint of this name has other weights than the receipt's."""

    code = "checkpoint_changed"
    default_message = "The checkpoint is not the receipt's any more."


class CheckpointError(GenerationError):
    """The backend's checkpoint cannot be loaded; an operator must look at it."""

    code = "checkpoint_error"
    default_message = "The checkpoint cannot be loaded. An operator must look at it."


class SafetyHookError(GenerationError):
    """The backend's safety hook failed, so nobody may see the pictures."""

    code = "safety_hook_failed"
    default_message = "The safety hook failed, so the pictures are not shown."


class WatermarkHookError(GenerationError):
    """The backend's watermark hook failed, so the pictures are not shown without a mark."""

    code = "watermark_hook_failed"
    default_message = "The watermark hook failed, so the pictures are not shown."


class InternalGenerationError(GenerationError):
    """A fault of the gateway itself; the log has its traceback."""

    status = 500
    code = "internal_error"
    default_message = "The gateway failed over this job. The failure has been logged."


_KINDS: tuple[type[GenerationError], ...] = (
    GenerationError,
    BackendUnavailableError,
    BackendFullError,
    BackendLostError,
    SubmissionUnknownError,
    BackendAuthError,
    BackendAnswerError,
    BackendCancelledError,
    GenerationTimeoutError,
    PictureStoreError,
    GenerationInputError,
    UnknownSchedulerError,
    UnknownLoraError,
    LoraError,
    UnknownCheckpointError,
    CheckpointChangedError,
    CheckpointError,
    SafetyHookError,
    WatermarkHookError,
    DeadlineUnreachableError,
    DeadlineMissedError,
    InputLostError,
    InternalGenerationError,
)
FAILURES: dict[str, type[GenerationError]] = {kind.code: kind for kind in _KINDS}
INPUT_FAILURES = {kind.code: kind for kind in _KINDS if issubclass(kind, GenerationInputError)}
TOLD_AS_THEY_ARE = {
    kind.code: kind for kind in (CheckpointError, SafetyHookError, WatermarkHookError, DeadlineMissedError)
}
"""Failures of a backend whose code and message the caller gets, beside those of the input."""


def to_row(error: GenerationError) -> dict[str, Any]:
    """What a row keeps of its failure, beside the code."""
    return {
        "message": error.message,
        "details": [[problem.field, problem.reason] for problem in error.details],
        "retry_after_s": error.retry_after_s,
    }


def from_row(code: str | None, kept: dict[str, Any] | None) -> GenerationError:
    """The failure that a row keeps, as it was first told. An unknown code reads as a failed backend."""
    kept = kept or {}
    return FAILURES.get(code or "", GenerationError)(
        kept.get("message"),
        details=[FieldProblem(field, reason) for field, reason in kept.get("details", [])],
        retry_after_s=kept.get("retry_after_s"),
    )
