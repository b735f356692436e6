"""`/api/assets`: fonts and badge pictures that designs name."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse  # noqa: TC002 - FastAPI reads the annotations when it runs
from sqlalchemy import update

from compositor.compose.errors import ComposeError
from gateway import frametable
from gateway.auth import KnownCaller  # noqa: TC001 - as above
from gateway.errors import AssetInUseError, UploadRefusedError
from gateway.fontfiles import font_problem
from gateway.frameanswers import tell_asset
from gateway.framebodies import PICTURE_MAX_BYTES
from gateway.frames import PICTURE_TYPES
from gateway.ids import new_id
from gateway.multipart import read_form
from gateway.naming import still_there
from gateway.requestlog import record_of
from gateway.responses import answer_json
from gateway.routes import route
from gateway.services import services_of
from gateway.serving import Served, serve
from models.db import utc_now
from models.errors import InvalidInputError
from models.store import content_key
from models.tables import Asset

if TYPE_CHECKING:
    from gateway.multipart import Form, Upload
    from gateway.services import Services

FONT_TYPES = {".ttf": "font/ttf", ".otf": "font/otf"}
TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp", **FONT_TYPES}
NAME_MAX_CHARS = 128

router = APIRouter(prefix="/api", redirect_slashes=False)


@route(router, "POST", "/assets", status=201, summary="Upload a font or a badge")
async def create(request: Request, caller: KnownCaller) -> JSONResponse:
    """`multipart/form-data`: kind (`font` or `badge`), file, and a name (else the file's own)."""
    services = services_of(request)
    limits = {"file": PICTURE_MAX_BYTES}
    folder = services.settings.uploads
    async with AsyncExitStack() as stack:
        stack.enter_context(services.uploads.enter(caller.owner_id))
        form = await stack.enter_async_context(read_form(request, folder, fields=("kind", "name"), files=limits))
        record_of(request.scope).request_body = dict(form.fields)
        kind, upload = _kind(form), _file(form)
        suffix = await (_font if kind == "font" else _badge)(services, upload)
        asset = Asset(
            id=new_id("ast"),
            owner_id=caller.owner_id,
            kind=kind,
            name=_name(form, upload),
            object_key=content_key(upload.sha256, suffix),
            sha256=upload.sha256,
            bytes=upload.bytes,
            created_at=utc_now(),
        )
        put = partial(services.store.put_file, asset.object_key, upload.path, media_type=TYPES[suffix])
        await put()
        async with services.db.write() as session:
            await still_there(session, services.store, asset.object_key, put)
            session.add(asset)
    told = tell_asset(asset, services.settings.public_base)
    return answer_json(request.scope, told, status=201)


@route(router, "GET", "/assets", summary="List your fonts and badges, newest first")
async def list_all(
    request: Request,
    caller: KnownCaller,
    kind: Literal["font", "badge"] | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> JSONResponse:
    """A page of the caller's assets."""
    services = services_of(request)
    assets, total = await frametable.list_assets(services.db, caller.owner_id, kind=kind, offset=offset, limit=limit)
    told: list[dict[str, Any]] = [tell_asset(asset, services.settings.public_base) for asset in assets]
    return answer_json(request.scope, {"assets": told, "total": total, "limit": limit, "offset": offset})


@route(router, "GET", "/assets/{asset_id}", summary="Look at one asset")
async def read(request: Request, caller: KnownCaller, asset_id: str) -> JSONResponse:
    """One of the caller's assets."""
    services = services_of(request)
    asset = await frametable.find_asset(services.db, caller.owner_id, asset_id)
    return answer_json(request.scope, tell_asset(asset, services.settings.public_base))


@route(router, "GET", "/assets/{asset_id}/file", summary="An asset's file", response_class=Response)
async def file(request: Request, caller: KnownCaller, asset_id: str) -> Response:
    """The font or picture as it was uploaded."""
    services = services_of(request)
    asset = await frametable.find_asset(services.db, caller.owner_id, asset_id)
    served = Served(
        key=asset.object_key,
        etag=f'"{asset.sha256[:32]}"',
        modified=asset.created_at,
        media_type=TYPES["." + asset.object_key.rpartition(".")[2]],
        size=asset.bytes,
    )
    return await serve(request, services.store, served)


@route(router, "DELETE", "/assets/{asset_id}", status=204, summary="Delete an asset")
async def delete(request: Request, caller: KnownCaller, asset_id: str) -> Response:
    """Refused while the design of a frame names it."""
    services = services_of(request)
    asset = await frametable.find_asset(services.db, caller.owner_id, asset_id)
    if used := await frametable.designs_naming(services.db, caller.owner_id, asset.id):
        raise AssetInUseError(f"The design of frame {used[0]} names this asset. Change the design first.")
    gone = update(Asset).where(Asset.id == asset.id).values(deleted_at=utc_now())
    async with services.db.write() as session:
        await session.execute(gone)
    return Response(status_code=204)


def _kind(form: Form) -> str:
    kind = form.fields.get("kind", "")
    if kind not in ("font", "badge"):
        raise InvalidInputError.for_field("kind", "must be font or badge")
    return kind


def _file(form: Form) -> Upload:
    upload = form.files.get("file")
    if upload is None or upload.bytes == 0:
        raise InvalidInputError.for_field("file", "is missing" if upload is None else "the file is empty")
    return upload


def _name(form: Form, upload: Upload) -> str:
    name = form.fields.get("name", "").strip() or upload.filename.strip() or upload.sha256[:12]
    printable = "".join(letter for letter in name if letter.isprintable())
    return printable[:NAME_MAX_CHARS] or upload.sha256[:12]


async def _font(services: Services, upload: Upload) -> str:
    data = await asyncio.to_thread(upload.path.read_bytes)
    if problem := font_problem(data):
        raise UploadRefusedError("file", "bad_font", problem)
    try:
        await services.composer.inspect_font(upload.path)
    except ComposeError:
        raise UploadRefusedError("file", "bad_font", "is a damaged font: its letters cannot be drawn") from None
    return ".otf" if data.startswith(b"OTTO") else ".ttf"


async def _badge(services: Services, upload: Upload) -> str:
    try:
        info = await services.composer.inspect(upload.path)
    except ComposeError as problem:
        raise UploadRefusedError("file", problem.code, problem.message) from None
    if info.format not in PICTURE_TYPES:
        raise UploadRefusedError("file", "unsupported_format", "must be a PNG, JPEG or WebP picture")
    return PICTURE_TYPES[info.format]
