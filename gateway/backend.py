"""The client of a generation backend: RunPod's queue API, spoken the same to our own server and to RunPod.

Each method is one HTTP exchange with its outcome sorted: an answer, a refusal, or a connection that failed before or
after the request left. What to do about it is the forwarder's business.
"""

from __future__ import annotations

import asyncio
import io
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
from pydantic import ValidationError
from pydantic_core import from_json

from gateway.failures import (
    INPUT_FAILURES,
    BackendAnswerError,
    BackendAuthError,
    BackendFullError,
    DeadlineUnreachableError,
    GenerationError,
    GenerationInputError,
)
from models.errors import FieldProblem
from models.logs import get_logger
from models.wire import JobAnswer, JobRequest, VerifyRequest

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from gateway.settings import BackendKind

CONNECT_S = 5.0
ANSWER_S = 15.0
"""How long an answer may take beyond the time that the backend was asked to wait."""
PING_S = 2.0
LONGEST_RETRY_AFTER_S = 3600
SHOWN_PROBLEMS = 20
SHOWN_CHARS = 300
STILL_LOADING = "The backend is still loading its checkpoint. Try again later."

log = get_logger(__name__)


class NotSentError(Exception):
    """No connection could be made: the backend knows nothing of the request."""


class AnswerLostError(Exception):
    """The request left and its answer did not arrive: the backend may or may not have acted on it."""


class BackendFaultError(GenerationError):
    """A status that the wire does not provide for, 500 above all."""


class UnknownJobError(Exception):
    """The backend does not know the job's id."""


class Backend:
    """One backend and its pooled connections. Use it as an async context manager."""

    def __init__(
        self, url: str, key: str, kind: BackendKind, *, max_answer_bytes: int, max_connections: int = 100
    ) -> None:
        self.url = url
        self.kind = kind
        self._key = key
        self._max_bytes = max_answer_bytes
        self._max_connections = max_connections
        self._http: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        """Open the pool; connections are made when needed."""
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._max_connections, limit_per_host=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={"Accept-Encoding": "identity", "User-Agent": "igen-gateway"},
        )
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _problem: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Close the pool."""
        await self._http.close()

    async def run(self, job: JobRequest, *, correlation: str) -> JobAnswer:
        """Queue a job and return at once. The connection is a fresh one: a pooled one may just have been closed by
        the other side, which would leave it unknown whether the job was taken.
        """
        return await self._submit("/run", job, {}, correlation, {"Connection": "close"})

    async def runsync(self, job: JobRequest, *, wait_s: float, correlation: str) -> JobAnswer:
        """Queue a job and wait for it, up to `wait_s`; the answer may be of a job still under way."""
        return await self._submit("/runsync", job, _wait(wait_s), correlation, {}, wait_s=wait_s)

    async def verify(self, asked: VerifyRequest, *, wait_s: float, correlation: str) -> JobAnswer:
        """Have a receipt's pictures drawn again; a self-hosted backend alone can do so. Answers as `runsync`."""
        body = await asyncio.to_thread(lambda: asked.model_dump_json(exclude_none=True).encode())
        headers = {"X-Request-ID": correlation}
        return _answer(
            *await self._exchange("POST", "/verify", _wait(wait_s), body=body, headers=headers, wait_s=wait_s)
        )

    async def status(self, job_id: str, *, wait_s: float = 0) -> JobAnswer:
        """Ask for a job; a self-hosted backend answers when it changes or after `wait_s`.

        Raises:
            UnknownJobError: the backend does not know it (any more).

        """
        status, _, raw = await self._exchange(
            "GET", f"/status/{quote(job_id, safe='')}", _wait(wait_s), wait_s=wait_s
        )
        if status == 404:  # noqa: PLR2004
            raise UnknownJobError(job_id)
        return _answer(status, {}, raw)

    async def stream(self, job_id: str) -> list[object]:
        """What the job has said since it was last asked here; every piece is handed out once.

        Raises:
            UnknownJobError: the backend does not know it (any more).

        """
        status, _, raw = await self._exchange("GET", f"/stream/{quote(job_id, safe='')}", {})
        if status == 404:  # noqa: PLR2004
            raise UnknownJobError(job_id)
        try:
            pieces = from_json(raw)["stream"] if status == 200 else []  # noqa: PLR2004
            return [piece.get("output") for piece in pieces]
        except (ValueError, LookupError, TypeError, AttributeError):
            raise BackendAnswerError from None

    async def cancel(self, job_id: str) -> None:
        """Ask that a job end; the answer does not matter."""
        await self._exchange("POST", f"/cancel/{quote(job_id, safe='')}", {})

    async def ping(self) -> bool:
        """Whether the backend answers its health address with our key, within two seconds."""
        try:
            async with asyncio.timeout(PING_S):
                status, _, _ = await self._exchange("GET", "/health", {})
        except (NotSentError, AnswerLostError, BackendAnswerError, TimeoutError):
            return False
        return status == 200  # noqa: PLR2004

    async def _submit(
        self,
        path: str,
        job: JobRequest,
        query: dict[str, str],
        correlation: str,
        extra: dict[str, str],
        *,
        wait_s: float = 0,
    ) -> JobAnswer:
        headers = {"Idempotency-Key": str(job.input.request_id), "X-Request-ID": correlation, **extra}
        body = await asyncio.to_thread(_encoded, job) if job.input.image else _encoded(job)
        status, answer_headers, raw = await self._exchange(
            "POST", path, query, body=body, headers=headers, wait_s=wait_s
        )
        return _answer(status, answer_headers, raw)

    async def _exchange(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        *,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        wait_s: float = 0,
    ) -> tuple[int, dict[str, str], bytes]:
        """One request. Returns status, headers with names in lower case, and the body.

        Raises:
            NotSentError: no connection.
            AnswerLostError: the connection broke, or the answer took too long.
            BackendAnswerError: the answer is longer than allowed.

        """
        sent = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        if body is not None:
            sent["Content-Type"] = "application/json"
        limit = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=wait_s + ANSWER_S)
        try:
            async with self._http.request(
                method,
                self.url + path,
                params=query,
                data=None if body is None else io.BytesIO(body),  # sent a piece at a time
                headers={**sent, **(headers or {})},
                timeout=limit,
                allow_redirects=False,
            ) as answer:
                raw = await self._read(answer)
                return answer.status, {name.lower(): value for name, value in answer.headers.items()}, raw
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as problem:
            raise NotSentError(_reason(problem)) from problem
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as problem:
            # ValueError: aiohttp's way to say that a header or a chunk of the answer is malformed
            raise AnswerLostError(_reason(problem)) from problem

    async def _read(self, answer: aiohttp.ClientResponse) -> bytes:
        parts: list[bytes] = []
        total = 0
        async for part in answer.content.iter_any():
            total += len(part)
            if total > self._max_bytes:
                answer.close()
                log.error("backend_answer_too_long", limit_bytes=self._max_bytes)
                raise BackendAnswerError("The backend's answer is longer than allowed.")
            parts.append(part)
        return b"".join(parts)


