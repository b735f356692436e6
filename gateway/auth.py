"""Who is calling: the key in `Authorization: Bearer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from gateway.keys import Caller
from gateway.requestlog import record_of
from gateway.services import services_of
from models.errors import UnauthorizedError

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

_scheme = HTTPBearer(auto_error=False, bearerFormat="igen_<id>_<secret>", description="A key of the gateway.")
"""For the OpenAPI document; the header itself is read below, where every failure is the same 401."""


async def find_caller(request: HTTPConnection) -> Caller | None:
    """The caller, or None without a good key. The request's record learns who it was."""
    sent = request.headers.getlist("authorization")
    scheme, _, text = sent[0].partition(" ") if len(sent) == 1 else ("", "", "")
    if scheme.lower() != "bearer":
        return None
    caller = await services_of(request).keys.find(text.strip())
    if caller is not None:
        record = record_of(request.scope)
        record.owner_id, record.key_id = caller.owner_id, caller.key_id
    return caller


async def require_caller(request: Request, _documented: Annotated[object, Depends(_scheme)]) -> Caller:
    """The caller.

    Raises:
        UnauthorizedError: no key, or one that does not work.

    """
    caller = await find_caller(request)
    if caller is None:
        raise UnauthorizedError
    return caller


KnownCaller = Annotated[Caller, Depends(require_caller)]
