"""`POST /api/frames/{id}/preview`: one product in its frame, before a run or with a design that is not saved yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compositor.design import Design  # noqa: TC001 - pydantic reads the annotation when it runs
from compositor.feed.entries import EntryMaker
from gateway import frametable
from gateway.bodies import read_object
from gateway.frames import KnownFrame  # noqa: TC001 - FastAPI reads the annotations when it runs
from gateway.requestlog import record_of
from gateway.routes import route
from gateway.services import services_of
from models.errors import InvalidInputError
from models.wire import invalid_input

if TYPE_CHECKING:
    from compositor.feed.entries import FeedEntry
    from gateway.services import Services
    from models.tables import Frame

MOST_POSITION = 999_999
PICTURE: dict[int | str, dict[str, Any]] = {200: {"content": {"image/*": {}}, "description": "The picture."}}
BODY: dict[str, Any] = {
    "requestBody": {
        "content": {"application/json": {"example": {"position": 0, "design": {"placement": {"fit": "cover"}}}}}
    }
}

router = APIRouter(prefix="/api", redirect_slashes=False)

FieldText = Annotated[str, Field(max_length=8192)]


class Ask(BaseModel):
    """The feed's product at `position`, or `product`, a feed's fields by name (id, title, image_link, price...)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    position: Annotated[int, Field(ge=0, le=MOST_POSITION)] | None = None
    product: Annotated[dict[str, FieldText], Field(max_length=200)] | None = None
    design: Design | None = None
    size: Annotated[str, Field(max_length=32)] | None = None


@route(
    router,
    "POST",
    "/frames/{frame_id}/preview",
    summary="Draw one product",
    response_class=Response,
    responses=PICTURE,
    openapi_extra=BODY,
)
async def preview(request: Request, frame: KnownFrame) -> Response:
    """The picture as a run would make it; `X-Product-ID` (percent-encoded) says of which product."""
    services = services_of(request)
    ask = _read(await read_object(request) if await request.body() else {})
    record_of(request.scope).request_body = ask.model_dump(mode="json", exclude_unset=True)
    if ask.design is not None:
        await frametable.check_assets(services.db, frame.owner_id, ask.design)
        frame.design = ask.design.model_dump(mode="json")  # of this request's copy; nothing is saved
    entry = await _entry(services, frame, ask)
    drawn = await services.previewer.draw(frame, entry, ask.size)
    headers = {
        "Cache-Control": "no-store",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "X-Product-ID": quote(entry.product_id or "", safe=""),
        "X-Picture-Size": f"{drawn.composed.width}x{drawn.composed.height}",
    }
    return Response(drawn.composed.data, media_type=drawn.media_type, headers=headers)


def _read(document: Any) -> Ask:
    try:
        ask = Ask.model_validate(document)
    except ValidationError as problem:
        raise invalid_input(problem) from None
    if ask.position is not None and ask.product is not None:
        raise InvalidInputError.for_field("product", "send this or position, not both")
    return ask


async def _entry(services: Services, frame: Frame, ask: Ask) -> FeedEntry:
    if ask.product is None:
        return await services.previewer.entry(frame, ask.position or 0)
    fields = {name.strip().lower().removeprefix("g:"): text.strip() for name, text in ask.product.items()}
    return EntryMaker().make(0, {"id": "preview", **fields})
