"""One file over HTTP, resumed where an earlier try was cut off, and checked before it gets its name.

Plain aiohttp with the operator's proxies: this is an operator's program and may fetch from anywhere, unlike the
servers, whose fetches go through `models/fetch`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CHUNK_BYTES = 1 << 20
ATTEMPTS = 6  # in a row without a byte of progress
PAUSE_S = 1.0  # before the second try; doubled for each further one
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
RESERVE_BYTES = 16 << 20  # left free on the disk

OK, PARTIAL, NOT_FOUND, WRONG_RANGE = 200, 206, 404, 416
NO_ENTRY = (401, 403)
UNKNOWN = {
    "RepoNotFound": "the hub has no checkpoint of this name, or it is private: put a token into HF_TOKEN then",
    "RevisionNotFound": "the hub has the checkpoint, but no such commit of it",
}
"""What the hub's header X-Error-Code says more clearly than its status does (a name that is not there is a 401)."""
LATER = (408, 425, 429)
SERVER_ERROR = 500
LFS_DIGEST = re.compile(r"^[0-9a-f]{64}$")
GIT_DIGEST = re.compile(r"^[0-9a-f]{40}$")
CONTENT_RANGE = re.compile(r"^bytes (\d+)-\d+/(\d+|\*)$")


class PullError(Exception):
    """A download cannot be finished; the message says why and what to do, in plain words."""


class MissingError(PullError):
    """The origin has no such file."""


class InterruptedPullError(PullError):
    """The network or the origin failed; what came is kept, and another try goes on from there."""


