"""`/media/generated/<name>.png`: stored pictures under capability names, the way RFC 9110 reads and revalidates."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response
from sqlalchemy import select

from gateway.auth import find_caller
from gateway.errors import RangeError
from gateway.ids import PICTURE_NAME
from gateway.requestlog import record_of
from gateway.responses import answer_error
from gateway.schemas import ERRORS
from gateway.services import services_of
from models.errors import NotFoundError, UnauthorizedError
from models.tables import Picture

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.datastructures import Headers

SINGLE_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})", re.IGNORECASE)
CACHE = "private, max-age=86400, immutable"

router = APIRouter(redirect_slashes=False)


@router.head("/media/generated/{file}", include_in_schema=False)
@router.get(
    "/media/generated/{file}",
    responses={200: {"content": {"image/png": {}}, "description": "The picture."}, **ERRORS},
    response_class=Response,
    summary="A stored picture",
)
async def get_picture(request: Request, file: str) -> Response:
    """The picture, a part of it (Range), or 304 when the caller has it."""
    services = services_of(request)
    picture = await _find(request, file)
    headers = _headers(picture)
    if services.settings.media_auth == "owner":
        headers["Vary"] = "Authorization"
    if _caller_has_it(request.headers, picture):
        return Response(status_code=304, headers=headers)
    if request.method == "HEAD":
        await services.store.head(picture.object_key)
        return Response(headers={**headers, "Content-Length": str(picture.bytes)}, media_type="image/png")
    wanted = _range(request.headers, picture)
    if wanted is None:
        return Response(await services.store.get(picture.object_key), headers=headers, media_type="image/png")
    start, end = wanted
    if start >= end:
        return answer_error(request.scope, RangeError(), headers={"Content-Range": f"bytes */{picture.bytes}"})
    part = await services.store.get_range(picture.object_key, start, end)
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{picture.bytes}"
    return Response(part, status_code=206, headers=headers, media_type="image/png")


async def _find(request: Request, file: str) -> Picture:
    """The picture of this name, if the caller may see it.

    Raises:
        NotFoundError: no such name, or another owner's where the owner is asked for.
        UnauthorizedError: the owner is asked for, and no good key was sent.

    """
    services = services_of(request)
    owners_only = services.settings.media_auth == "owner"
    caller = await find_caller(request) if owners_only else None
    if owners_only and caller is None:
        raise UnauthorizedError
    name, _, suffix = file.partition(".")
    if suffix != "png" or not PICTURE_NAME.fullmatch(name):
        raise NotFoundError
    async with services.db.read() as session:
        picture = await session.scalar(select(Picture).where(Picture.name == name))
    if picture is None or (caller is not None and picture.owner_id != caller.owner_id):
        raise NotFoundError
    record_of(request.scope).generation_id = picture.generation_id
    return picture


def _headers(picture: Picture) -> dict[str, str]:
    return {
        "ETag": _etag(picture),
        "Last-Modified": format_datetime(picture.created_at.replace(microsecond=0), usegmt=True),
        "Cache-Control": CACHE,
        "Accept-Ranges": "bytes",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }


def _etag(picture: Picture) -> str:
    return f'"{picture.sha256[:32]}"'


def _caller_has_it(headers: Headers, picture: Picture) -> bool:
    """RFC 9110 13.2.2: If-None-Match decides; If-Modified-Since only where it is absent."""
    known = headers.getlist("if-none-match")
    if known:
        tags = [tag.strip().removeprefix("W/") for tag in ",".join(known).split(",")]
        return "*" in tags or _etag(picture) in tags
    since = _moment(headers.get("if-modified-since", ""))
    return since is not None and picture.created_at.replace(microsecond=0) <= since


def _range(headers: Mapping[str, str], picture: Picture) -> tuple[int, int] | None:
    """First byte, and the one after the last; None for the whole. An unsatisfiable range is empty.

    Several ranges, and what cannot be read, are ignored, as RFC 9110 14.2 allows.
    """
    found = SINGLE_RANGE.fullmatch(headers.get("range", "").strip())
    if found is None or found.groups() == ("", "") or not _range_is_of_this(headers, picture):
        return None
    first, last = found.groups()
    if not first:
        return max(picture.bytes - int(last), 0) if int(last) else picture.bytes, picture.bytes
    if last and int(last) < int(first):
        return None
    return int(first), min(int(last) + 1, picture.bytes) if last else picture.bytes


def _range_is_of_this(headers: Mapping[str, str], picture: Picture) -> bool:
    condition = headers.get("if-range")
    if condition is None or condition == _etag(picture):
        return True
    moment = _moment(condition)
    return moment is not None and moment == picture.created_at.replace(microsecond=0)


def _moment(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
