"""A frame's progress as a WebSocket, as an event stream and as plain JSON: the same messages everywhere."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.websockets import WebSocketDisconnect

from gateway import frametable
from gateway.auth import find_caller
from gateway.errors import OriginError
from gateway.frames import KnownFrame  # noqa: TC001 - FastAPI reads the annotations when it runs
from gateway.middleware import refuse
from gateway.requestlog import record_of
from gateway.responses import answer_json
from gateway.routes import route
from gateway.services import services_of
from gateway.tickets import LIFE_S, Ticket
from models.db import DatabaseError
from models.errors import IgenError, NotFoundError, UnauthorizedError
from models.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import HTTPConnection

    from gateway.keys import Caller
    from gateway.progresshub import Message, Watch
    from gateway.services import Services
    from models.tables import Frame

LOOK_S = 1.0
"""How often a watch looks up to see whether the process is stopping."""
RECHECK_S = 10.0
"""How often a watch sees whether its key still works and its frame is still there."""
PING_S = 15.0
SEND_S = 10.0
GOING_AWAY, GONE_KEY, GONE_FRAME, TOO_SLOW = 1012, 4401, 4404, 4408
EVENT_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "Events, without end."}
}

router = APIRouter(redirect_slashes=False)
log = get_logger(__name__)


@route(router, "GET", "/api/frames/{frame_id}/progress", summary="Where a frame's latest run stands")
async def read(request: Request, frame: KnownFrame) -> JSONResponse:
    """One message, as the WebSocket would send it on connecting."""
    message = await services_of(request).hub.snapshot(frame.id)
    return answer_json(request.scope, {"type": "snapshot", **message})


@route(router, "POST", "/api/frames/{frame_id}/ws-ticket", status=201, summary="A ticket for a WebSocket")
async def issue_ticket(request: Request, frame: KnownFrame) -> JSONResponse:
    """For browsers: good once, for half a minute, for this frame alone, as `?ticket=`."""
    services = services_of(request)
    caller = await find_caller(request)
    if caller is None:
        raise UnauthorizedError
    text = await services.tickets.issue(Ticket(caller, frame.id))
    base = services.settings.public_base.replace("http", "ws", 1)
    told = {"ticket": text, "expires_in": LIFE_S, "url": f"{base}/ws/progress/{frame.id}/?ticket={text}"}
    return answer_json(request.scope, told, status=201)


@route(
    router,
    "GET",
    "/api/frames/{frame_id}/progress/events",
    summary="Progress as an event stream",
    response_class=Response,
    responses=EVENT_STREAM,
)
async def events(request: Request, frame_id: str) -> StreamingResponse:
    """Server-sent events `snapshot`, `progress`, `error` and `end`. A key, or `?ticket=` for an EventSource."""
    ticket = request.query_params.get("ticket")
    admitted = await _admit(request, frame_id, ticket)
    return StreamingResponse(
        _events(services_of(request), admitted),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@router.websocket("/ws/progress/{frame_id}")
@router.websocket("/ws/progress/{frame_id}/")
async def watch(websocket: WebSocket, frame_id: str) -> None:
    """Origin, key or ticket, and frame are checked before the socket is accepted."""
    query = parse_qs(websocket.scope["igen.query"].decode("latin-1"), max_num_fields=20)
    services = services_of(websocket)
    try:
        _check_origin(websocket, services)
        admitted = await _admit(websocket, frame_id, query.get("ticket", [None])[0])
        async with services.hub.watch(admitted.caller.owner_id, admitted.frame.id) as watching:
            await websocket.accept()
            await _serve(websocket, services, admitted, watching)
    except IgenError as error:
        await refuse(websocket.scope, websocket.receive, websocket.send, error)


@dataclass(frozen=True, slots=True)
class Admitted:
    """Who watches what."""

    caller: Caller
    frame: Frame


def _check_origin(connection: HTTPConnection, services: Services) -> None:
    """A browser says where its page is from, and only pages of ours may watch; `null` is nobody's.

    Raises:
        OriginError: another site's page.

    """
    for origin in connection.headers.getlist("origin"):
        if origin.lower() not in services.settings.origins:
            raise OriginError


async def _admit(connection: HTTPConnection, frame_id: str, text: str | None) -> Admitted:
    """By key, or by a ticket of this frame.

    Raises:
        UnauthorizedError: neither, or one that does not work.
        NotFoundError: no such frame, or another owner's.

    """
    services = services_of(connection)
    if not (frame_id.isascii() and frame_id.isdigit() and len(frame_id) < 11):  # noqa: PLR2004
        raise NotFoundError
    caller = await find_caller(connection)
    if caller is None and text is not None:
        ticket = await services.tickets.take(text)
        if ticket is None or ticket.frame_id != int(frame_id) or not await services.keys.works(ticket.caller.key_id):
            raise UnauthorizedError("The ticket is unknown, used or too old. Ask for another.")
        caller = ticket.caller
        record = record_of(connection.scope)
        record.owner_id, record.key_id = caller.owner_id, caller.key_id
    if caller is None:
        raise UnauthorizedError
    return Admitted(caller, await frametable.find_frame(services.db, caller.owner_id, int(frame_id)))


async def _serve(websocket: WebSocket, services: Services, admitted: Admitted, watching: Watch) -> None:
    """Send until the client leaves, is too slow, or may not watch any longer."""
    leaving = asyncio.create_task(_until_gone(websocket))
    try:
        async for kind, message in _messages(services, admitted, watching):
            if leaving.done():
                return
            if kind == "end":
                await websocket.close(message["code"], message["reason"])
                return
            if kind != "ping":
                async with asyncio.timeout(SEND_S):
                    await websocket.send_json({"type": kind, **message})
    except TimeoutError:
        log.info("watcher_too_slow", frame_id=admitted.frame.id)
        with suppress(TimeoutError):  # its line is full; the server's own ping gives it up
            async with asyncio.timeout(LOOK_S):
                await websocket.close(TOO_SLOW, "too slow")
    except WebSocketDisconnect:
        return
    finally:
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)


async def _until_gone(websocket: WebSocket) -> None:
    """Read and forget what the client says; it ends when the client goes."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        continue


