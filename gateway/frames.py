"""`/api/frames`: make, list, read, change and delete frames."""

from __future__ import annotations

import hashlib
import secrets
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse  # noqa: TC002 - FastAPI reads the annotations when it runs
from sqlalchemy.exc import IntegrityError

from compositor.compose.errors import ComposeError
from compositor.errors import RunFinishedError
from compositor.runs import cancel_run, list_runs
from gateway import frametable
from gateway.auth import KnownCaller  # noqa: TC001 - as above
from gateway.backdrops import draw_backdrop
from gateway.errors import GenerationDeletedError, UploadRefusedError
from gateway.feedcheck import check_feed
from gateway.frameanswers import tell_frame
from gateway.framebodies import form_schema, read_frame
from gateway.ids import new_feed_token
from gateway.multipart import is_form
from gateway.naming import still_there
from gateway.replies import answer_again, answer_made, asked_of, idempotency_key, known_reply, save_reply
from gateway.requestlog import record_of
from gateway.responses import answer_json
from gateway.routes import route
from gateway.schemas import IDEMPOTENT
from gateway.services import services_of
from gateway.serving import Served, serve
from models.db import utc_now
from models.errors import InvalidInputError, NotFoundError
from models.leases import about_to_name
from models.store import content_key
from models.tables import Frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncSession

    from gateway.framebodies import FrameBody
    from gateway.frametable import InTransaction
    from gateway.keys import Caller
    from gateway.multipart import Upload
    from gateway.services import Services

PICTURE_TYPES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
SECRET_BYTES = 32
CREATED = 201

router = APIRouter(prefix="/api", redirect_slashes=False)


async def require_frame(request: Request, caller: KnownCaller, frame_id: str) -> Frame:
    """The caller's frame that the address names.

    Raises:
        NotFoundError: no such frame, or another owner's.

    """
    if not (frame_id.isascii() and frame_id.isdigit() and len(frame_id) <= 10):  # noqa: PLR2004 - digits of 2^31
        raise NotFoundError
    return await frametable.find_frame(services_of(request).db, caller.owner_id, int(frame_id))


KnownFrame = Annotated[Frame, Depends(require_frame)]


@route(
    router,
    "POST",
    "/frames",
    status=201,
    summary="Make a frame from a picture, or from a prompt",
    openapi_extra={**form_schema(["name"]), **IDEMPOTENT},
)
async def create(request: Request, caller: KnownCaller) -> JSONResponse:
    """`multipart/form-data` or JSON: name, a picture or a prompt, and optionally a feed, a design and the rest."""
    services = services_of(request)
    async with _body(request, caller) as body:
        if not body.fields.name:
            raise InvalidInputError.for_field("name", "is missing")
        if body.picture is None and body.job is None:
            raise InvalidInputError.for_field("picture", "send a picture, or a prompt to draw one from")
        asked = asked_of(request, caller, body.identity)
        if (known := await known_reply(services.db, asked)) is not None:
            return answer_again(request, known)
        await frametable.check_assets(services.db, caller.owner_id, body.fields.design)
        frame = _new_frame(caller, body, {**await _feed(services, body), **await _picture(request, caller, body)})

        async def after(session: AsyncSession) -> None:
            await save_reply(session, asked, CREATED, tell_frame(frame, services.settings.public_base))

        try:
            await frametable.add_frame(services.db, frame, _picture_there(services, body, frame.picture_key), after)
        except IntegrityError:  # another request with the same key was first
            services.sweeper.kick([frame.feed_key])
            if (known := await known_reply(services.db, asked)) is None:
                raise
            return answer_again(request, known)
    return answer_made(request, CREATED, tell_frame(frame, services.settings.public_base))


@route(router, "GET", "/frames", summary="List your frames, newest first")
async def list_all(
    request: Request,
    caller: KnownCaller,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
    search: Annotated[str, Query(max_length=128, pattern=r"^[^\x00]*$")] = "",
) -> JSONResponse:
    """A page of the caller's frames, each with its latest run's state."""
    services = services_of(request)
    frames, total = await frametable.list_frames(
        services.db, caller.owner_id, search=search, offset=offset, limit=limit
    )
    runs = await frametable.latest_runs(services.db, [frame.id for frame in frames])
    told = [tell_frame(frame, services.settings.public_base, runs.get(frame.id)) for frame in frames]
    return answer_json(request.scope, {"frames": told, "total": total, "limit": limit, "offset": offset})


@route(router, "GET", "/frames/{frame_id}", summary="Look at one frame")
async def read(request: Request, frame: KnownFrame) -> JSONResponse:
    """One of the caller's frames. Somebody else's is not found."""
    return answer_json(request.scope, await _told(request, frame))


@route(router, "PATCH", "/frames/{frame_id}", summary="Change a frame", openapi_extra=form_schema([]))
async def change(request: Request, caller: KnownCaller, frame: KnownFrame) -> JSONResponse:
    """What is sent is replaced, the rest stays. A run under way goes on with what it was started with."""
    services = services_of(request)
    async with _body(request, caller) as body:
        if "name" in body.sent and not body.fields.name:
            raise InvalidInputError.for_field("name", "must not be empty")
        await frametable.check_assets(services.db, caller.owner_id, body.fields.design)
        values = _plain_values(body)
        if {"feed", "feed_url"} & body.sent:
            values |= await _feed(services, body)
        if body.picture is not None or body.job is not None:
            values |= await _picture(request, caller, body)
        changed = frame
        if values:
            there = _picture_there(services, body, values.get("picture_key"))
            changed = await frametable.change_frame(services.db, frame, values, there)
    services.sweeper.kick({frame.picture_key, frame.feed_key} - {changed.picture_key, changed.feed_key})
    return answer_json(request.scope, await _told(request, changed))


