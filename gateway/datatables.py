"""`/frame/{id}/outputs-ajax/`: the table of outputs in DataTables' protocol, for clients that speak it.

Source: datatables.net/manual/server-side.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse  # noqa: TC002 - FastAPI reads the annotations when it runs

from gateway import outputtable
from gateway.frames import KnownFrame  # noqa: TC001 - as above
from gateway.outputs import MOST_OFFSET, MOST_ROWS, run_of, states_of, tell_row
from gateway.outputtable import SEARCHES, SORTS, Wanted
from gateway.responses import answer_json
from gateway.routes import route
from gateway.services import services_of
from models.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_ORDERS = 8
PLACE = re.compile(r"[0-9]{1,3}")
COLUMN_SEARCH = re.compile(r"columns\[([0-9]{1,3})\]\[search\]\[value\]")
NAMES = {"image_url": "source_url"}
"""What present clients call a column: the picture's cell is searched by where it came from."""

router = APIRouter(redirect_slashes=False)


@route(router, "GET", "/frame/{frame_id}/outputs-ajax", summary="The table in DataTables' protocol")
async def list_for_datatables(request: Request, frame: KnownFrame) -> JSONResponse:
    """Server-side processing of DataTables. Texts are escaped, since it puts cells into the page as HTML."""
    services, asked = services_of(request), request.query_params
    run = await run_of(services, frame, asked.get("run_id"))
    draw, start, length = _number(asked, "draw", 0), _number(asked, "start", 0), _number(asked, "length", 10)
    if run is None:
        return answer_json(request.scope, {"draw": draw, "recordsTotal": 0, "recordsFiltered": 0, "data": []})
    search = asked.get("search[value]", "").replace("\x00", "")[:256]
    wanted = Wanted(run.id, states_of(asked.get("state", "completed")), search, _columns(asked))
    rows = await outputtable.page(
        services.db,
        wanted,
        order=_order(asked),
        offset=min(max(start, 0), MOST_OFFSET),
        limit=min(length, MOST_ROWS) if length > 0 else MOST_ROWS,
    )
    total = await outputtable.count(services.db, wanted, searched=False)
    filtered = await outputtable.count(services.db, wanted) if wanted.searched else total
    data = [_datatables_row(tell_row(row, frame, services.settings.public_base)) for row in rows]
    return answer_json(
        request.scope, {"draw": draw, "recordsTotal": total, "recordsFiltered": filtered, "data": data}
    )


def _number(asked: Mapping[str, str], name: str, default: int) -> int:
    text = asked.get(name, "").strip()
    found = re.fullmatch(r"-?[0-9]{1,9}", text)
    if text and not found:
        raise InvalidInputError.for_field(name, "must be a whole number")
    return int(text) if found else default


def _order(asked: Mapping[str, str]) -> list[tuple[str, bool]]:
    """Columns, and whether descending, in the order in which DataTables names them by their places in `columns`.

    A column that we do not know sorts by position.
    """
    found: list[tuple[str, bool]] = []
    while len(found) < MOST_ORDERS and (place := asked.get(f"order[{len(found)}][column]")) is not None:
        named = asked.get(f"columns[{place}][data]", "") if PLACE.fullmatch(place) else ""
        descending = asked.get(f"order[{len(found)}][dir]", "asc").lower() == "desc"
        found.append((named if named in SORTS else "position", descending))
    return found


def _columns(asked: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Texts that DataTables searches for in one column each; one in a column that we do not know is left out."""
    places = [(name, found[1]) for name in asked if (found := COLUMN_SEARCH.fullmatch(name))]
    named = [(asked.get(f"columns[{place}][data]", ""), asked[name]) for name, place in places]
    clean = [(NAMES.get(column, column), text.replace("\x00", "")[:256]) for column, text in named]
    return tuple((column, text) for column, text in clean if column in SEARCHES and text)[:MOST_ORDERS]


def _datatables_row(told: dict[str, Any]) -> dict[str, Any]:
    """The names that present clients use (id, product_id, image_url, created_at), and ours beside."""
    outputs = told["outputs"]
    texts = {
        name: None if told[name] is None else html.escape(str(told[name]))
        for name in ("product_id", "title", "reason", "code", "source_url", "state")
    }
    created = told["finished_at"]
    return {
        **told,
        **texts,
        "id": told["position"],
        "image_url": outputs[0]["url"] if outputs else "",
        "created_at": created[:19].replace("T", " ") if created else "",
    }
