"""How an error leaves: one envelope, whichever layer found it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi.responses import JSONResponse

from gateway.requestlog import record_of
from models.errors import IgenError, TooLargeError, envelope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Scope


def answer_json(
    scope: Scope, body: dict[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """A JSON answer that the request log keeps, redacted."""
    record_of(scope).response_body = body
    return JSONResponse(body, status_code=status, headers={"Cache-Control": "no-store", **(headers or {})})


def answer_error(
    scope: Scope, error: IgenError, *, generation_id: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The envelope of an error. `generation_id` stands beside it where a row was made."""
    record = record_of(scope)
    record.error_code = error.code
    body = envelope(error, record.request_id)
    if generation_id is not None:
        body["id"] = generation_id
    # a body that is too long is not read to its end, so the connection cannot be used again
    close = {"Connection": "close"} if error.status == TooLargeError.status else {}
    return answer_json(scope, body, status=error.status, headers={**error.headers, **close, **(headers or {})})