async def _messages(services: Services, admitted: Admitted, watching: Watch) -> AsyncIterator[tuple[str, Message]]:
    """Kinds and messages: `snapshot` first, then `progress` and `error`, `ping` in silence, at last `end`."""
    yield "snapshot", watching.first
    checked, seen = time.monotonic(), _stage(watching.first)
    while not services.lifecycle.draining:
        message = await watching.next(LOOK_S)
        # SQLite gives a deleted frame's number away again: what begins under it may be somebody else's
        begun = message is not None and _stage(message) != seen
        if begun or time.monotonic() - checked >= RECHECK_S:
            checked = time.monotonic()
            if (over := await _over(services, admitted)) is not None:
                yield "end", over
                return
        if message is None:
            yield "ping", {}
            continue
        seen = _stage(message)
        yield "error" if message.get("type") == "error" else "progress", message
    yield "end", {"code": GOING_AWAY, "reason": "restarting"}


def _stage(message: Message) -> tuple[Any, Any]:
    """Which run it speaks of, and where that stands."""
    return message.get("run_id"), message.get("state")


async def _over(services: Services, admitted: Admitted) -> Message | None:
    """Why a watch may not go on; None when it may."""
    try:
        if not await services.keys.works(admitted.caller.key_id):
            return {"code": GONE_KEY, "reason": "the key does not work any longer"}
        await frametable.find_frame(services.db, admitted.caller.owner_id, admitted.frame.id)
    except NotFoundError:
        return {"code": GONE_FRAME, "reason": "the frame is gone"}
    except DatabaseError:
        return None  # asked again soon; nothing is shown that the database does not give
    return None


async def _events(services: Services, admitted: Admitted) -> AsyncIterator[str]:
    last_sent = time.monotonic()
    async with services.hub.watch(admitted.caller.owner_id, admitted.frame.id) as watching:
        async for kind, message in _messages(services, admitted, watching):
            now = time.monotonic()
            if kind != "ping":
                seq = message.get("seq")
                number = f"id: {seq[0]}-{seq[1]}\n" if seq else ""
                yield f"event: {kind}\n{number}data: {json.dumps({'type': kind, **message})}\n\n"
                last_sent = now
            elif now - last_sent >= PING_S:
                yield ": still here\n\n"
                last_sent = now
