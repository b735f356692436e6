"""What a backend's last answer means for the caller."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gateway.errors import (
    BackendCancelledError,
    GenerationError,
    GenerationInputError,
    GenerationTimeoutError,
    UnknownSchedulerError,
)
from models.errors import FieldProblem
from models.logs import get_logger
from models.wire import JobInput, JobState

if TYPE_CHECKING:
    from models.wire import JobAnswer

PLAIN_ERROR = re.compile(r"([a-z][a-z0-9_]{0,63}): (.{1,500})", re.DOTALL)
"""`code: message`, the form in which our own handlers fail. Anything else may hold a traceback and is not shown."""
FIELD_REASON = re.compile(r"(?:input\.)?(\w+): (.+)", re.DOTALL)
LOGGED_CHARS = 2000
INPUT_CODES: dict[str, type[GenerationInputError]] = {
    "invalid_input": GenerationInputError,
    "unknown_scheduler": UnknownSchedulerError,
}

log = get_logger(__name__)


def failure_of(answer: JobAnswer) -> GenerationError | None:
    """None for a completed job, else the failure to keep and to tell."""
    if answer.status is JobState.COMPLETED:
        return None
    log.warning("backend_job_ended", state=answer.status, error=str(answer.error)[:LOGGED_CHARS])
    if answer.status is JobState.CANCELLED:
        return BackendCancelledError()
    if answer.status is JobState.TIMED_OUT:
        return GenerationTimeoutError()
    plain = PLAIN_ERROR.fullmatch(answer.error or "")
    if plain is None:
        return GenerationError()
    code, message = plain.groups()
    if code in INPUT_CODES:
        return INPUT_CODES[code](message, details=_details(code, message))
    return GenerationError(f"The backend failed to draw the picture: {code}: {message}")


def _details(code: str, message: str) -> list[FieldProblem]:
    if code == UnknownSchedulerError.code:
        return [FieldProblem("scheduler", message)]
    problems = [FIELD_REASON.fullmatch(part.strip()) for part in message.split(";")]
    return [FieldProblem(found[1], found[2]) for found in problems if found and found[1] in JobInput.model_fields]
