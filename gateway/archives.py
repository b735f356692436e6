"""Many outputs as one zip, made while it is sent: one picture in memory at a time, whatever the number."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from zipstream import ZipStream  # type: ignore[import-untyped] # it ships none

from gateway import outputtable
from gateway.frames import KnownFrame  # noqa: TC001 - FastAPI reads the annotations when it runs
from gateway.outputs import RunId, Search, read_chosen, run_of
from gateway.outputtable import Wanted
from gateway.routes import route
from gateway.services import services_of
from models.errors import InvalidInputError, NotFoundError
from models.logs import get_logger
from models.store import ObjectMissingError, StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from starlette.types import Receive, Scope, Send

    from gateway.services import Services
    from models.tables import Frame, Output, RunItem

NAME_MAX_CHARS = 80
UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
ZIP: dict[int | str, dict[str, Any]] = {200: {"content": {"application/zip": {}}, "description": "The archive."}}

router = APIRouter(prefix="/api", redirect_slashes=False)
log = get_logger(__name__)


@route(
    router,
    "GET",
    "/frames/{frame_id}/outputs.zip",
    summary="Outputs as a zip",
    response_class=Response,
    responses=ZIP,
)
async def download(
    request: Request,
    frame: KnownFrame,
    *,
    search: Search = "",
    size: Annotated[str | None, Query(max_length=32)] = None,
    positions: Annotated[str | None, Query(max_length=8000, pattern=r"^[0-9]{1,9}(,[0-9]{1,9})*$")] = None,
    run_id: RunId = None,
) -> Response:
    """All outputs of the latest run; or those that a search finds, of one size, or of some positions."""
    chosen = None if positions is None else [int(each) for each in positions.split(",")]
    return await _archive(services_of(request), frame, run_id, Part(search, chosen, size))


@route(
    router,
    "POST",
    "/frames/{frame_id}/outputs/zip",
    summary="Chosen outputs as a zip",
    response_class=Response,
    responses=ZIP,
)
async def download_chosen(request: Request, frame: KnownFrame) -> Response:
    """`{"positions": [...]}` or `{"all": true}`, with `size` for one size only."""
    chosen = await read_chosen(request)
    run_id = None if chosen.run_id is None else str(chosen.run_id)
    return await _archive(services_of(request), frame, run_id, Part("", chosen.positions, chosen.size))


@dataclass(frozen=True, slots=True)
class Part:
    """Which outputs of a run go in."""

    search: str
    positions: Sequence[int] | None
    size: str | None


async def _archive(services: Services, frame: Frame, run_id: str | None, part: Part) -> Response:
    run = await run_of(services, frame, run_id)
    if run is None:
        raise NotFoundError("This frame has no outputs yet.")
    wanted = Wanted(run.id, search=part.search)
    if not await outputtable.has_outputs(services.db, wanted, part.positions, part.size):
        field = "size" if part.size is not None else "search" if part.positions is None else "positions"
        raise InvalidInputError.for_field(field, "there are no such outputs")
    services.zips.take(frame.owner_id)
    name = UNSAFE.sub("-", frame.name).strip("-.")[:NAME_MAX_CHARS] or f"frame-{frame.id}"
    return _Archive(
        _stream(services, wanted, part),
        partial(services.zips.give_back, frame.owner_id),
        media_type="application/zip",
        headers={
            "Content-Disposition": f'attachment; filename="{name}-run-{run.id}.zip"',
            "Cache-Control": "no-store",
        },
    )


class _Archive(StreamingResponse):
    """Calls `ended` when the last byte is sent, or nobody takes it any more."""

    def __init__(self, content: AsyncIterator[bytes], ended: Callable[[], None], **options: Any) -> None:
        super().__init__(content, **options)
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()


async def _stream(services: Services, wanted: Wanted, part: Part) -> AsyncIterator[bytes]:
    """The archive's bytes. What cannot be read is listed in `missing.txt`: an archive that has begun cannot fail."""
    archive = ZipStream()
    missing = []
    async for item, output in outputtable.walk(services.db, wanted, part.positions):
        if part.size not in (None, output.size):
            continue
        name = archive_name(item, output)
        try:
            data = await services.store.get(output.object_key)
        except (ObjectMissingError, StoreError) as problem:
            log.warning("zip_output_missing", key=output.object_key, reason=problem.message)
            missing.append(name)
            continue
        archive.add(data, name)
        for piece in archive.file():
            yield piece
    if missing:
        archive.add("\n".join(missing) + "\n", "missing.txt")
    for piece in archive.finalize():
        yield piece


def archive_name(item: RunItem, output: Output) -> str:
    """A plain file name: the place in the feed keeps it single, the id is for people, no character can climb."""
    product = UNSAFE.sub("_", item.product_id or "").strip("._")[:NAME_MAX_CHARS] or "product"
    size = "" if output.size == "original" else f"_{output.size}"
    return f"{item.position + 1:06d}_{product}{size}.{output.suffix}"
