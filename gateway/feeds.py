"""`/feeds/<token>.xml` and `.csv`: a frame's output feed, for whoever has its link; and the link's renewal."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse  # noqa: TC002 - FastAPI reads the annotations when it runs
from sqlalchemy import select

from gateway import frametable
from gateway.frameanswers import tell_feed
from gateway.frames import KnownFrame  # noqa: TC001 - as above
from gateway.ids import new_feed_token
from gateway.responses import answer_json
from gateway.routes import route
from gateway.schemas import ERRORS
from gateway.services import services_of
from gateway.serving import Served, serve
from models.errors import NotFoundError
from models.tables import Frame, Run

if TYPE_CHECKING:
    from models.db import Database

FILE = re.compile(r"([0-9a-z]{26})\.(xml|csv)(\.gz)?")
TYPES = {"xml": "application/xml; charset=utf-8", "csv": "text/csv; charset=utf-8"}
GZIP = re.compile(r"\bgzip\b(?!\s*;\s*q=0(?:\.0{1,3})?\s*(?:,|$))", re.IGNORECASE)

router = APIRouter(redirect_slashes=False)


@router.head("/feeds/{file}", include_in_schema=False)
@router.get("/feeds/{file}", responses=ERRORS, response_class=Response, summary="An output feed")
async def feed(request: Request, file: str) -> Response:
    """The feed of the last run that was published; gzipped where the caller takes that, or as `.xml.gz`."""
    services = services_of(request)
    found = FILE.fullmatch(file)
    if found is None:
        raise NotFoundError
    token, kind, packed = found.groups()
    run = await _published(services.db, token)
    key = run.output_feed_key if kind == "xml" else run.output_csv_key
    if key is None:
        raise NotFoundError
    encoded = packed is None and GZIP.search(request.headers.get("accept-encoding", "")) is not None
    stored = f"{key}.gz" if packed or encoded else key
    digest = hashlib.sha256(stored.encode()).hexdigest()[:32]  # a feed is never written twice under one key
    extra = [("Vary", "Accept-Encoding"), ("X-Robots-Tag", "noindex")]
    served = Served(
        key=stored,
        etag=f'"{digest}"',
        modified=(await services.store.head(stored)).last_modified,  # it may be made anew long after its run
        media_type="application/gzip" if packed else TYPES[kind],
        cache="no-cache",
        extra=tuple([*extra, ("Content-Encoding", "gzip")] if encoded else extra),
    )
    return await serve(request, services.store, served)


@route(router, "POST", "/api/frames/{frame_id}/feed-token", summary="Give the output feed a new link")
async def renew(request: Request, frame: KnownFrame) -> JSONResponse:
    """The old link, if there was one, is dead from now on."""
    services = services_of(request)
    changed = await frametable.change_frame(services.db, frame, {"feed_token": new_feed_token()})
    return answer_json(request.scope, {"output_feed": tell_feed(changed, services.settings.public_base)})


@route(router, "DELETE", "/api/frames/{frame_id}/feed-token", status=204, summary="Revoke the output feed's link")
async def revoke(request: Request, frame: KnownFrame) -> Response:
    """The feed is still made; nobody can fetch it until it gets a new link."""
    await frametable.change_frame(services_of(request).db, frame, {"feed_token": None})
    return Response(status_code=204)


async def _published(db: Database, token: str) -> Run:
    query = select(Run).join(Frame, Frame.published_run_id == Run.id)
    async with db.read() as session:
        run = await session.scalar(query.where(Frame.feed_token == token, Frame.deleted_at.is_(None)))
    if run is None:
        raise NotFoundError
    return run
