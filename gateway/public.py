"""The addresses that need no key: the front page, health and metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from gateway.metrics import CONTENT_TYPE_LATEST
from gateway.services import services_of
from models.version import VERSION

router = APIRouter(redirect_slashes=False)


@router.get("/", summary="What this is")
async def front(request: Request) -> JSONResponse:
    """The product's name and its addresses."""
    base = services_of(request).settings.public_base
    return JSONResponse(
        {
            "name": "IGen",
            "description": "A self-hosted image generation gateway.",
            "version": VERSION,
            "generate": f"POST {base}/api/generate/",
            "generations": f"{base}/api/generations/",
            "frames": f"{base}/api/frames",
            "assets": f"{base}/api/assets",
            "openapi": f"{base}/openapi.json",
            "health": f"{base}/healthz",
            "ready": f"{base}/readyz",
        }
    )


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> JSONResponse:
    """Alive; asks nothing else."""
    return JSONResponse({"status": "ok"}, headers={"Cache-Control": "no-store"})


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="Can it serve?")
async def readyz(request: Request) -> JSONResponse:
    """`ready`, `degraded` (it serves, and some part is missing), or 503 `not_ready`."""
    services = services_of(request)
    checks = await services.health.checks()
    status = services.health.status(checks, draining=services.lifecycle.draining)
    return JSONResponse(
        {"status": status, "draining": services.lifecycle.draining, "checks": checks},
        status_code=503 if status == "not_ready" else 200,
        headers={"Cache-Control": "no-store"},
    )


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Prometheus' text."""
    services = services_of(request)
    services.metrics.carried.set(services.runner.carried)
    services.metrics.breaker_open.set(services.breaker.is_open)
    return Response(services.metrics.text(), media_type=CONTENT_TYPE_LATEST)
