"""`/api/frames/{id}/outputs`: the table of a frame's outputs and failures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse  # noqa: TC002 - FastAPI reads the annotations when it runs
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway import outputtable
from gateway.bodies import read_object
from gateway.frameanswers import moment
from gateway.frames import KnownFrame  # noqa: TC001 - as above
from gateway.frametable import MOST_ID
from gateway.outputtable import ALL_STATES, SORTS, Wanted
from gateway.responses import answer_json
from gateway.routes import route
from gateway.runs import find_run
from gateway.services import services_of
from gateway.serving import Served, serve
from models.errors import InvalidInputError, NotFoundError
from models.tables import ItemState
from models.wire import invalid_input

if TYPE_CHECKING:
    from gateway.outputtable import Row
    from gateway.services import Services
    from models.tables import Frame, Run

MOST_ROWS = 500
MOST_POSITIONS = 10_000
MOST_OFFSET = 10_000_000
FAILURES = (ItemState.FAILED.value, ItemState.SKIPPED.value)
SOURCE_TYPES = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG", "image/png"),
    (b"GIF8", "image/gif"),
    (b"RIFF", "image/webp"),
    (b"BM", "image/bmp"),
)

Search = Annotated[str, Query(max_length=256, pattern=r"^[^\x00]*$")]
RunId = Annotated[str | None, Query(max_length=10, pattern=r"^[0-9]+$", description="Default: the latest run.")]

Position = Annotated[int, Field(ge=0, le=MOST_ID)]

router = APIRouter(redirect_slashes=False)


@dataclass(frozen=True, slots=True)
class Asked:
    """Which part of the table."""

    states: tuple[str, ...]
    search: str
    sort: str
    offset: int
    limit: int
    run_id: str | None


class Chosen(BaseModel):
    """Which outputs a request is about: those of `positions`, or `all`; of one `size` or of every."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    positions: Annotated[list[Annotated[int, Field(ge=0, le=MOST_ID)]], Field(max_length=MOST_POSITIONS)] | None = (
        None
    )
    all: bool = False
    size: Annotated[str, Field(max_length=32)] | None = None
    run_id: Annotated[int, Field(ge=1, le=MOST_ID)] | None = None


@route(router, "GET", "/api/frames/{frame_id}/outputs", summary="The table of a frame's outputs")
async def list_all(
    request: Request,
    frame: KnownFrame,
    *,
    limit: Annotated[int, Query(ge=1, le=MOST_ROWS)] = 20,
    offset: Annotated[int, Query(ge=0, le=MOST_OFFSET)] = 0,
    search: Search = "",
    sort: Annotated[str, Query(description="A column, with - before it for the other way round.")] = "position",
    state: Annotated[str, Query(description="States, comma-separated, or `all`.")] = "completed",
    run_id: RunId = None,
) -> JSONResponse:
    """Products with their pictures, original and result; with `state=failed,skipped` those without, and why."""
    return await _table(request, frame, Asked(states_of(state), search, sort, offset, limit, run_id))


@route(router, "GET", "/api/frames/{frame_id}/failures", summary="Products without an output, and why")
async def list_failures(
    request: Request,
    frame: KnownFrame,
    *,
    limit: Annotated[int, Query(ge=1, le=MOST_ROWS)] = 20,
    offset: Annotated[int, Query(ge=0, le=MOST_OFFSET)] = 0,
    search: Search = "",
    run_id: RunId = None,
) -> JSONResponse:
    """The same table for `state=failed,skipped`."""
    return await _table(request, frame, Asked(FAILURES, search, "position", offset, limit, run_id))


@route(router, "GET", "/api/frames/{frame_id}/outputs/{position}", summary="One product and its pictures")
async def read(request: Request, frame: KnownFrame, position: str, run_id: RunId = None) -> JSONResponse:
    """The product at a position of the feed, whatever became of it."""
    services = services_of(request)
    row = await _row(services, await run_of(services, frame, run_id), position)
    return answer_json(request.scope, tell_row(row, frame, services.settings.public_base))


@route(
    router,
    "GET",
    "/api/frames/{frame_id}/outputs/{position}/source",
    summary="A product's own picture, as it was fetched",
    response_class=Response,
)
async def source(request: Request, frame: KnownFrame, position: str, run_id: RunId = None) -> Response:
    """What stands beside the result."""
    services = services_of(request)
    item = (await _row(services, await run_of(services, frame, run_id), position)).item
    if item.source_key is None:
        raise NotFoundError
    head = await services.store.get_range(item.source_key, 0, 16)
    media_type = next((kind for magic, kind in SOURCE_TYPES if head.startswith(magic)), "application/octet-stream")
    digest = item.source_key.rpartition("/")[2].partition(".")[0]
    served = Served(
        key=item.source_key,
        etag=f'"{digest[:32]}"',
        modified=item.finished_at or frame.updated_at,
        media_type=media_type,
        cache="private, no-cache",
    )
    return await serve(request, services.store, served)


