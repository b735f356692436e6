"""What every request passes, outermost first: context and log, host, body limit. Pure ASGI; nothing is buffered."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.websockets import WebSocket

from gateway.ids import REQUEST_ID, new_request_id
from gateway.requestlog import RequestRecord
from gateway.responses import answer_error
from models.errors import BadRequestError, FieldProblem, IgenError, TooLargeError
from models.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from gateway.metrics import Metrics
    from gateway.requestlog import RequestLogWriter

QUIET_PATHS = ("/healthz", "/readyz", "/metrics")
"""Asked every second by machines; they say nothing about a caller, so no row is kept of them."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WEBSOCKET"})
CLIENT_GONE = 499
JSON = "application/json"
"""What a body without a content type is read as."""
HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?")

log = get_logger(__name__)


async def refuse(scope: Scope, receive: Receive, send: Send, error: IgenError) -> None:
    """Answer a request, or a WebSocket that was not accepted yet, with an error's envelope."""
    response = answer_error(scope, error)
    if scope["type"] == "websocket":
        await WebSocket(scope, receive, send).send_denial_response(response)
    else:
        await response(scope, receive, send)


def _hide_query(scope: Scope) -> None:
    """Move a WebSocket's query to where only its handler looks: the server logs the address, tickets and all."""
    scope["igen.query"] = scope.get("query_string", b"")
    scope["query_string"] = b""


class RequestMiddleware:
    """Gives each request its id and record, answers what nobody caught, and logs the outcome."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, writer: RequestLogWriter) -> None:
        self.app = app
        self._metrics = metrics
        self._writer = writer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            _hide_query(scope)
        given = Headers(scope=scope).get("x-request-id", "")
        scope["igen.request_id_given"] = bool(REQUEST_ID.fullmatch(given))
        record = RequestRecord.of(scope, given if scope["igen.request_id_given"] else new_request_id())
        scope["igen.record"] = record
        with structlog.contextvars.bound_contextvars(request_id=record.request_id):
            try:
                await self._serve(scope, receive, send, record)
            finally:
                await self._close(scope, record)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, record: RequestRecord) -> None:
        async def send_marked(message: Message) -> None:
            if message["type"] == "websocket.accept":
                record.status = HTTPStatus.SWITCHING_PROTOCOLS
            elif message["type"] in ("http.response.start", "websocket.http.response.start"):
                record.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = record.request_id
                headers.setdefault("X-Content-Type-Options", "nosniff")
            await send(message)

        try:
            await self.app(scope, receive, send_marked)
        except asyncio.CancelledError:
            record.status = record.status or CLIENT_GONE
            raise
        except Exception:  # the edge of a request: the caller gets the envelope, the log the traceback
            log.exception("request_crashed", path=record.path)
            if record.status:  # the answer has begun; the server must break the connection off
                raise
            await refuse(scope, receive, send_marked, IgenError())

    async def _close(self, scope: Scope, record: RequestRecord) -> None:
        seconds = time.perf_counter() - record.began
        record.duration_ms = round(seconds * 1000, 2)
        route = getattr(scope.get("route"), "path", "unmatched")
        method = record.method if record.method in METHODS else "other"
        self._metrics.requests.labels(method, route, str(record.status)).inc()
        if scope["type"] == "http":  # a WebSocket lasts as long as somebody looks
            self._metrics.seconds.labels(route).observe(seconds)
        if scope["path"] in QUIET_PATHS:
            return
        log.info("request", **record.line())
        await self._writer.put(record)


class HostMiddleware:
    """Refuses requests addressed to a name that is not ours, so that a rebound DNS name reaches nothing."""

    def __init__(self, app: ASGIApp, *, allowed: Collection[str]) -> None:
        self.app = app
        self._exact = frozenset(allowed)
        self._endings = tuple(host[1:] for host in allowed if host.startswith("*."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in ("http", "websocket") or self._allows(Headers(scope=scope).getlist("host")):
            await self.app(scope, receive, send)
            return
        error = BadRequestError(
            "This host name is not served here.",
            details=[FieldProblem("Host", "is not one of IGEN_ALLOWED_HOSTS")],
        )
        await refuse(scope, receive, send, error)

    def _allows(self, given: list[str]) -> bool:
        found = HOST.fullmatch(given[0]) if len(given) == 1 else None
        if found is None:
            return False
        host = found[1].lower()
        return "*" in self._exact or host in self._exact or host.endswith(self._endings)


@dataclass(frozen=True, slots=True)
class UploadLimit:
    """Addresses whose bodies of a kind may be longer than others. `why` is told with the limit."""

    methods: frozenset[str]
    path: re.Pattern[str]
    max_bytes: int
    kind: str = "multipart/form-data"
    why: str = ""

    def fits(self, scope: Scope, kind: str) -> bool:
        """Whether it is the limit of a request, whose body is of a kind."""
        return (
            kind.startswith(self.kind)
            and scope["method"] in self.methods
            and bool(self.path.fullmatch(scope["path"]))
        )


class BodyLimitMiddleware:
    """Stops reading a body at a limit. (Starlette's own limit answers in plain text, outside our envelope.)"""

    def __init__(self, app: ASGIApp, *, max_bytes: int, uploads: Sequence[UploadLimit] = ()) -> None:
        self.app = app
        self._max_bytes = max_bytes
        self._uploads = tuple(uploads)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit, why = self._limit(scope)
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdigit() and int(declared[:20]) > limit:
            await answer_error(scope, _too_large(limit, why))(scope, receive, send)
            return
        read = 0

        async def receive_counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > limit:
                raise _too_large(limit, why)
            return message

        await self.app(scope, receive_counted, send)

    def _limit(self, scope: Scope) -> tuple[int, str]:
        kind = Headers(scope=scope).get("content-type", JSON).strip().lower()
        upload = next((upload for upload in self._uploads if upload.fits(scope, kind)), None)
        return (self._max_bytes, "") if upload is None else (upload.max_bytes, upload.why)


def _too_large(limit: int, why: str) -> TooLargeError:
    reason = f"is longer than {limit} bytes" + (f": {why}" if why else "")
    return TooLargeError(f"The request body {reason}.", details=[FieldProblem("body", reason)])
