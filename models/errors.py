"""The one error root and the one envelope in which every HTTP error leaves a process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence


PROBLEMS_MAX = 100
FIELD_MAX_CHARS = 200
"""Bounds of what an error repeats from a request: a body of a million unknown fields gets a short answer."""


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One thing wrong with one field: its dotted path and the reason in plain words."""

    field: str
    reason: str


class IgenError(Exception):
    """Root of all errors that a caller may see.

    Class attributes are the defaults of a kind of error; `message` is public, so it must never hold a secret,
    an internal address or a traceback.

    Attributes:
        status: HTTP status code of the answer.
        code: stable machine-readable name, snake_case; callers may switch on it.
        retryable: whether the same request can succeed later without change.
        report: whether an operator should hear of it (it is logged with its traceback).
        retry_after_s: whole seconds for the Retry-After header, or None for no header.
        details: the fields concerned, first one first.

    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False
    report: ClassVar[bool] = True
    default_message: ClassVar[str] = "The server failed to answer. The failure has been logged."

    def __init__(
        self,
        message: str | None = None,
        *,
        details: Sequence[FieldProblem] = (),
        retry_after_s: int | None = None,
    ) -> None:
        self.message = message or self.default_message
        self.details = tuple(details)
        self.retry_after_s = retry_after_s
        super().__init__(self.message)

    @property
    def headers(self) -> dict[str, str]:
        """Extra response headers that belong to this error."""
        return {} if self.retry_after_s is None else {"Retry-After": str(max(1, self.retry_after_s))}

    def as_plain_string(self) -> str:
        """`code: message`, the form in which an error travels in a job's `error` field."""
        return f"{self.code}: {self.message}"


class InvalidInputError(IgenError):
    """The payload's content is wrong; `details` says which field and why."""

    status = 422
    code = "invalid_input"
    report = False
    default_message = "The request has invalid fields."

    @classmethod
    def for_field(cls, field: str, reason: str) -> InvalidInputError:
        """One field is wrong."""
        return cls(f"{field}: {reason}", details=[FieldProblem(field, reason)])


class BadRequestError(IgenError):
    """The request is not well formed: no JSON, wrong content type, unknown Host."""

    status = 400
    code = "bad_request"
    report = False
    default_message = "The request is not well formed."


class UnauthorizedError(IgenError):
    """No key, or one that is unknown, expired or revoked."""

    status = 401
    code = "unauthorized"
    report = False
    default_message = "Send a valid API key as `Authorization: Bearer <key>`."

    @property
    def headers(self) -> dict[str, str]:
        """RFC 9110 asks for WWW-Authenticate on every 401."""
        return {**super().headers, "WWW-Authenticate": "Bearer"}


class ForbiddenError(IgenError):
    """The key is good and does not allow this."""

    status = 403
    code = "forbidden"
    report = False
    default_message = "This key does not allow that."


class NotFoundError(IgenError):
    """Nothing there, or it belongs to somebody else; the answer is the same for both."""

    status = 404
    code = "not_found"
    report = False
    default_message = "There is nothing at this address."


class TooLargeError(IgenError):
    """A body over its limit."""

    status = 413
    code = "too_large"
    report = False
    default_message = "The request body is too large."


class TooManyRequestsError(IgenError):
    """This caller, or this queue, is at its limit."""

    status = 429
    code = "too_many_requests"
    retryable = True
    report = False
    default_message = "The queue is full. Try again later."


class UnavailableError(IgenError):
    """This process cannot serve at the moment (starting, stopping, a store is down)."""

    status = 503
    code = "unavailable"
    retryable = True
    report = False
    default_message = "The service is not ready. Try again later."


def envelope(error: IgenError, request_id: str | None = None) -> dict[str, Any]:
    """The JSON body of an error answer.

    `message`, `type`, `param` and `code` are where the OpenAI client libraries look; `details` names every
    field concerned with its reason.
    """
    details = [{"field": problem.field, "reason": problem.reason} for problem in error.details]
    return {
        "status": "error",
        "error": {
            "code": error.code,
            "message": error.message,
            "type": "invalid_request_error" if error.status < 500 else "server_error",  # noqa: PLR2004
            "param": details[0]["field"] if details else None,
            "details": details,
            "retryable": error.retryable,
            "request_id": request_id,
        },
    }


def problems_from_pydantic(errors: Sequence[Any], skip: int = 0) -> list[FieldProblem]:
    """Turn pydantic's `ValidationError.errors()` into field problems.

    Args:
        errors: pydantic's error dictionaries.
        skip: how many leading parts of each location to leave out (FastAPI puts `body` first).

    """
    problems = []
    for item in errors[:PROBLEMS_MAX]:
        field = ".".join(str(part) for part in item["loc"][skip:])[:FIELD_MAX_CHARS] or "body"
        reason = str(item["msg"]).removeprefix("Value error, ")
        problems.append(FieldProblem(field, reason))
    return problems