@route(router, "DELETE", "/api/frames/{frame_id}/outputs/{position}", summary="Delete one product's outputs")
async def delete_one(
    request: Request, frame: KnownFrame, position: str, size: str | None = None, run_id: RunId = None
) -> JSONResponse:
    """Its pictures, or the one of a size. A file goes unless another product shares it.

    Earlier runs lose the same picture too, unless `run_id` names one run. The output feed is made anew at once.
    """
    services = services_of(request)
    if (run := await run_of(services, frame, run_id)) is None:
        raise NotFoundError
    row = await _row(services, run, position)
    deleted = await _delete(services, run, [row.item.position], size, everywhere=run_id is None)
    if not deleted:
        raise NotFoundError
    return answer_json(request.scope, {"deleted": deleted})


@route(router, "POST", "/api/frames/{frame_id}/outputs/delete", summary="Delete many outputs")
async def delete_many(request: Request, frame: KnownFrame) -> JSONResponse:
    """`{"positions": [...]}` or `{"all": true}`, with `size` for one size only; as for one product."""
    services = services_of(request)
    chosen = await read_chosen(request)
    run = await run_of(services, frame, None if chosen.run_id is None else str(chosen.run_id))
    positions = None if chosen.all else chosen.positions
    everywhere = chosen.run_id is None
    deleted = 0 if run is None else await _delete(services, run, positions, chosen.size, everywhere=everywhere)
    return answer_json(request.scope, {"deleted": deleted})


async def _delete(
    services: Services, run: Run, positions: list[int] | None, size: str | None, *, everywhere: bool
) -> int:
    deleted = await outputtable.delete_outputs(services.db, run, positions, size, everywhere=everywhere)
    if deleted:
        await services.republisher.soon(run.frame_id)
        services.sweeper.kick()
    return deleted


async def read_chosen(request: Request) -> Chosen:
    """The body that says which outputs.

    Raises:
        InvalidInputError: it does not, or says both.

    """
    try:
        chosen = Chosen.model_validate(await read_object(request))
    except ValidationError as problem:
        raise invalid_input(problem) from None
    if chosen.all == (chosen.positions is not None):
        raise InvalidInputError.for_field("positions", "send positions, or all: true")
    return chosen


def tell_row(row: Row, frame: Frame, base: str) -> dict[str, Any]:
    """One product: where its picture came from, what became of it, and its pictures."""
    item = row.item
    address = f"{base}/api/frames/{frame.id}/outputs/{item.position}"
    return {
        "position": item.position,
        "product_id": item.product_id,
        "title": item.fields.get("title"),
        "state": item.state,
        "code": item.code,
        "reason": item.reason,
        "reused": item.reused,
        "source_url": item.image_url,
        "source": None if item.source_key is None else f"{address}/source?run_id={item.run_id}",
        "outputs": [
            {
                "size": output.size,
                "url": f"{base}/media/outputs/{output.name}.{output.suffix}",
                "download_url": f"{base}/media/outputs/{output.name}.{output.suffix}?download=1",
                "width": output.width,
                "height": output.height,
                "bytes": output.bytes,
            }
            for output in row.outputs
        ],
        "run_id": item.run_id,
        "finished_at": moment(item.finished_at),
    }


async def _table(request: Request, frame: Frame, asked: Asked) -> JSONResponse:
    services = services_of(request)
    column = asked.sort.removeprefix("-")
    if column not in SORTS:
        raise InvalidInputError.for_field("sort", f"must be one of {', '.join(SORTS)}, with or without - before it")
    run = await run_of(services, frame, asked.run_id)
    body: dict[str, Any] = {"run_id": run.id if run else None, "limit": asked.limit, "offset": asked.offset}
    if run is None:
        return answer_json(request.scope, {"outputs": [], "total": 0, "filtered": 0, **body})
    wanted = Wanted(run.id, asked.states, asked.search)
    rows = await outputtable.page(
        services.db,
        wanted,
        order=[(column, asked.sort.startswith("-"))],
        offset=asked.offset,
        limit=asked.limit,
    )
    total = await outputtable.count(services.db, wanted, searched=False)
    body |= {"total": total, "filtered": await outputtable.count(services.db, wanted) if wanted.search else total}
    told = [tell_row(row, frame, services.settings.public_base) for row in rows]
    return answer_json(request.scope, {"outputs": told, **body})


async def run_of(services: Services, frame: Frame, run_id: str | None) -> Run | None:
    """The run that a request names, else the one that the frame shows; None when it never had one with entries.

    Raises:
        NotFoundError: the named one is not this frame's.

    """
    if run_id is None:
        return await outputtable.shown_run(services.db, frame.id)
    return await find_run(services, frame, run_id)


async def _row(services: Services, run: Run | None, position: str) -> Row:
    if run is None or not (position.isascii() and position.isdigit() and len(position) < 11):  # noqa: PLR2004
        raise NotFoundError
    row = await outputtable.find_row(services.db, run.id, int(position))
    if row is None:
        raise NotFoundError
    return row


def states_of(text: str) -> tuple[str, ...]:
    """States out of `failed,skipped` or `all`.

    Raises:
        InvalidInputError: an unknown one.

    """
    if text == "all":
        return ALL_STATES
    states = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if not set(states) <= set(ALL_STATES):
        raise InvalidInputError.for_field("state", f"must be `all` or some of {', '.join(ALL_STATES)}")
    return states
