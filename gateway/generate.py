"""`POST /api/generate/`: from a caller's JSON to a picture's link; reading and deleting what was generated before."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse  # noqa: TC002 - FastAPI reads the annotations when it runs

from gateway.answers import tell, tell_success
from gateway.auth import KnownCaller  # noqa: TC001 - as above
from gateway.bodies import read_json
from gateway.drawing import begin, refuse_while_draining, wait_for_end
from gateway.errors import BusyError, GenerationDeletedError, GenerationRunningError, StillRunningError
from gateway.failures import from_row
from gateway.inputs import shown
from gateway.replies import idempotency_key
from gateway.requestlog import record_of
from gateway.responses import answer_error, answer_json
from gateway.routes import route
from gateway.schemas import (
    ACCEPTED,
    ERRORS,
    GENERATE_BODY,
    ErrorEnvelope,
    GeneratedAnswer,
    GenerationAnswer,
    GenerationList,
)
from gateway.services import BUSY_RETRY_S, services_of
from models.errors import NotFoundError
from models.tables import GenerationState
from models.wire import parse_input

if TYPE_CHECKING:
    from gateway.keys import Caller
    from gateway.ledger import Told
    from gateway.services import Services
    from models.tables import Generation

GENERATION_ID = r"^gen_[0-9a-z]{26}$"
ASYNC = re.compile(r"(?:^|,)\s*respond-async\s*(?:[,;]|$)", re.IGNORECASE)
"""RFC 7240: the caller would rather have the job's address at once than wait for its end."""

router = APIRouter(prefix="/api", redirect_slashes=False)


@router.post("/generate", include_in_schema=False)
@router.post(
    "/generate/",
    responses={
        200: {"model": GeneratedAnswer, "description": "The pictures are drawn and stored."},
        410: {"model": ErrorEnvelope, "description": "The Idempotency-Key's generation was deleted."},
        **ACCEPTED,
        **ERRORS,
    },
    openapi_extra=GENERATE_BODY,
    summary="Draw pictures from a prompt",
)
async def generate(request: Request, caller: KnownCaller) -> JSONResponse:
    """Validate, save, forward, wait, answer. A retry with the same Idempotency-Key joins or replays the first.

    With `Prefer: respond-async` the answer comes at once, with the address at which the job can be followed.
    """
    services = services_of(request)
    refuse_while_draining(services)
    at_once = any(ASYNC.search(each) for each in request.headers.getlist("prefer"))
    if at_once and services.runner.carried >= services.settings.max_inflight:
        raise BusyError(retry_after_s=BUSY_RETRY_S)
    with services.admission.enter():
        row, fresh = await _begin(request, caller)
        told = await services.ledger.tell(row.id) if at_once else await wait_for_end(services, row)
    if told is not None and not told.state.terminal:
        return _accepted(request, services, told, fresh=fresh)
    if told is None:
        return answer_error(request.scope, StillRunningError(retry_after_s=5), generation_id=row.id)
    return _answer(request, services, told, fresh=fresh)


async def _begin(request: Request, caller: Caller) -> tuple[Generation, bool]:
    """Read the request and begin its job; a body of many megabytes is in memory no longer than this."""
    services = services_of(request)
    async with services.bodies.room(request):
        document = await read_json(request)
        record_of(request.scope).request_body = shown(document)
        return await begin(request, caller, parse_input(document), idempotency_key(request))


@router.get(
    "/generations/",
    responses={200: {"model": GenerationList}, **ERRORS},
    summary="List your generations, newest first",
)
@router.get("/generations", include_in_schema=False)
async def list_generations(
    request: Request,
    caller: KnownCaller,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    before: Annotated[str | None, Query(pattern=GENERATION_ID)] = None,
) -> JSONResponse:
    """A page of the caller's generations; `next_before` is the `before` of the next page, null at the end."""
    services = services_of(request)
    told = await services.ledger.recent(caller.owner_id, limit=limit, before=before)
    rows = [tell(each, services.settings.public_base) for each in told]
    following = told[-1].row.id if len(told) == limit else None
    return answer_json(request.scope, {"generations": rows, "next_before": following})


@router.get(
    "/generations/{generation_id}",
    responses={200: {"model": GenerationAnswer}, **ERRORS},
    summary="Look at one generation",
)
async def get_generation(request: Request, caller: KnownCaller, generation_id: str) -> JSONResponse:
    """One of the caller's generations, running or ended. Somebody else's is not found."""
    services = services_of(request)
    told = await find_generation(services, caller, generation_id)
    record_of(request.scope).generation_id = generation_id
    return answer_json(request.scope, tell(told, services.settings.public_base))


@route(
    router,
    "DELETE",
    "/generations/{generation_id}",
    status=204,
    summary="Delete one generation and its pictures",
    responses={409: {"model": ErrorEnvelope, "description": "It has not ended yet."}},
)
async def delete_generation(request: Request, caller: KnownCaller, generation_id: str) -> Response:
    """Its pictures' links are dead at once, and the files go a moment later, unless something else shows them.

    Its line in the ledger stays: a retry with its Idempotency-Key is told (410) and draws nothing. Deleting it again
    changes nothing.
    """
    services = services_of(request)
    told = await _own(services, caller, generation_id)
    record_of(request.scope).generation_id = told.row.id
    if not await services.ledger.delete(told.row.id):
        raise GenerationRunningError(retry_after_s=BUSY_RETRY_S)
    services.sweeper.kick()
    return Response(status_code=204)


async def find_generation(services: Services, caller: Caller, generation_id: str) -> Told:
    """One of the caller's generations.

    Raises:
        NotFoundError: no such, somebody else's, or deleted.

    """
    told = await _own(services, caller, generation_id)
    if told.row.deleted_at is not None:
        raise NotFoundError
    return told


async def _own(services: Services, caller: Caller, generation_id: str) -> Told:
    """As `find_generation`, deleted ones as well."""
    told = await services.ledger.tell(generation_id) if re.fullmatch(GENERATION_ID, generation_id) else None
    if told is None or told.row.owner_id != caller.owner_id:
        raise NotFoundError
    return told


def _accepted(request: Request, services: Services, told: Told, *, fresh: bool) -> JSONResponse:
    url = f"{services.settings.public_base}/api/generations/{told.row.id}"
    body = {**tell(told, services.settings.public_base), "url": url, "events_url": f"{url}/events"}
    headers = {"Location": url, "Preference-Applied": "respond-async", **_headers(told, fresh=fresh)}
    return answer_json(request.scope, body, status=202, headers=headers)


def _answer(request: Request, services: Services, told: Told, *, fresh: bool) -> JSONResponse:
    headers = _headers(told, fresh=fresh)
    if told.row.deleted_at is not None:
        return answer_error(request.scope, GenerationDeletedError(), generation_id=told.row.id, headers=headers)
    if told.state is GenerationState.COMPLETED:
        return answer_json(request.scope, tell_success(told, services.settings.public_base), headers=headers)
    error = from_row(told.row.error_code, told.row.error)
    return answer_error(request.scope, error, generation_id=told.row.id, headers=headers)


def _headers(told: Told, *, fresh: bool) -> dict[str, str]:
    return {"X-Generation-ID": told.row.id, **({} if fresh else {"Idempotency-Replayed": "true"})}
