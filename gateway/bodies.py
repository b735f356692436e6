"""Reading a JSON body: what is not JSON is 400, what is JSON and cannot be meant is 422 and names the field."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from models.errors import BadRequestError, FieldProblem, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

JSON_TYPE = re.compile(r"application/(?:[\w.+-]+\+)?json\s*(?:;\s*charset=\"?utf-?8\"?\s*)?;?", re.IGNORECASE)
ARRIVE_S = 120.0
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
        return from_json(await _whole(request))
    except ValueError as problem:
        reason = str(problem)
        if reason.startswith(UNMEANT):
            raise InvalidInputError.for_field("body", reason) from None
        raise _bad(f"The body is not JSON: {reason}.", "body", reason) from None


async def _whole(request: Request) -> bytes:
    """The body, of which the request itself keeps no copy."""
    return b"".join([part async for part in request.stream()])


class BodyRoom:
    """Room for long bodies: a few at once, so that memory is bounded however many send one."""

    def __init__(self, places: int, *, long_bytes: int) -> None:
        self._places = asyncio.Semaphore(places)
        self._long_bytes = long_bytes

    @asynccontextmanager
    async def room(self, request: Request) -> AsyncIterator[None]:
        """Until the end of the block; a long body waits for its turn, and has to be there within `ARRIVE_S` then.

        Raises:
            BadRequestError: it is not.

        """
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) <= self._long_bytes:
            yield
            return
        async with self._places:
            try:
                async with asyncio.timeout(ARRIVE_S):
                    yield
            except TimeoutError:
                raise _bad("The body did not arrive in time.", "body", f"took longer than {ARRIVE_S:g} s") from None


def _bad(message: str, field: str, reason: str) -> BadRequestError:
    return BadRequestError(message, details=[FieldProblem(field, reason)])
