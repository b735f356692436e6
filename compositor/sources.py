"""Product pictures out of the web: bounded per host and in total, conditional, each address fetched once at a time.

What comes back is a file whose first bytes are a picture's; whether the rest is one, the compose step says.
"""

from __future__ import annotations

import asyncio
import random
import re
import secrets
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from yarl import URL

from compositor.signatures import SIGNATURE_BYTES, looks_like
from models.fetch import (
    FetchBlockedError,
    FetchError,
    FetchStorageError,
    FetchTimeoutError,
    FetchTooLargeError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from models.fetch import Downloaded, SafeFetcher

ACCEPT = "image/jpeg,image/png,image/webp,image/gif,image/bmp;q=0.9,image/*;q=0.8"
MAX_BYTES = 32 * 2**20
TIMEOUT_S = 20.0
TRIES = 3
FIRST_PAUSE_S = 0.3
LONGEST_PAUSE_S = 5.0
"""A `Retry-After` beyond this is not waited for: the run goes on and the product can be retried later."""

ETAG_MAX_CHARS = 512
DATE_MAX_CHARS = 64
_VALIDATOR = re.compile(r"[\x20-\x7e]+")
_BUSY = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})


@dataclass(frozen=True, slots=True)
class Known:
    """What an earlier fetch of the same address brought."""

    sha256: str
    etag: str | None = None
    last_modified: str | None = None
    bytes: int = 0

    @property
    def conditions(self) -> dict[str, str]:
        """Headers that ask for the picture only if it has changed."""
        named = {"If-None-Match": self.etag, "If-Modified-Since": self.last_modified}
        return {name: value for name, value in named.items() if value}


@dataclass(frozen=True, slots=True)
class SourcePicture:
    """A fetched picture. `path` is None when the server said that it is the known one (304).

    `unchanged` says that the bytes are those of `known`, whether the server said so or they came again. `etag` and
    `last_modified` are for the next conditional request.
    """

    path: Path | None
    sha256: str
    etag: str | None
    last_modified: str | None
    bytes: int
    unchanged: bool


class SourceError(Exception):
    """A product's picture cannot be had. `message` is public.

    Codes: source_blocked, source_not_found (404, 410), source_refused (other 3xx and 4xx), source_unavailable (5xx,
    429, no connection, TLS, broken HTTP, each after retries), source_timeout, source_too_large, source_not_an_image,
    and source_not_stored (this machine's disk; no fault of the product).
    """

    def __init__(self, code: str, message: str, *, retryable: bool = False) -> None:
        self.code = code
        self.message = message
        self.retryable = retryable
        super().__init__(f"{code}: {message}")


