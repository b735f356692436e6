"""The products' pictures of one chunk: each address asked once, only for what changed, and kept in the store."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, select

from compositor.names import source_key
from compositor.sources import Known, SourcePicture
from models.db import utc_now
from models.logs import get_logger
from models.store import NewObject, StoreError
from models.tables import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from datetime import datetime
    from pathlib import Path

    from compositor.kit import Kit
    from models.tables import Run


STORED = select(
    *(Source.url_sha256, Source.sha256, Source.object_key, Source.bytes),
    *(Source.etag, Source.last_modified, Source.checked_at),
).where(Source.owner_id == bindparam("of_owner"), Source.url_sha256.in_(bindparam("of_addresses", expanding=True)))

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Stored:
    """What a row of `STORED` says."""

    url_sha256: str
    sha256: str
    object_key: str
    bytes: int
    etag: str | None
    last_modified: str | None
    checked_at: datetime


@dataclass(slots=True)
class Picture:
    """A product's picture: its hash, its place in the store, and its file once somebody needs that."""

    sha256: str
    key: str
    path: Path | None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Pictures:
    """Fetches for one chunk into one folder.

    `on_learned` is told the row of each picture that is new or changed, and the file that the store is to have before
    that row is written, unless it has it.
    """

    def __init__(
        self, kit: Kit, run: Run, folder: Path, on_learned: Callable[[dict[str, Any], NewObject | None], None]
    ) -> None:
        self._kit = kit
        self._run = run
        self._folder = folder
        self._on_learned = on_learned
        self._known: dict[str, _Stored] = {}
        self._asked: dict[str, asyncio.Future[Picture]] = {}

    async def learn(self, urls: Collection[str]) -> None:
        """Read what is known of these addresses and still whole in the store; nobody deletes that during a run."""
        by_hash = {_hash(url): url for url in urls}
        which = {"of_owner": self._run.owner_id, "of_addresses": sorted(by_hash)}
        found = await self._kit.db.read_at_once(lambda connection: connection.execute(STORED, which).all())
        rows = [_Stored(*row) for row in found]
        there = await self._kit.store.sizes({row.object_key for row in rows}) if rows else {}
        self._known = {by_hash[row.url_sha256]: row for row in rows if there.get(row.object_key) == row.bytes}

    def expected(self, url: str) -> str | None:
        """The hash of an address's picture unless that has changed; None when nothing is known."""
        row = self._known.get(url)
        return None if row is None else row.sha256

    async def get(self, url: str) -> Picture:
        """The picture at an address. The first caller asks, others wait for what it gets.

        Raises:
            SourceError: it cannot be had.

        """
        answer = self._asked.get(url)
        if answer is not None:
            return await asyncio.shield(answer)
        answer = self._asked[url] = asyncio.get_running_loop().create_future()
        try:
            picture = await self._fetch(url)
        except Exception as problem:
            answer.set_exception(problem)
            answer.exception()  # it may be that nobody else asks
            raise
        except BaseException:
            answer.cancel()
            raise
        answer.set_result(picture)
        return picture

    async def file_of(self, picture: Picture) -> Path:
        """The picture's file, out of the store where it was not fetched this time.

        Raises:
            StoreError: the store does not answer, or what it had was not that picture any more: that is deleted, and
                who tries again fetches it.

        """
        async with picture.lock:
            if picture.path is None:
                path = self._folder / f"{picture.sha256}.{secrets.token_hex(4)}.stored"
                await self._kit.store.borrow_file(picture.key, path)
                if await asyncio.to_thread(_sha256_of, path) != picture.sha256:
                    log.warning("stored_picture_damaged", run_id=self._run.id, key=picture.key)
                    await self._kit.store.delete(picture.key)
                    raise StoreError("A stored picture was damaged. It will be fetched again.")
                picture.path = path
        return picture.path

    async def _fetch(self, url: str) -> Picture:
        row, started = self._known.get(url), self._run.started_at
        if row is not None and started is not None and row.checked_at >= started:
            return Picture(row.sha256, row.object_key, None)  # another chunk of this run has just asked
        known = None if row is None else Known(row.sha256, row.etag, row.last_modified, row.bytes)
        got = await self._kit.sources.fetch(url, known, self._folder)
        key = source_key(self._run.owner_id, got.sha256)
        if known is None or _told(known) != _told(got):
            self._on_learned(self._row(url, key, got), None if got.unchanged else _new(key, got.path))
        return Picture(got.sha256, key, got.path)

    def _row(self, url: str, key: str, got: SourcePicture) -> dict[str, Any]:
        return {
            "owner_id": self._run.owner_id,
            "url_sha256": _hash(url),
            "url": url,
            "etag": got.etag,
            "last_modified": got.last_modified,
            "sha256": got.sha256,
            "object_key": key,
            "bytes": got.bytes,
            "checked_at": utc_now(),
        }


def _told(what: Known | SourcePicture) -> tuple[str, str | None, str | None]:
    return what.sha256, what.etag, what.last_modified


def _new(key: str, path: Path | None) -> NewObject | None:
    return None if path is None else NewObject(key, path, "application/octet-stream", lasting=False)


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()
