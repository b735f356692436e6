"""SafeFetcher: one deadline around DNS, connect, every redirect and the body."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Self, TypedDict, TypeVar, Unpack

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from models.fetch.body import ACCEPT_ENCODING, read_body
from models.fetch.connect import CheckedResolver, RefusedAddressError, hop_is_allowed, make_connector
from models.fetch.download import Downloaded, save_body
from models.fetch.errors import FetchBlockedError, FetchError, FetchFailedError, FetchTimeoutError
from models.fetch.policy import FetchPolicy, Target, parse_target

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path
    from ssl import SSLContext
    from types import TracebackType

Answer = TypeVar("Answer")

USER_AGENT = "IGen"
REDIRECTS = frozenset(
    {
        HTTPStatus.MOVED_PERMANENTLY,
        HTTPStatus.FOUND,
        HTTPStatus.SEE_OTHER,
        HTTPStatus.TEMPORARY_REDIRECT,
        HTTPStatus.PERMANENT_REDIRECT,
    }
)
KEPT_ACROSS_ORIGINS = frozenset({"accept", "content-type"})
"""Caller headers that say nothing about the caller; all others stay with the origin they were meant for."""
OURS_ALONE = frozenset({"host", "content-length", "transfer-encoding", "connection", "accept-encoding", "cookie"})


class Limits(TypedDict, total=False):
    """Bounds of one request that override the policy's."""

    total_timeout_s: float
    max_wire_bytes: int
    max_decoded_bytes: int


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer, whatever its status. `headers` ignores case; `url` is the last one after redirects."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str

    @property
    def ok(self) -> bool:
        """Whether the status is 2xx."""
        return HTTPStatus.OK <= self.status < HTTPStatus.MULTIPLE_CHOICES


@dataclass(frozen=True, slots=True)
class _Hop:
    """One request of a chain of redirects."""

    method: str
    target: Target
    headers: CIMultiDict[str]
    body: bytes | None


class SafeFetcher:
    """Fetches caller-supplied addresses. Use as an async context manager, one for a process.

    Every name is resolved once per hop and refused when any of its addresses is not public; the connection goes to
    an address from that answer, with the name kept for Host and TLS. Proxy variables, netrc and cookies are ignored.
    """

    def __init__(self, policy: FetchPolicy, *, ssl_context: SSLContext | None = None) -> None:
        """Take the bounds.

        Args:
            policy: the bounds of every request.
            ssl_context: trust other authorities than the system's.

        """
        self._policy = policy
        self._ssl_context = ssl_context
        self._resolver: CheckedResolver | None = None
        self._session: aiohttp.ClientSession | None = None
        self._bulk: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._resolver = CheckedResolver(self._policy)
        self._session = self._open_session(self._resolver, pooled=False)
        self._bulk = self._open_session(self._resolver, pooled=True)
        return self

    def _open_session(self, resolver: CheckedResolver, *, pooled: bool) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=make_connector(resolver, self._ssl_context, pooled=pooled),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._policy.connect_timeout_s),
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for session in (self._session, self._bulk):
            if session is not None:
                await session.close()
        if self._resolver is not None:
            await self._resolver.close()
        self._session = self._bulk = self._resolver = None

    async def get(self, url: str, *, headers: Mapping[str, str] | None = None, **limits: Unpack[Limits]) -> Fetched:
        """`request` with GET."""
        return await self.request("GET", url, headers=headers, **limits)

    async def put(
        self, url: str, data: bytes, headers: Mapping[str, str] | None = None, **limits: Unpack[Limits]
    ) -> Fetched:
        """`request` with PUT."""
        return await self.request("PUT", url, headers=headers, body=data, **limits)

    async def post_json(
        self, url: str, payload: object, *, headers: Mapping[str, str] | None = None, **limits: Unpack[Limits]
    ) -> Fetched:
        """`request` with POST and a JSON body. ValueError for NaN and infinities, which JSON has not."""
        body = json.dumps(payload, allow_nan=False, separators=(",", ":")).encode()
        given = CIMultiDict({"Content-Type": "application/json", **(headers or {})})
        return await self.request("POST", url, headers=given, body=body, **limits)

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        **limits: Unpack[Limits],
    ) -> Fetched:
        """Fetch one address; `limits` override the policy for this request.

        Raises:
            FetchBlockedError: the address or a redirect's is not allowed, or there are too many redirects.
            FetchTimeoutError: connecting or the whole took too long.
            FetchTooLargeError: the answer is over a cap.
            FetchFailedError: DNS, connect, TLS, protocol or encoding.

        """
        policy = replace(self._policy, **limits)
        hop = _Hop(method.upper(), parse_target(url, policy), _own_headers(headers), body)

        async def read(response: aiohttp.ClientResponse, at: str) -> Fetched:
            content = await read_body(response, policy.max_wire_bytes, policy.max_decoded_bytes)
            return Fetched(response.status, response.headers, content, at)

        return await self._fetch(self._session, hop, policy, read)

    async def download(
        self, url: str, target: Path, *, headers: Mapping[str, str] | None = None, **limits: Unpack[Limits]
    ) -> Downloaded:
        """GET one address into a file, in constant memory; made for bulk work, so connections are kept and reused.

        `target` is replaced in one step when a whole 200 has arrived. Any other status is an answer without a
        file (its body is not read), and it, an error or a cancellation leaves `target` as it was and nothing
        beside it.

        Raises:
            FetchError: as `request`.
            FetchStorageError: the file could not be written.

        """
        policy = replace(self._policy, **limits)
        hop = _Hop("GET", parse_target(url, policy), _own_headers(headers), None)

        async def save(response: aiohttp.ClientResponse, at: str) -> Downloaded:
            return await save_body(response, at, target, policy)

        return await self._fetch(self._bulk, hop, policy, save)

    async def _fetch(
        self,
        session: aiohttp.ClientSession | None,
        hop: _Hop,
        policy: FetchPolicy,
        take: Callable[[aiohttp.ClientResponse, str], Awaitable[Answer]],
    ) -> Answer:
        if session is None:
            raise RuntimeError("SafeFetcher is used outside its context")
        try:
            async with asyncio.timeout(policy.total_timeout_s):
                return await _follow(session, hop, policy, take)
        except FetchError:
            raise
        except TimeoutError:
            raise FetchTimeoutError from None
        except (aiohttp.ClientError, OSError) as error:
            raise _public_error(error) from None


