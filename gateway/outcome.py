"""What a backend's last answer means for the caller."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gateway.failures import (
    INPUT_FAILURES,
    TOLD_AS_THEY_ARE,
    BackendCancelledError,
    GenerationError,
    GenerationTimeoutError,
)
from models.errors import FieldProblem
from models.logs import get_logger
from models.wire import JobInput, JobState, names_of

if TYPE_CHECKING:
    from models.wire import JobAnswer

PLAIN_ERROR = re.compile(r"([a-z][a-z0-9_]{0,63}): (.{1,500})", re.DOTALL)
"""`code: message`, the form in which our own handlers fail. Anything else may hold a traceback and is not shown."""
FIELD_REASON = re.compile(r"(?:input\.)?((\w+)(?:\.\w+)*): (.+)", re.DOTALL)
"""A field, perhaps one inside another (`loras.0.name`), and what is wrong with it."""
NEXT_FIELD = re.compile(r"; (?=(?:input\.)?[a-z]\w*(?:\.\w+)*: )")
"""Where the next field's reason begins; a reason may have semicolons of its own."""
FIELD_NAMES = frozenset(name for field in JobInput.model_fields for name in names_of(field))
LOGGED_CHARS = 2000
FIELD_OF_CODE = {
    "unknown_scheduler": "scheduler",
    "unknown_lora": "loras",
    "lora_error": "loras",
    "unknown_checkpoint": "checkpoint",
    "checkpoint_changed": "checkpoint",
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
    return GenerationError() if plain is None else _failed(*plain.groups())


def _failed(code: str, message: str) -> GenerationError:
    if code in INPUT_FAILURES:
        return INPUT_FAILURES[code](message, details=_details(code, message))
    if code in TOLD_AS_THEY_ARE:
        return TOLD_AS_THEY_ARE[code](message)
    return GenerationError(f"The backend failed to draw the picture: {code}: {message}")


def _details(code: str, message: str) -> list[FieldProblem]:
    if code in FIELD_OF_CODE:
        return [FieldProblem(FIELD_OF_CODE[code], message)]
    problems = [FIELD_REASON.fullmatch(part.strip()) for part in NEXT_FIELD.split(message)]
    return [FieldProblem(found[1], found[3]) for found in problems if found and found[2] in FIELD_NAMES]