class SourceFetcher:
    """Fetches product pictures. One for a process, in the loop that it was made in."""

    def __init__(
        self,
        fetcher: SafeFetcher,
        per_host: int = 8,
        total: int = 32,
        *,
        max_bytes: int = MAX_BYTES,
        timeout_s: float = TIMEOUT_S,
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        """Take the bounds.

        Args:
            fetcher: an entered `SafeFetcher`.
            per_host: fetches under way to one host at a time.
            total: fetches under way at a time.
            max_bytes: size of the largest picture taken.
            timeout_s: of one try, redirects and body included; waiting for a turn is not counted.
            first_pause_s: before the second try; each later pause is twice as long.

        """
        self._fetcher = fetcher
        self._turns = _Turns(per_host, total)
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._first_pause_s = first_pause_s
        self._shared: dict[tuple[str, Known | None, Path], _Shared] = {}

    async def get(self, url: str, known: Known | None, folder: Path) -> SourcePicture:
        """Fetch `url` into `folder`, under a name that is the hash of the content.

        Concurrent calls with the same arguments share one request and one file. Files belong to the folder: delete
        it, or a file once nobody can be using it.

        Raises:
            SourceError: see its codes.

        """
        key = (url.strip(), known, folder)
        shared = self._shared.get(key)
        if shared is None:
            shared = self._shared[key] = _Shared(asyncio.create_task(self.fetch(*key)))
        shared.waiting += 1
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.waiting -= 1
            if shared.task.done() or not shared.waiting:
                shared.task.cancel()  # nothing when it is done
                if self._shared.get(key) is shared:
                    del self._shared[key]

    async def fetch(self, url: str, known: Known | None, folder: Path) -> SourcePicture:
        """As `get`, for a caller that asks for no address twice at a time: a request of its own.

        Raises:
            SourceError: see its codes.

        """
        pause = self._first_pause_s
        for left in reversed(range(TRIES)):
            try:
                return await self._try(url, known, folder)
            except _BusyError as busy:
                wait = max(busy.retry_after_s, pause * random.uniform(0.75, 1.25))
                if not left or wait > LONGEST_PAUSE_S:
                    raise SourceError("source_unavailable", busy.message, retryable=True) from None
            await asyncio.sleep(wait)
            pause *= 2
        raise AssertionError("the last try returns or raises")

    async def _try(self, url: str, known: Known | None, folder: Path) -> SourcePicture:
        target = folder / f"{secrets.token_hex(16)}.fetched"
        conditions = known.conditions if known else {}
        async with self._turns.take(_host(url)):
            try:
                got = await self._fetcher.download(
                    url,
                    target,
                    headers={"Accept": ACCEPT, **conditions},
                    total_timeout_s=self._timeout_s,
                    max_wire_bytes=self._max_bytes,
                    max_decoded_bytes=self._max_bytes,
                )
            except FetchError as error:
                raise _from_fetch(error) from None
        etag, modified = _validators(got.headers)
        if known and got.status == HTTPStatus.NOT_MODIFIED and conditions:
            return SourcePicture(
                None, known.sha256, etag or known.etag, modified or known.last_modified, known.bytes, unchanged=True
            )
        if not got.stored:
            raise _from_status(got)
        path = _checked(got.head, target, folder / got.sha256)
        unchanged = known is not None and known.sha256 == got.sha256
        return SourcePicture(path, got.sha256, etag, modified, got.bytes, unchanged)


@dataclass(slots=True)
class _Shared:
    """One fetch and how many wait for it; the last to be cancelled cancels it."""

    task: asyncio.Task[SourcePicture]
    waiting: int = 0


class _Turns:
    """Bounds per host and in total. A host's turn is taken first, so a slow host holds none of the others'."""

    def __init__(self, per_host: int, total: int) -> None:
        self._per_host = per_host
        self._total = asyncio.Semaphore(total)
        self._hosts: dict[str, tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def take(self, host: str) -> AsyncIterator[None]:
        turns, users = self._hosts.get(host) or (asyncio.Semaphore(self._per_host), 0)
        self._hosts[host] = turns, users + 1
        try:
            async with turns, self._total:
                yield
        finally:
            users = self._hosts[host][1] - 1
            if users:
                self._hosts[host] = turns, users
            else:
                del self._hosts[host]


class _BusyError(Exception):
    """A failure that may be gone in a moment."""

    def __init__(self, message: str, retry_after_s: float = 0) -> None:
        self.message = message
        self.retry_after_s = retry_after_s
        super().__init__(message)


def _host(url: str) -> str:
    try:
        return (URL(url).raw_host or "").rstrip(".")
    except ValueError:
        return ""  # the fetch will say what is wrong with it


def _from_fetch(error: FetchError) -> SourceError | _BusyError:
    match error:
        case FetchBlockedError():
            return SourceError("source_blocked", error.message)
        case FetchTimeoutError():
            return SourceError("source_timeout", "The picture's server did not answer in time.", retryable=True)
        case FetchTooLargeError():
            return SourceError("source_too_large", "The picture's file is too large.")
        case FetchStorageError():
            return SourceError("source_not_stored", error.message, retryable=True)
    return _BusyError(error.message)


def _from_status(got: Downloaded) -> SourceError | _BusyError:
    status = got.status
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _BUSY:
        return _BusyError(f"The picture's server answered {status}.", _retry_after(got.headers))
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        return SourceError("source_not_found", f"There is no picture at this address ({status}).")
    return SourceError("source_refused", f"The picture's server answered {status}.")


def _retry_after(headers: Mapping[str, str]) -> float:
    """The seconds asked for; a date counts as too long to wait."""
    given = headers.get("Retry-After", "").strip()
    if not given:
        return 0
    return float(given) if given.isascii() and given.isdigit() else LONGEST_PAUSE_S + 1


def _validators(headers: Mapping[str, str]) -> tuple[str | None, str | None]:
    return _kept(headers, "ETag", ETAG_MAX_CHARS), _kept(headers, "Last-Modified", DATE_MAX_CHARS)


def _kept(headers: Mapping[str, str], name: str, max_chars: int) -> str | None:
    value = headers.get(name, "").strip()
    return value if len(value) <= max_chars and _VALIDATOR.fullmatch(value) else None


def _checked(head: bytes, fetched: Path, target: Path) -> Path:
    """Look at the first bytes and give the file its final name; what is no picture is deleted."""
    problem = looks_like(head[:SIGNATURE_BYTES])
    try:
        if problem is None:
            return fetched.replace(target)
        fetched.unlink()
    except OSError:
        raise SourceError("source_not_stored", "The picture could not be stored.", retryable=True) from None
    raise SourceError("source_not_an_image", problem)
