"""The generator's own errors, each with the status and the code that a caller sees."""

from __future__ import annotations

from models.errors import BadRequestError, IgenError, TooManyRequestsError, UnavailableError

DEADLINE_MISSED = "deadline_missed"


class QueueFullError(TooManyRequestsError):
    """Admission refused; Retry-After is the predicted wait."""

    code = "queue_full"


class DeadlineUnreachableError(TooManyRequestsError):
    """Admission refused: by the engine's reckoning drawing would not begin in time."""

    code = "deadline_unreachable"


class BookFullError(TooManyRequestsError):
    """As many jobs are remembered as IGEN_MAX_JOBS allows, and none of them may be forgotten yet."""

    code = "too_many_jobs"
    default_message = "Too many jobs are remembered. Try again later."


class LoadingError(UnavailableError):
    """The checkpoint is not loaded and warmed up yet."""

    code = "loading"
    default_message = "The checkpoint is being loaded. Try again soon."


class ShuttingDownError(UnavailableError):
    """The process is draining; it takes no new job."""

    code = "shutting_down"
    default_message = "The server is shutting down and takes no new job."


class UnhealthyError(UnavailableError):
    """The device fails call after call; the process is about to be replaced."""

    code = "engine_unhealthy"
    report = True
    default_message = "The engine failed repeatedly and is being restarted."


class NotRetryableError(BadRequestError):
    """Only a job that FAILED or TIMED_OUT can be retried."""

    code = "not_retryable"


class GenerationFailedError(IgenError):
    """The engine ended the job; code and message are its own."""

    report = False

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.engine_code = code

    def as_plain_string(self) -> str:
        """`code: message` with the engine's code."""
        return f"{self.engine_code}: {self.message}"


class CheckpointChangedError(IgenError):
    """A receipt names a checkpoint whose weights are not those of the same name here."""

    status = 422
    code = "checkpoint_changed"
    report = False


class UploadFailedError(IgenError):
    """Drawn, but the bucket did not take it."""

    status = 502
    code = "upload_failed"
    retryable = True


class ResultTooLargeError(IgenError):
    """Drawn, but larger than an answer may be."""

    code = "result_too_large"
    report = False
