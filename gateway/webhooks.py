"""`/api/frames/{id}/webhook-secret`: what webhooks are signed with, for their receiver to check them."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse  # noqa: TC002 - FastAPI reads the annotations when it runs

from compositor.webhook import new_webhook_secret, webhook_secret
from gateway import frametable
from gateway.frames import KnownFrame  # noqa: TC001 - as above
from gateway.responses import answer_json
from gateway.routes import route
from gateway.services import services_of

router = APIRouter(prefix="/api", redirect_slashes=False)


@route(router, "GET", "/frames/{frame_id}/webhook-secret", summary="The secret that webhooks are signed with")
async def read(request: Request, frame: KnownFrame) -> JSONResponse:
    """As Standard Webhooks write it: `whsec_` and base64."""
    return answer_json(request.scope, {"secret": webhook_secret(frame)})


@route(router, "POST", "/frames/{frame_id}/webhook-secret", summary="Sign webhooks with a new secret")
async def renew(request: Request, frame: KnownFrame) -> JSONResponse:
    """The old one signs nothing from now on, tries of earlier webhooks included."""
    values = {"webhook_secret": new_webhook_secret()}
    changed = await frametable.change_frame(services_of(request).db, frame, values)
    return answer_json(request.scope, {"secret": webhook_secret(changed)})
