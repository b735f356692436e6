"""The ASGI application: routes, one envelope for every error, one correlation id for every request."""

from __future__ import annotations

import re
import time
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from inference.auth import KeyGuard
from inference.routes import open_router, router
from inference.service import Service
from models.errors import IgenError, InvalidInputError, envelope, problems_from_pydantic
from models.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from inference.engine.types import Engine
    from inference.settings import InferenceSettings

log = get_logger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
QUIET = ("/ping", "/metrics", "/health", "/status/", "/stream/")  # asked again and again; logged at debug level


def create_app(
    settings: InferenceSettings,
    key: str | None,
    open_engine: Callable[[], Engine],
    *,
    on_fatal: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
) -> FastAPI:
    """Build the application; nothing is loaded before its lifespan begins.

    Args:
        settings: the operator's choices.
        key: what callers must send; None serves everybody.
        open_engine: loads the checkpoint; runs on a thread of its own.
        on_fatal: called when the process should end with an error.
        clock: seconds that never go back, for every time to live.

    Raises:
        SettingsError: a hook or a file of styles cannot be loaded.

    """
    service = Service(settings, open_engine, on_fatal, clock)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.close()

    app = FastAPI(title="IGen inference", lifespan=lifespan, openapi_url=None)
    app.state.service = service
    app.state.guard = KeyGuard(key)
    app.include_router(open_router)
    app.include_router(router)
    app.add_exception_handler(IgenError, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_broken)
    app.add_middleware(RequestContext)
    return app


class RequestContext:
    """Gives every request its correlation id: bound to its log lines, sent back as `X-Request-ID`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pure ASGI, so that a caller's disconnect does not cancel the route."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.monotonic()
        given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")
        usable = REQUEST_ID.fullmatch(given) is not None
        request_id = given if usable else uuid.uuid4().hex
        scope.setdefault("state", {}).update(request_id=request_id, request_id_given=usable)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            path = scope["path"]
            level = log.debug if any(part in path for part in QUIET) else log.info
            took = round(1000 * (time.monotonic() - begun))
            level("http_request", method=scope["method"], path=path[:200], status=status, ms=took)


def _render(request: Request, error: IgenError) -> JSONResponse:
    request_id = getattr(request.state, "request_id", None)
    return JSONResponse(envelope(error, request_id), status_code=error.status, headers=error.headers)


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, IgenError)  # noqa: S101 - Starlette's signature is wider than what it calls this with
    if error.report:
        log.error("request_failed", code=error.code, exc_info=error)
    return _render(request, error)


async def _answer_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - see above
    problems = problems_from_pydantic(error.errors(), skip=1)
    message = "; ".join(f"{problem.field}: {problem.reason}" for problem in problems)
    return _render(request, InvalidInputError(message, details=problems))


async def _answer_http(request: Request, error: Exception) -> JSONResponse:
    """Starlette's own answers: unknown routes, wrong methods."""
    assert isinstance(error, HTTPException)  # noqa: S101 - see above
    body = envelope(IgenError(str(error.detail)), getattr(request.state, "request_id", None))
    body["error"]["code"] = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    body["error"]["type"] = "invalid_request_error"
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


async def _answer_broken(request: Request, error: Exception) -> JSONResponse:
    """A fault of ours. The server logs its traceback; the caller gets none of it."""
    del error
    return _render(request, IgenError())
