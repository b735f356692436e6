"""What every request for a picture does: pictures into the store, a row into the ledger, a task, and the wait."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from gateway.inputs import take_inputs
from gateway.ledger import NewGeneration
from gateway.replies import hash_of
from gateway.requestlog import record_of
from gateway.services import services_of
from models.errors import UnavailableError
from models.logs import get_logger
from models.wire import SEED_COUNT

if TYPE_CHECKING:
    from typing import Any

    from starlette.requests import Request

    from gateway.keys import Caller
    from gateway.ledger import Told
    from gateway.services import Services
    from models.tables import Generation
    from models.wire import JobInput

LOOK_S = 1.0
"""How often a waiting caller's task looks up from its job to see whether the process is stopping."""
PAST_END_S = 60.0
"""How long beyond a job's own limit a caller waits for a row that another process carries."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Drawing:
    """A job that was waited for. `told` is None when the wait ended first; `fresh` when this request began it."""

    row: Generation
    told: Told | None
    fresh: bool


async def draw(request: Request, caller: Caller, job: JobInput, idempotency_key: str | None = None) -> Drawing:
    """Save a job, forward it, and wait for its end.

    Raises:
        BusyError: as many callers wait as may.
        UnavailableError, InvalidInputError, StoreError, IdempotencyConflictError: as `begin`.

    """
    services = services_of(request)
    with services.admission.enter():
        row, fresh = await begin(request, caller, job, idempotency_key)
        return Drawing(row, await wait_for_end(services, row), fresh)


async def begin(
    request: Request, caller: Caller, job: JobInput, idempotency_key: str | None = None
) -> tuple[Generation, bool]:
    """Save a job and start a task that carries it; the row, and whether this request made it.

    Raises:
        UnavailableError: this process is stopping.
        InvalidInputError: a picture in the request cannot be read.
        StoreError: it cannot be stored.
        IdempotencyConflictError: the key was used with another request.

    """
    services = services_of(request)
    refuse_while_draining(services)
    _correlate(request, job)
    row, fresh = await _open(request, caller, job, idempotency_key)
    record_of(request.scope).generation_id = row.id
    if fresh:
        log.info("generation_accepted", generation_id=row.id)
        services.runner.carry(row)
    else:
        services.metrics.replays.inc()
    return row, fresh


def refuse_while_draining(services: Services) -> None:
    """Raise UnavailableError while this process is stopping."""
    if services.lifecycle.draining:
        raise UnavailableError(retry_after_s=2)


async def wait_for_end(services: Services, row: Generation) -> Told | None:
    """The row once it has ended, whichever process carries it; None when the caller's wait ends first."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + services.settings.generation_timeout + PAST_END_S
    while not services.lifecycle.over.is_set() and loop.time() < give_up:
        if services.runner.carries(row.id):
            await services.runner.wait(row.id, at_most_s=LOOK_S)
        told = await services.ledger.tell(row.id)
        if told is not None and told.state.terminal:
            return told
        if not services.runner.carries(row.id):
            await services.runner.wait(row.id, at_most_s=LOOK_S)
    return None


async def _open(
    request: Request, caller: Caller, job: JobInput, idempotency_key: str | None
) -> tuple[Generation, bool]:
    """The row of a job, its pictures in the store before it; one of the same key before is found again."""
    services = services_of(request)
    inputs = await take_inputs(job)
    new = _new_generation(request, caller, job, inputs.asked, idempotency_key)
    if not inputs.files:
        return await services.ledger.open(new)
    if (known := await services.ledger.known(new)) is not None:
        return known, False
    await services.inputs.put(new.id, inputs.files)
    row, fresh = await services.ledger.open(new)
    if not fresh:  # another request of the same key was first, with pictures of its own
        await services.inputs.forget(new.id, new.input)
    return row, fresh


def _new_generation(
    request: Request, caller: Caller, job: JobInput, asked: dict[str, Any], idempotency_key: str | None
) -> NewGeneration:
    services = services_of(request)
    # the seed is chosen here, so that whoever resumes the job draws the same picture
    seed = secrets.randbelow(SEED_COUNT) if job.seed is None else job.seed
    return NewGeneration(
        owner_id=caller.owner_id,
        key_id=caller.key_id,
        idempotency_key=idempotency_key,
        request_hash=hash_of(asked),
        request_id=record_of(request.scope).request_id,
        input={**asked, "seed": seed},
        backend=services.backend.url,
        backend_kind=services.backend.kind.value,
    )


def _correlate(request: Request, job: JobInput) -> None:
    """The input's own request_id names the request where no header did."""
    if job.request_id is not None and not request.scope["igen.request_id_given"]:
        record_of(request.scope).request_id = job.request_id
        structlog.contextvars.bind_contextvars(request_id=job.request_id)
