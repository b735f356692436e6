"""Reading a JSON body: what is not JSON is 400, what is JSON and cannot be meant is 422 and names the field."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from models.errors import BadRequestError, FieldProblem, InvalidInputError

if TYPE_CHECKING:
    from starlette.requests import Request

JSON_TYPE = re.compile(r"application/(?:[\w.+-]+\+)?json\s*(?:;\s*charset=\"?utf-?8\"?\s*)?;?", re.IGNORECASE)
UNMEANT = ("recursion limit exceeded", "number out of range")
"""The parser's words for JSON that is well formed and beyond any bound."""


async def read_object(request: Request) -> dict[str, Any]:
    """As `read_json`, for a body that is to be an object.

    Raises:
        InvalidInputError: it is something else.

    """
    document = await read_json(request)
    if not isinstance(document, dict):
        raise InvalidInputError.for_field("body", "must be a JSON object")
    return document


async def read_json(request: Request) -> Any:
    """The body's JSON value. NaN and the infinities pass, for the field that holds one to be named.

    Raises:
        BadRequestError: another content type, an encoding, or no JSON.
        InvalidInputError: nested too deep, or a number too long.
        TooLargeError: over the app's limit.

    """
    kind = request.headers.get("content-type", "application/json")
    if not JSON_TYPE.fullmatch(kind.strip()):
        raise _bad("Send the body as JSON.", "Content-Type", "must be application/json")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise _bad("Send the body unencoded.", "Content-Encoding", "is not supported")
    try:
        return from_json(await request.body())
    except ValueError as problem:
        reason = str(problem)
        if reason.startswith(UNMEANT):
            raise InvalidInputError.for_field("body", reason) from None
        raise _bad(f"The body is not JSON: {reason}.", "body", reason) from None


def _bad(message: str, field: str, reason: str) -> BadRequestError:
    return BadRequestError(message, details=[FieldProblem(field, reason)])