class Meter(Protocol):
    """Is told how far a file has come, in bytes; `total` is None while it is not known."""

    def __call__(self, done: int, total: int | None) -> None: ...


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file in its place. `commit` is what a hub says that it belongs to."""

    sha256: str
    size: int
    commit: str | None = None


@dataclass(slots=True)
class _Part:
    """What has come of a file, and by which mark of the origin it is known to be of the same version."""

    path: Path
    url: str

    @property
    def _note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    def start(self) -> tuple[int, str | None]:
        """Bytes that may be kept, and their mark; 0 where nothing is known of them."""
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            size = self.path.stat().st_size
        except (OSError, ValueError):
            return 0, None
        is_ours = isinstance(note, dict) and note.get("url") == self.url and isinstance(note.get("mark"), str)
        return (size, note["mark"]) if is_ours else (0, None)

    def open(self, start: int, mark: str | None) -> BinaryIO:
        file = self.path.open("r+b" if start else "wb")
        file.truncate(start)
        file.seek(start)
        if mark is None:
            self._note.unlink(missing_ok=True)
        else:
            self._note.write_text(json.dumps({"url": self.url, "mark": mark}), encoding="utf-8")
        return file

    def discard(self) -> None:
        self._note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def finish(self, target: Path) -> None:
        with self.path.open("r+b") as file:
            os.fsync(file.fileno())
        self.path.replace(target)
        self._note.unlink(missing_ok=True)


class Downloader:
    """Fetches files of one origin; `token` is sent to it alone, never to where it redirects."""

    def __init__(
        self, session: aiohttp.ClientSession, *, token: str | None = None, pause_s: float | None = None
    ) -> None:
        self._session, self._token = session, token
        self._pause_s = PAUSE_S if pause_s is None else pause_s

    async def fetch(self, url: str, target: Path, meter: Meter, *, sha256: str | None = None) -> Fetched:
        """Put what is at `url` at `target`, unless it is there already.

        `sha256` is what it must have; a hub's own digest, where it sends one, is compared besides.

        Raises:
            MissingError: there is nothing at this address.
            InterruptedPullError: tries in a row brought nothing; another call goes on from where this one stopped.
            PullError: it is not what it should be, the origin refuses, or the disk is full.

        """
        part = _Part(target.with_name(f"{target.name}.part"), url)
        try:
            if _is_there(target):
                return await self._check(target, {}, sha256, None)
            answer = await self._until_whole(part, meter, sha256)
            try:
                found = await self._check(part.path, answer, sha256, answer.get("commit"))
            except PullError:
                part.discard()  # wrong to the last byte, so nothing of it is worth keeping
                raise
            part.finish(target)
        except OSError as problem:
            raise PullError(
                f"{target.name} cannot be written: {problem.strerror or problem}; the same command goes on from here"
            ) from problem
        return found

    async def _until_whole(self, part: _Part, meter: Meter, sha256: str | None) -> Mapping[str, str]:
        failures, reached = 0, part.start()[0]
        while True:
            try:
                return await self._attempt(part, meter, is_checked=sha256 is not None)
            except aiohttp.InvalidURL:
                raise PullError(f"{part.url} is no address") from None
            except (aiohttp.ClientError, TimeoutError, InterruptedPullError) as problem:
                # `OSError` is among the client's errors for a connection, and apart from a disk's
                now = part.start()[0]
                failures = 1 if now > reached else failures + 1
                reached = max(now, reached)
                if failures >= ATTEMPTS:
                    raise InterruptedPullError(
                        f"{part.url}: {str(problem) or type(problem).__name__}; "
                        f"{reached} bytes are kept, the same command goes on from there"
                    ) from problem
            await asyncio.sleep(self._pause_s * 2 ** (failures - 1))

    async def _attempt(self, part: _Part, meter: Meter, *, is_checked: bool) -> Mapping[str, str]:
        start, known = part.start()
        headers = {"Accept-Encoding": "identity"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        if start:
            headers["Range"] = f"bytes={start}-"
        async with self._session.get(part.url, headers=headers, timeout=TIMEOUT) as response:
            _refuse_downgrade(part.url, response)
            answer = _marks(response)
            if _ends_at(response, start) and answer.get("mark", known) == known:
                return answer  # all had come, and the process ended before it was checked
            _check_status(part, response)
            if response.status == PARTIAL:
                total = _total_of_range(part, response, start)
                if answer.get("mark", "") != known:
                    part.discard()
                    raise InterruptedPullError("it changed at its origin meanwhile; begun anew")
            else:
                start, total = 0, response.content_length
            # without a mark or a digest, two halves of two versions could not be told from a whole
            mark = answer.get("mark") or ("" if is_checked else None)
            _check_room(part.path, start, total)
            with part.open(start, mark) as file:
                await _copy(response, file, start, total, meter)
            return answer

    @staticmethod
    async def _check(path: Path, answer: Mapping[str, str], sha256: str | None, commit: str | None) -> Fetched:
        found, size = await asyncio.to_thread(_sha256, path)
        etag = answer.get("etag", "")
        wanted = sha256 or (etag if LFS_DIGEST.match(etag) and answer.get("hub") else None)
        if wanted is not None and found != wanted:
            raise PullError(f"{path.name.removesuffix('.part')} has SHA-256 {found}, expected {wanted}; not kept")
        if sha256 is None and GIT_DIGEST.match(etag) and answer.get("hub") and _git_digest(path) != etag:
            raise PullError(f"{path.name.removesuffix('.part')} is not what the hub says it is; not kept")
        return Fetched(found, size, commit)


async def _copy(
    response: aiohttp.ClientResponse, file: BinaryIO, start: int, total: int | None, meter: Meter
) -> None:
    done = start
    meter(done, total)
    async for chunk in response.content.iter_chunked(CHUNK_BYTES):
        file.write(chunk)
        file.flush()  # a killed process keeps what it has
        done += len(chunk)
        meter(done, total)
    if total is not None and done != total:
        raise InterruptedPullError(f"the connection ended at {done} of {total} bytes")


def _check_status(part: _Part, response: aiohttp.ClientResponse) -> None:
    status = response.status
    if told := UNKNOWN.get(response.headers.get("X-Error-Code", "")):
        raise PullError(f"{part.url}: {told}")
    if status == NOT_FOUND:
        raise MissingError(f"{part.url} is not there")
    if status in NO_ENTRY:
        raise PullError(
            f"{part.url}: the origin says no ({status}); for a gated or private checkpoint accept its terms on its "
            "page and put a token into HF_TOKEN"
        )
    if status == WRONG_RANGE:
        part.discard()
        raise InterruptedPullError("it is shorter than what was kept of it; begun anew")
    if status in LATER or status >= SERVER_ERROR:
        raise InterruptedPullError(f"the origin answered {status}")
    if status not in (OK, PARTIAL):
        raise PullError(f"{part.url}: the origin answered {status}")


def _ends_at(response: aiohttp.ClientResponse, start: int) -> bool:
    return response.status == WRONG_RANGE and response.headers.get("Content-Range") == f"bytes */{start}"


def _refuse_downgrade(url: str, response: aiohttp.ClientResponse) -> None:
    if url.startswith("https:") and response.url.scheme != "https":
        raise PullError(f"{url} redirects to an address without encryption; not followed")


def _marks(response: aiohttp.ClientResponse) -> dict[str, str]:
    """What tells one version from another. A hub says it of its large files before it redirects to their store."""
    for answer in (*response.history, response):
        linked = answer.headers.get("X-Linked-Etag")
        etag = linked or answer.headers.get("ETag")
        commit = answer.headers.get("X-Repo-Commit")
        if linked or commit:
            bare = (etag or "").removeprefix("W/").strip('"')
            return {"mark": bare, "etag": bare, "hub": "yes", **({"commit": commit} if commit else {})}
    etag = response.headers.get("ETag", "")
    mark = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
    return {"mark": mark} if mark else {}


def _total_of_range(part: _Part, response: aiohttp.ClientResponse, start: int) -> int | None:
    found = CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
    if found is None or int(found[1]) != start:
        part.discard()
        raise InterruptedPullError("the origin answered with another range than was asked for; begun anew")
    return None if found[2] == "*" else int(found[2])


def _check_room(path: Path, start: int, total: int | None) -> None:
    free = shutil.disk_usage(path.parent).free
    needed = (total or 0) - start + RESERVE_BYTES
    if needed > free:
        raise PullError(
            f"the disk of {path.parent} has {free / 1e9:.2f} GB free, and {needed / 1e9:.2f} GB are needed; "
            "make room, the same command goes on from here"
        )


def _is_there(target: Path) -> bool:
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.is_file()


def _sha256(path: Path) -> tuple[str, int]:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size


def _git_digest(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def open_session(**options: Any) -> aiohttp.ClientSession:
    """A session that honours HTTPS_PROXY and the like."""
    return aiohttp.ClientSession(trust_env=True, **options)
