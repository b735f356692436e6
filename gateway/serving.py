"""Stored objects over HTTP, the way RFC 9110 reads, revalidates and cuts them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from typing import TYPE_CHECKING

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from gateway.errors import RangeError
from gateway.objects import PIECE_BYTES, pieces
from gateway.responses import answer_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.datastructures import Headers

    from models.store import ObjectStore

SINGLE_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})", re.IGNORECASE)
IMMUTABLE = "private, max-age=86400, immutable"


@dataclass(frozen=True, slots=True)
class Served:
    """One object as it is served. `size` in bytes, None to ask the store; `etag` with its quotes."""

    key: str
    etag: str
    modified: datetime
    media_type: str
    cache: str = IMMUTABLE
    size: int | None = None
    extra: tuple[tuple[str, str], ...] = ()


async def serve(request: Request, store: ObjectStore, served: Served) -> Response:
    """The object, a part of it (Range), or 304 when the caller has it. Answers HEAD too.

    Raises:
        ObjectMissingError: there is no such object.

    """
    headers = _headers(served)
    if _caller_has_it(request.headers, served):
        return Response(status_code=304, headers=headers)
    size = served.size
    if size is None or request.method == "HEAD":
        size = (await store.head(served.key)).size
    if request.method == "HEAD":
        return Response(headers={**headers, "Content-Length": str(size)}, media_type=served.media_type)
    wanted = _range(request.headers, served, size)
    if wanted is None:
        return await _body(store, served, headers, 0, size, status=200)
    start, end = wanted
    if start >= end:
        return answer_error(request.scope, RangeError(), headers={"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return await _body(store, served, headers, start, end, status=206)


async def _body(
    store: ObjectStore, served: Served, headers: dict[str, str], start: int, end: int, *, status: int
) -> Response:
    """Short ones whole, so that a missing object is still an error's answer; long ones a piece at a time."""
    if end - start <= PIECE_BYTES * 16:
        body = await store.get_range(served.key, start, end)
        return Response(body, status_code=status, headers=headers, media_type=served.media_type)
    await store.head(served.key)
    headers["Content-Length"] = str(end - start)
    stream = pieces(store, served.key, start, end)
    return StreamingResponse(stream, status_code=status, headers=headers, media_type=served.media_type)


def _headers(served: Served) -> dict[str, str]:
    return {
        "ETag": served.etag,
        "Last-Modified": format_datetime(served.modified.replace(microsecond=0), usegmt=True),
        "Cache-Control": served.cache,
        "Accept-Ranges": "bytes",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        **dict(served.extra),
    }


def _caller_has_it(headers: Headers, served: Served) -> bool:
    """RFC 9110 13.2.2: If-None-Match decides; If-Modified-Since only where it is absent."""
    known = headers.getlist("if-none-match")
    if known:
        tags = [tag.strip().removeprefix("W/") for tag in ",".join(known).split(",")]
        return "*" in tags or served.etag in tags
    since = _moment(headers.get("if-modified-since", ""))
    return since is not None and served.modified.replace(microsecond=0) <= since


def _range(headers: Mapping[str, str], served: Served, size: int) -> tuple[int, int] | None:
    """First byte, and the one after the last; None for the whole. An unsatisfiable range is empty.

    Several ranges, and what cannot be read, are ignored, as RFC 9110 14.2 allows.
    """
    found = SINGLE_RANGE.fullmatch(headers.get("range", "").strip())
    if found is None or found.groups() == ("", "") or not _range_is_of_this(headers, served):
        return None
    first, last = found.groups()
    if not first:
        return max(size - int(last), 0) if int(last) else size, size
    if last and int(last) < int(first):
        return None
    return int(first), min(int(last) + 1, size) if last else size


def _range_is_of_this(headers: Mapping[str, str], served: Served) -> bool:
    condition = headers.get("if-range")
    if condition is None or condition == served.etag:
        return True
    moment = _moment(condition)
    return moment is not None and moment == served.modified.replace(microsecond=0)


def _moment(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