async def _follow(
    session: aiohttp.ClientSession,
    hop: _Hop,
    policy: FetchPolicy,
    take: Callable[[aiohttp.ClientResponse, str], Awaitable[Answer]],
) -> Answer:
    for _ in range(policy.max_redirects + 1):
        async with await _send(session, hop) as response:
            location = response.headers.get("Location")
            if response.status not in REDIRECTS or not location:
                return await take(response, str(hop.target.url))
        hop = _next_hop(hop, response.status, location, policy)
    raise FetchBlockedError(f"The address redirects more than {policy.max_redirects} times.")


async def _send(session: aiohttp.ClientSession, hop: _Hop) -> aiohttp.ClientResponse:
    token = hop_is_allowed.set(hop.target.allowed)
    try:
        return await session.request(
            hop.method,
            hop.target.url,
            headers=hop.headers,
            data=None if hop.body is None else io.BytesIO(hop.body),
            allow_redirects=False,
        )
    finally:
        hop_is_allowed.reset(token)


def _own_headers(given: Mapping[str, str] | None) -> CIMultiDict[str]:
    headers = CIMultiDict({"User-Agent": USER_AGENT, "Accept-Encoding": ACCEPT_ENCODING})
    for name, value in (given or {}).items():
        if name.lower() in OURS_ALONE:
            raise ValueError(f"the header {name} is not the caller's to set")
        headers[name] = value
    return headers


def _next_hop(hop: _Hop, status: int, location: str, policy: FetchPolicy) -> _Hop:
    """Where a redirect leads, checked like a first address (RFC 9110 15.4 and the fetch standard's methods)."""
    try:
        url = hop.target.url.join(URL(location, encoded=location.isascii()))
    except (ValueError, TypeError):
        raise FetchBlockedError("The address redirects to something that is not a valid URL.") from None
    target = parse_target(str(url), policy)
    becomes_get = (status == HTTPStatus.SEE_OTHER and hop.method not in ("GET", "HEAD")) or (
        status in (HTTPStatus.MOVED_PERMANENTLY, HTTPStatus.FOUND) and hop.method == "POST"
    )
    method, body = ("GET", None) if becomes_get else (hop.method, hop.body)
    if body is not None and hop.target.url.scheme == "https" and target.url.scheme == "http":
        raise FetchBlockedError("The address redirects a body from https to http.")
    headers = hop.headers if target.origin == hop.target.origin else _without_callers(hop.headers)
    if body is None:
        headers = CIMultiDict((name, value) for name, value in headers.items() if name.lower() != "content-type")
    return _Hop(method, target, headers, body)


def _without_callers(headers: CIMultiDict[str]) -> CIMultiDict[str]:
    return _own_headers({name: value for name, value in headers.items() if name.lower() in KEPT_ACROSS_ORIGINS})


def _public_error(error: Exception) -> FetchError:
    """One plain sentence for each kind; aiohttp's own text may hold an address that DNS gave."""
    cause: object = getattr(error, "os_error", error)
    if isinstance(cause, RefusedAddressError):
        return FetchBlockedError("The address is not on the public internet.")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return FetchFailedError("The host name could not be resolved.")
    if isinstance(error, (aiohttp.ClientSSLError, aiohttp.ClientConnectorCertificateError)):
        return FetchFailedError("TLS failed: the certificate or the handshake is not good.")
    if isinstance(error, aiohttp.ClientConnectorError):
        return FetchFailedError("The connection could not be made.")
    return FetchFailedError("The other side broke the HTTP exchange off or did not speak HTTP.")
