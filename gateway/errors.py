"""What can go wrong in the gateway. Failures of a generation are kept in its row by code and told again by it."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar

from models.errors import (
    BadRequestError,
    FieldProblem,
    ForbiddenError,
    IgenError,
    InvalidInputError,
    NotFoundError,
    TooLargeError,
    TooManyRequestsError,
    UnauthorizedError,
    UnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

RETRY_AFTER_S = 5
NEW_KEY = "Send it again with a new Idempotency-Key."


class MethodNotAllowedError(IgenError):
    """The address exists and does not take this method."""

    status = 405
    code = "method_not_allowed"
    report = False
    default_message = "This address does not take that method."


class RangeError(IgenError):
    """The part of a picture that was asked for lies beyond its end."""

    status = 416
    code = "range_not_satisfiable"
    report = False
    default_message = "The picture is shorter than the part that was asked for."


class IdempotencyConflictError(InvalidInputError):
    """The key was used before, with another body."""

    code = "idempotency_conflict"
    default_message = "This Idempotency-Key was used before with another request."


class BusyError(UnavailableError):
    """As many callers are waiting as the settings allow."""

    code = "gateway_full"
    default_message = "Too many requests are waiting. Try again later."


class StillRunningError(UnavailableError):
    """The caller's wait ends, the job does not."""

    code = "still_running"
    default_message = "The job goes on. Ask for it again with the same Idempotency-Key, or by its id."


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
    InternalGenerationError,
)
FAILURES: dict[str, type[GenerationError]] = {kind.code: kind for kind in _KINDS}


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


def from_status(status: int, detail: str = "") -> IgenError:
    """Our error for one that the router or the server raised by number."""
    if status == MethodNotAllowedError.status:
        return MethodNotAllowedError()
    kinds: dict[int, type[IgenError]] = {
        401: UnauthorizedError,
        404: NotFoundError,
        413: TooLargeError,
        503: UnavailableError,
    }
    if status in kinds:
        return kinds[status]()
    return BadRequestError(detail or None)


class UploadRefusedError(InvalidInputError):
    """A file that was sent is not what it should be; the code is that of whoever looked into it."""

    def __init__(self, field: str, code: str, message: str) -> None:
        self.code = code  # type: ignore[misc] # the kinds of fault are the compositor's, each with its own name
        super().__init__(f"{field}: {message}", details=[FieldProblem(field, message)])


class AssetInUseError(IgenError):
    """A design still names the asset."""

    status = 409
    code = "asset_in_use"
    report = False
    default_message = "A frame's design names this asset. Change the design first."


class OwnerLimitError(TooManyRequestsError):
    """An owner has as many things of a kind under way as the settings allow."""

    code = "too_many_at_once"

    @property
    def headers(self) -> dict[str, str]:
        """The body was not read, so the connection cannot be used again."""
        return {**super().headers, "Connection": "close"}


class OriginError(ForbiddenError):
    """A page of another site opened a WebSocket here."""

    code = "origin_not_allowed"
    default_message = "Pages of this origin may not connect. See IGEN_ALLOWED_ORIGINS."


class NoQueueError(UnavailableError):
    """There is no Redis, or it does not answer, and this needs one."""

    code = "queue_unavailable"
    default_message = "The queue does not answer. Try again later."