@route(router, "DELETE", "/frames/{frame_id}", status=204, summary="Delete a frame and all its outputs")
async def delete(request: Request, frame: KnownFrame) -> Response:
    """The frame, its outputs and its feed are gone at once; their files go a moment later."""
    services = services_of(request)
    await frametable.delete_frame(services.db, frame)
    for run in await list_runs(services.db, frame.id, limit=1):
        with suppress(RunFinishedError):
            await cancel_run(services.db, frame.owner_id, run.id)
    services.sweeper.kick()
    return Response(status_code=204)


@route(router, "GET", "/frames/{frame_id}/picture", summary="A frame's picture", response_class=Response)
async def picture(request: Request, frame: KnownFrame) -> Response:
    """The picture as it was uploaded or drawn."""
    suffix = frame.picture_key.rpartition(".")[2]
    served = Served(
        key=frame.picture_key,
        etag=f'"{frame.picture_sha256[:32]}"',
        modified=frame.updated_at,
        media_type=MEDIA_TYPES[suffix],
        cache="private, no-cache",
    )
    return await serve(request, services_of(request).store, served)


@asynccontextmanager
async def _body(request: Request, caller: Caller) -> AsyncIterator[FrameBody]:
    """The request's body; a form with its files counts among its owner's uploads."""
    services = services_of(request)
    with services.uploads.enter(caller.owner_id) if is_form(request) else nullcontext():
        async with read_frame(request, services.settings, services.fetch_policy) as body:
            record_of(request.scope).request_body = body.fields.model_dump(mode="json", exclude_unset=True)
            yield body


def _picture_there(services: Services, body: FrameBody, key: str | None) -> InTransaction:
    """See `still_there`; a picture that was drawn is named by its generation, unless that was deleted meanwhile."""

    async def see_to(session: AsyncSession) -> None:
        upload = body.picture
        if key is None:
            return
        if upload is None:
            await about_to_name(session)
            if not await services.store.exists(key):
                raise GenerationDeletedError
            return
        again = partial(services.store.put_file, key, upload.path, media_type=MEDIA_TYPES[key.rpartition(".")[2]])
        await still_there(session, services.store, key, again)

    return see_to


async def _told(request: Request, frame: Frame) -> dict[str, Any]:
    services = services_of(request)
    runs = await frametable.latest_runs(services.db, [frame.id])
    return tell_frame(frame, services.settings.public_base, runs.get(frame.id))


def _new_frame(caller: Caller, body: FrameBody, columns: dict[str, Any]) -> Frame:
    fields, now = body.fields, utc_now()
    return Frame(
        owner_id=caller.owner_id,
        name=fields.name,
        revision=1,
        secret=secrets.token_hex(SECRET_BYTES),
        design=fields.design.model_dump(mode="json"),
        feed_mode=fields.feed_mode,
        feed_token=new_feed_token(),
        webhook_url=fields.webhook_url,
        created_at=now,
        updated_at=now,
        **frametable.due(fields.refresh_seconds),
        **columns,
    )


def _plain_values(body: FrameBody) -> dict[str, Any]:
    fields = body.fields
    values: dict[str, Any] = {
        name: getattr(fields, name) for name in ("name", "feed_mode", "webhook_url") if name in body.sent
    }
    if "design" in body.sent:
        values["design"] = fields.design.model_dump(mode="json")
    if "refresh_seconds" in body.sent:
        values |= frametable.due(fields.refresh_seconds)
    return values


async def _feed(services: Services, body: FrameBody) -> dict[str, Any]:
    if body.feed is None:
        return {"feed_url": body.fields.feed_url, "feed_key": None}
    await check_feed(body.feed, services.settings)
    key = f"feeds/{new_feed_token()}"
    await services.store.put_file(key, body.feed.path, media_type="application/octet-stream")
    return {"feed_url": None, "feed_key": key}


async def _picture(request: Request, caller: Caller, body: FrameBody) -> dict[str, Any]:
    services = services_of(request)
    if body.picture is not None:
        return await _kept(services, body.picture)
    if body.job is None:
        raise InvalidInputError.for_field("picture", "is missing")
    key = idempotency_key(request)
    own = None if key is None else f"frame:{hashlib.sha256(key.encode()).hexdigest()}"
    async with draw_backdrop(request, caller, body.job, own) as drawn:
        return await _kept(services, drawn)


async def _kept(services: Services, upload: Upload) -> dict[str, Any]:
    """Look into a picture, in the compositor's child, and store it; the columns of a frame that speak of it."""
    try:
        info = await services.composer.inspect(upload.path)
    except ComposeError as problem:
        raise UploadRefusedError("picture", problem.code, problem.message) from None
    if info.format not in PICTURE_TYPES:
        raise UploadRefusedError("picture", "unsupported_format", "must be a PNG, JPEG or WebP picture")
    key = content_key(upload.sha256, PICTURE_TYPES[info.format])
    await services.store.put_file(key, upload.path, media_type=f"image/{info.format}")
    return {
        "picture_key": key,
        "picture_sha256": upload.sha256,
        "width": info.width,
        "height": info.height,
        "transparent": info.transparent,
    }
