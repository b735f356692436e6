"""`/api/generations/{id}/events`: a generation's place in the queue, its steps, previews and end, as they happen."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from gateway.answers import tell
from gateway.auth import KnownCaller  # noqa: TC001 - FastAPI reads the annotations when it runs
from gateway.errors import BusyError, OwnerLimitError
from gateway.generate import find_generation
from gateway.progress import EVENT_STREAM, GOING_AWAY, GONE_KEY, PING_S, RECHECK_S
from gateway.requestlog import record_of
from gateway.routes import route
from gateway.services import services_of
from models.db import DatabaseError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.generationhub import Box
    from gateway.keys import Caller
    from gateway.ledger import Told
    from gateway.services import Services

TOO_MANY = 1013
LOOK_S = 0.5
"""How often a watch looks whether the generation has ended."""

router = APIRouter(redirect_slashes=False)


@route(
    router,
    "GET",
    "/api/generations/{generation_id}/events",
    summary="A generation's progress as an event stream",
    response_class=Response,
    responses={200: {**EVENT_STREAM[200], "description": "Events, until the generation has ended."}},
)
async def events(request: Request, caller: KnownCaller, generation_id: str) -> StreamingResponse:
    """Server-sent events: `snapshot` first; `progress` (step, steps, eta_s, queue_position); `preview`, where
    `preview_every` asked for them (index, seq, step, steps, image as a data URL); `end` with the whole answer.
    `closed` says why a stream ends before its generation; ask again then.
    """
    services = services_of(request)
    told = await find_generation(services, caller, generation_id)
    record_of(request.scope).generation_id = generation_id
    if not told.state.terminal:
        services.generations.check(caller.owner_id)
    stream = _ended(services, told) if told.state.terminal else _watched(services, caller, told)
    return StreamingResponse(
        stream,
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _ended(services: Services, told: Told) -> AsyncIterator[str]:
    yield _event("snapshot", {"id": told.row.id, "status": _answer(services, told)["status"]})
    yield _event("end", _answer(services, told))


async def _watched(services: Services, caller: Caller, told: Told) -> AsyncIterator[str]:
    yield _event("snapshot", {"id": told.row.id, "status": "running"})
    try:
        async with services.generations.watch(caller.owner_id, told.row.id) as box:
            async for text in _live(services, caller, told.row.id, box):
                yield text
    except (BusyError, OwnerLimitError) as problem:  # others came in between
        yield _event("closed", {"code": TOO_MANY, "reason": problem.message})


async def _live(services: Services, caller: Caller, generation_id: str, box: Box) -> AsyncIterator[str]:
    looked = checked = sent = time.monotonic()
    while not services.lifecycle.draining:
        for news in await box.take(LOOK_S):
            yield _event(news.kind, {"id": generation_id, **news.message})
            sent = time.monotonic()
        now = time.monotonic()
        if now - looked >= LOOK_S:
            looked = now
            if (end := await _end(services, generation_id)) is not None:
                yield _event("end", end)
                return
        if now - checked >= RECHECK_S:
            checked = now
            if not await _still_may(services, caller):
                yield _event("closed", {"code": GONE_KEY, "reason": "the key does not work any longer"})
                return
        if now - sent >= PING_S:
            yield ": still here\n\n"
            sent = now
    yield _event("closed", {"code": GOING_AWAY, "reason": "restarting"})


async def _end(services: Services, generation_id: str) -> dict[str, Any] | None:
    try:
        told = await services.ledger.tell(generation_id)
    except DatabaseError:
        return None  # asked again soon
    return None if told is None or not told.state.terminal else _answer(services, told)


async def _still_may(services: Services, caller: Caller) -> bool:
    try:
        return await services.keys.works(caller.key_id)
    except DatabaseError:
        return True  # asked again soon; nothing is shown that the database does not give


def _answer(services: Services, told: Told) -> dict[str, Any]:
    return tell(told, services.settings.public_base)


def _event(kind: str, message: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **message})}\n\n"
