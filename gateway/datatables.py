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
from gateway.outputtable import SORTS, Wanted
from gateway.responses import answer_json
from gateway.routes import route
from gateway.services import services_of
from models.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    wanted = Wanted(run.id, states_of(asked.get("state", "completed")), search)
    sort, descending = _order(asked)
    rows = await outputtable.page(
        services.db,
        wanted,
        sort=sort,
        descending=descending,
        offset=min(max(start, 0), MOST_OFFSET),
        limit=min(length, MOST_ROWS) if length > 0 else MOST_ROWS,
    )
    total = await outputtable.count(services.db, wanted, searched=False)
    filtered = await outputtable.count(services.db, wanted) if wanted.search else total
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


def _order(asked: Mapping[str, str]) -> tuple[str, bool]:
    """The column that DataTables names by its place among `columns`; one that we do not know sorts by position."""
    place = asked.get("order[0][column]", "")
    named = asked.get(f"columns[{place}][data]", "") if re.fullmatch(r"[0-9]{1,3}", place) else ""
    return named if named in SORTS else "position", asked.get("order[0][dir]", "asc").lower() == "desc"


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