def _encoded(job: JobRequest) -> bytes:
    body = {
        "input": job.input.model_dump(mode="json", exclude_none=True, exclude_defaults=True),
        "policy": job.policy.model_dump(mode="json", exclude={"lowPriority"}),
    }
    return json.dumps(body, separators=(",", ":")).encode()


def _wait(seconds: float) -> dict[str, str]:
    return {"wait": str(int(seconds * 1000))} if seconds > 0 else {}


def _answer(status: int, headers: dict[str, str], raw: bytes) -> JobAnswer:
    """A job's answer, or the refusal that stands in its place."""
    if status == 200:  # noqa: PLR2004
        return _parse(raw)
    reasons: dict[int, type[GenerationError]] = {
        401: BackendAuthError,
        403: BackendAuthError,
        429: BackendFullError,
        503: BackendFullError,
    }
    log.warning("backend_refused", status=status, body=raw[:SHOWN_CHARS].decode(errors="replace"))
    if status == 422:  # noqa: PLR2004
        raise _refused_input(raw)
    if status == 429 and (told := _told(raw)).get("code") == DeadlineUnreachableError.code:  # noqa: PLR2004
        message = str(told.get("message") or "")[:SHOWN_CHARS]
        raise DeadlineUnreachableError(message or None, retry_after_s=_retry_after(headers) or 1)
    kind = reasons.get(status, BackendFaultError)
    if kind is BackendFullError:
        loading = _told(raw).get("code") == "loading"
        raise BackendFullError(STILL_LOADING if loading else None, retry_after_s=_retry_after(headers))
    raise kind()


def _parse(raw: bytes) -> JobAnswer:
    try:
        document = from_json(raw, allow_inf_nan=False)
        if isinstance(document, dict) and document.get("status") == "RUNNING":
            document["status"] = "IN_PROGRESS"  # RunPod's documentation lists both
        answer = JobAnswer.model_validate(document)
    except (ValueError, ValidationError) as problem:  # malformed JSON is a ValueError
        log.warning("backend_bad_answer", reason=type(problem).__name__, begins=raw[:SHOWN_CHARS].decode("latin-1"))
        raise BackendAnswerError from None
    return answer


def _told(raw: bytes) -> dict[str, Any]:
    """The error in a refusal's envelope; empty where the answer has another shape."""
    try:
        error = from_json(raw)["error"]
    except (ValueError, LookupError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}


def _refused_input(raw: bytes) -> GenerationError:
    """The backend's 422, its fields under the names that our callers use. A shape that we do not know says less."""
    error = _told(raw)
    kind = INPUT_FAILURES.get(str(error.get("code")), GenerationInputError)
    try:
        details = [
            FieldProblem(str(item["field"])[:100].removeprefix("input."), str(item["reason"])[:SHOWN_CHARS])
            for item in error["details"][:SHOWN_PROBLEMS]
        ]
    except (LookupError, TypeError):
        return kind()
    message = "; ".join(f"{item.field}: {item.reason}" for item in details[:5])
    return kind(message or None, details=details)


def _retry_after(headers: dict[str, str]) -> int | None:
    value = headers.get("retry-after", "")
    plausible = value.isascii() and value.isdigit() and len(value) < 10  # noqa: PLR2004
    return min(max(int(value), 1), LONGEST_RETRY_AFTER_S) if plausible else None


def _reason(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {problem}"[:SHOWN_CHARS]
