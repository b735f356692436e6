"""Requests to a gateway, each one HTTP exchange with its outcome sorted: an answer, or why there is none."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scripts.calling.access import Access

CONNECT_S = 10.0
ANSWER_S = 400.0
"""Longer than the gateway lets a caller wait (its generation timeout and a minute); asking again joins the job."""
MOST_ANSWER_BYTES = 32 * 1024**2
LONGEST_RETRY_AFTER_S = 3600.0
SHOWN_CHARS = 300


class UnreachableError(Exception):
    """No answer arrived; the gateway may or may not have the request. The message says what happened."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer read whole. `body` is the JSON document, or None where it is none."""

    status: int
    headers: Mapping[str, str]
    raw: bytes = field(repr=False)
    body: Any

    @property
    def error(self) -> dict[str, Any]:
        """The error envelope's inside; empty where the answer has none, such as a proxy's own page."""
        found = self.body.get("error") if isinstance(self.body, dict) else None
        return found if isinstance(found, dict) else {}

    @property
    def code(self) -> str:
        """The error's code, or the status where there is none."""
        return str(self.error.get("code") or f"http_{self.status}")

    @property
    def reason(self) -> str:
        """The error in words."""
        if self.error:
            return str(self.error.get("message") or self.code)
        text = self.raw[:SHOWN_CHARS].decode("utf-8", "replace").strip()
        return f"the answer was {self.status}" + (f": {text}" if text else "")

    @property
    def retry_after_s(self) -> float | None:
        """Seconds after which to come back, where the answer says so."""
        value = self.headers.get("Retry-After", "")
        plausible = value.isascii() and value.isdigit() and len(value) < 10  # noqa: PLR2004 - no absurd numbers
        return min(float(value), LONGEST_RETRY_AFTER_S) if plausible else None


class Gateway:
    """One gateway and its pooled connections. Use it as an async context manager."""

    def __init__(self, access: Access, *, connections: int = 32, answer_s: float = ANSWER_S) -> None:
        self.access = access
        self._connections = connections
        self._answer_s = answer_s
        self._http: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        """Open the pool; connections are made when needed."""
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections),
            timeout=aiohttp.ClientTimeout(total=self._answer_s, sock_connect=CONNECT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "igen-scripts", "Accept-Encoding": "identity"},
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the pool."""
        await self._http.close()

    @property
    def http(self) -> aiohttp.ClientSession:
        """The session, for what is no plain request."""
        return self._http

    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        form: aiohttp.FormData | None = None,
        anonymous: bool = False,
        most_bytes: int = MOST_ANSWER_BYTES,
    ) -> Reply:
        """One exchange. Redirects are not followed: the key is for this address alone.

        Raises:
            UnreachableError: no answer, a broken one, or one beyond `most_bytes`.

        """
        sent = {**({} if anonymous else self.access.headers), **(headers or {})}
        try:
            async with self._http.request(
                method, self.access.url + path, json=body, data=form, headers=sent, allow_redirects=False
            ) as answer:
                raw = await _read(answer, most_bytes)
                return Reply(answer.status, answer.headers.copy(), raw, _document(answer, raw))
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as problem:
            raise UnreachableError(_words(problem)) from None

    def path_of(self, link: str) -> str:
        """The path, below this gateway's address, of a link in its answers.

        Links begin with the gateway's public address, which need not be the one that it is called by.
        """
        parts = urlsplit(link)
        for top in ("/media/", "/feeds/", "/api/"):
            if top in parts.path:
                return parts.path[parts.path.index(top) :] + (f"?{parts.query}" if parts.query else "")
        return parts.path


async def _read(answer: aiohttp.ClientResponse, most: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in answer.content.iter_any():
        size += len(part)
        if size > most:
            raise UnreachableError(f"the answer is longer than {most} bytes")
        parts.append(part)
    return b"".join(parts)


def _document(answer: aiohttp.ClientResponse, raw: bytes) -> Any:
    if answer.content_type != "application/json":
        return None
    try:
        return json.loads(raw)
    except ValueError:
        return None


def _words(problem: BaseException) -> str:
    if isinstance(problem, aiohttp.ClientConnectorError):
        return f"no connection to {problem.host}:{problem.port}: {problem.os_error.strerror or problem.os_error}"
    if isinstance(problem, (TimeoutError, asyncio.TimeoutError)):
        return "no answer in time"
    return str(problem) or type(problem).__name__
