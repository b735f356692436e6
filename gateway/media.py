"""`/media/generated/<name>.<suffix>` and `/media/outputs/<name>.<suffix>`: stored pictures under capability names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response
from sqlalchemy import and_, select

from gateway.archives import archive_name
from gateway.auth import find_caller
from gateway.filekinds import BY_SUFFIX, kind_of_key
from gateway.ids import PICTURE_NAME
from gateway.requestlog import record_of
from gateway.schemas import ERRORS
from gateway.services import services_of
from gateway.serving import Served, serve
from models.errors import NotFoundError, UnauthorizedError
from models.tables import Output, Picture, RunItem

if TYPE_CHECKING:
    from gateway.keys import Caller

OUTPUT_NAME = re.compile(r"[0-9a-f]{64}")
OUTPUT_TYPES = {suffix: kind.media_type for suffix, kind in BY_SUFFIX.items()}
PICTURE_CONTENT: dict[str, dict[str, object]] = {media_type: {} for media_type in OUTPUT_TYPES.values()}

router = APIRouter(redirect_slashes=False)


@router.head("/media/generated/{file}", include_in_schema=False)
@router.get(
    "/media/generated/{file}",
    responses={200: {"content": PICTURE_CONTENT, "description": "The picture."}, **ERRORS},
    response_class=Response,
    summary="A stored picture",
)
async def get_picture(request: Request, file: str) -> Response:
    """The picture, a part of it (Range), or 304 when the caller has it."""
    services = services_of(request)
    picture = await _find(request, file)
    served = Served(
        key=picture.object_key,
        etag=f'"{picture.sha256[:32]}"',
        modified=picture.created_at,
        media_type=kind_of_key(picture.object_key).media_type,
        size=picture.bytes,
        extra=(("Vary", "Authorization"),) if services.settings.media_auth == "owner" else (),
    )
    return await serve(request, services.store, served)


@router.head("/media/outputs/{file}", include_in_schema=False)
@router.get(
    "/media/outputs/{file}",
    responses={200: {"content": {"image/*": {}}, "description": "The picture."}, **ERRORS},
    response_class=Response,
    summary="A framed picture",
)
async def get_output(request: Request, file: str, download: str = "") -> Response:
    """As for generated pictures; with `?download=1` a browser keeps it as a file named after the product."""
    services = services_of(request)
    output, item = await _find_output(request, file)
    extra = [("Vary", "Authorization")] if services.settings.media_auth == "owner" else []
    if download not in ("", "0"):
        extra.append(("Content-Disposition", f'attachment; filename="{archive_name(item, output)}"'))
    served = Served(
        key=output.object_key,
        etag=f'"{output.name[:32]}"',  # the name is the hash of all that decides the pixels
        modified=output.created_at,
        media_type=OUTPUT_TYPES[output.suffix],
        size=output.bytes,
        extra=tuple(extra),
    )
    return await serve(request, services.store, served)


async def _find_output(request: Request, file: str) -> tuple[Output, RunItem]:
    """The output of this name, if the caller may see it; errors as `_find`."""
    caller = await _seer(request)
    name, _, suffix = file.partition(".")
    if suffix not in OUTPUT_TYPES or not OUTPUT_NAME.fullmatch(name):
        raise NotFoundError
    query = (
        select(Output, RunItem)
        .join(RunItem, and_(RunItem.run_id == Output.run_id, RunItem.position == Output.position))
        .where(Output.name == name, Output.suffix == suffix, Output.deleted_at.is_(None))
    )
    if caller is not None:
        query = query.where(Output.owner_id == caller.owner_id)
    async with services_of(request).db.read() as session:
        found = (await session.execute(query.order_by(Output.run_id.desc()).limit(1))).first()
    if found is None:
        raise NotFoundError
    return found[0], found[1]


async def _seer(request: Request) -> Caller | None:
    """Who is asking, where only owners may see; None where the link is enough.

    Raises:
        UnauthorizedError: the owner is asked for, and no good key was sent.

    """
    if services_of(request).settings.media_auth != "owner":
        return None
    caller = await find_caller(request)
    if caller is None:
        raise UnauthorizedError
    return caller


async def _find(request: Request, file: str) -> Picture:
    """The picture of this name, if the caller may see it.

    Raises:
        NotFoundError: no such name, or another owner's where the owner is asked for.
        UnauthorizedError: the owner is asked for, and no good key was sent.

    """
    services = services_of(request)
    caller = await _seer(request)
    name, _, suffix = file.partition(".")
    if suffix not in BY_SUFFIX or not PICTURE_NAME.fullmatch(name):
        raise NotFoundError
    async with services.db.read() as session:
        picture = await session.scalar(select(Picture).where(Picture.name == name, Picture.deleted_at.is_(None)))
    if picture is None or not picture.object_key.endswith(f".{suffix}"):
        raise NotFoundError
    if caller is not None and picture.owner_id != caller.owner_id:
        raise NotFoundError
    record_of(request.scope).generation_id = picture.generation_id
    return picture
