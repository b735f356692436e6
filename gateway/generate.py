"""`POST /api/generate/`: from a caller's JSON to a picture's link; and the reading of what was generated before."""

from __future__ import annotations

import asyncio
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import structlog
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse  # noqa: TC002 - FastAPI reads the annotations when it runs

from gateway.answers import tell, tell_success
from gateway.auth import KnownCaller  # noqa: TC001 - as above
from gateway.bodies import read_json
from gateway.errors import StillRunningError, from_row
from gateway.ledger import NewGeneration
from gateway.replies import hash_of, idempotency_key
from gateway.requestlog import record_of
from gateway.responses import answer_error, answer_json
from gateway.schemas import ERRORS, GENERATE_BODY, GeneratedAnswer, GenerationAnswer, GenerationList
from gateway.services import services_of
from models.errors import NotFoundError, UnavailableError
from models.logs import get_logger
from models.tables import GenerationState
from models.wire import SEED_COUNT, parse_input

if TYPE_CHECKING:
    from gateway.keys import Caller
    from gateway.ledger import Told
    from gateway.services import Services
    from models.tables import Generation
    from models.wire import JobInput

GENERATION_ID = r"^gen_[0-9a-z]{26}$"
LOOK_S = 1.0
"""How often a waiting caller's task looks up from its job to see whether the process is stopping."""
PAST_END_S = 60.0
"""How long beyond a job's own limit a caller waits for a row that another process carries."""

router = APIRouter(prefix="/api", redirect_slashes=False)
log = get_logger(__name__)


@router.post("/generate", include_in_schema=False)
@router.post(
    "/generate/",
    responses={200: {"model": GeneratedAnswer, "description": "The pictures are drawn and stored."}, **ERRORS},
    openapi_extra=GENERATE_BODY,
    summary="Draw pictures from a prompt",
)
async def generate(request: Request, caller: KnownCaller) -> JSONResponse:
    """Validate, save, forward, wait, answer. A retry with the same Idempotency-Key joins or replays the first."""
    services = services_of(request)
    _refuse_while_draining(services)
    document = await read_json(request)
    record_of(request.scope).request_body = document
    drawing = await draw(request, caller, parse_input(document), idempotency_key(request))
    if drawing.told is None:
        return answer_error(request.scope, StillRunningError(retry_after_s=5), generation_id=drawing.row.id)
    return _answer(request, services, drawing.told, fresh=drawing.fresh)


@dataclass(frozen=True, slots=True)
class Drawing:
    """A job that was waited for. `told` is None when the wait ended first; `fresh` when this request began it."""

    row: Generation
    told: Told | None
    fresh: bool


async def draw(request: Request, caller: Caller, job: JobInput, idempotency_key: str | None = None) -> Drawing:
    """Save a job, forward it, and wait for its end: what every request for a picture does.

    Raises:
        UnavailableError: this process is stopping.
        BusyError: as many callers wait as may.
        IdempotencyConflictError: the key was used with another request.

    """
    services = services_of(request)
    _refuse_while_draining(services)
    _correlate(request, job)
    with services.admission.enter():
        row, fresh = await services.ledger.open(_new_generation(request, caller, job, idempotency_key))
        record_of(request.scope).generation_id = row.id
        if fresh:
            log.info("generation_accepted", generation_id=row.id)
            services.runner.carry(row)
            await services.runner.wait(row.id, at_most_s=LOOK_S)
        else:
            services.metrics.replays.inc()
        return Drawing(row, await _wait_for_end(services, row), fresh)


def _refuse_while_draining(services: Services) -> None:
    if services.lifecycle.draining:
        raise UnavailableError(retry_after_s=2)


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
    told = await services.ledger.tell(generation_id) if re.fullmatch(GENERATION_ID, generation_id) else None
    if told is None or told.row.owner_id != caller.owner_id:
        raise NotFoundError
    record_of(request.scope).generation_id = generation_id
    return answer_json(request.scope, tell(told, services.settings.public_base))


async def _wait_for_end(services: Services, row: Generation) -> Told | None:
    """The row once it has ended, whichever process carries it; None when the caller's wait ends first."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + services.settings.generation_timeout + PAST_END_S
    while not services.lifecycle.over.is_set() and loop.time() < give_up:
        told = await services.ledger.tell(row.id)
        if told is not None and told.state.terminal:
            return told
        await services.runner.wait(row.id, at_most_s=LOOK_S)
    return None


def _answer(request: Request, services: Services, told: Told, *, fresh: bool) -> JSONResponse:
    headers = {"X-Generation-ID": told.row.id}
    if not fresh:
        headers["Idempotency-Replayed"] = "true"
    if told.state is GenerationState.COMPLETED:
        return answer_json(request.scope, tell_success(told, services.settings.public_base), headers=headers)
    error = from_row(told.row.error_code, told.row.error)
    return answer_error(request.scope, error, generation_id=told.row.id, headers=headers)


def _new_generation(request: Request, caller: Caller, job: JobInput, idempotency_key: str | None) -> NewGeneration:
    services = services_of(request)
    asked = job.model_dump(mode="json", exclude={"request_id"})
    # the seed is chosen here, so that whoever resumes the job draws the same picture
    seed = secrets.randbelow(SEED_COUNT) if job.seed is None else job.seed
    return NewGeneration(
        owner_id=caller.owner_id,
        key_id=caller.key_id,
        idempotency_key=idempotency_key,
        request_hash=hash_of(asked),
        request_id=record_of(request.scope).request_id,
        input={name: value for name, value in {**asked, "seed": seed}.items() if value is not None},
        backend=services.backend.url,
        backend_kind=services.backend.kind.value,
    )


def _correlate(request: Request, job: JobInput) -> None:
    """The input's own request_id names the request where no header did."""
    if job.request_id is not None and not request.scope["igen.request_id_given"]:
        record_of(request.scope).request_id = job.request_id
        structlog.contextvars.bind_contextvars(request_id=job.request_id)
