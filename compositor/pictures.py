"""The products' pictures of one chunk: each address asked once, only for what changed, and kept in the store."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from compositor.names import source_key
from compositor.sources import Known, SourcePicture
from models.db import utc_now
from models.tables import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from compositor.kit import Kit
    from models.tables import Run


@dataclass(slots=True)
class Picture:
    """A product's picture: its hash, its place in the store, and its file once somebody needs that."""

    sha256: str
    key: str
    path: Path | None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Pictures:
    """Fetches for one chunk into one folder; `on_learned` is told the row of each picture that is new or changed."""

    def __init__(self, kit: Kit, run: Run, folder: Path, on_learned: Callable[[dict[str, Any]], None]) -> None:
        self._kit = kit
        self._run = run
        self._folder = folder
        self._on_learned = on_learned
        self._known: dict[str, Source] = {}
        self._under_way: dict[str, asyncio.Task[Picture]] = {}

    async def learn(self, urls: Sequence[str]) -> None:
        """Read what is known of these addresses."""
        hashes = sorted({_hash(url) for url in urls})
        query = select(Source).where(Source.owner_id == self._run.owner_id, Source.url_sha256.in_(hashes))
        async with self._kit.db.read() as session:
            self._known = {row.url_sha256: row for row in await session.scalars(query)}

    async def get(self, url: str) -> Picture:
        """The picture at an address, stored.

        Raises:
            SourceError: it cannot be had.
            StoreError: it cannot be kept.

        """
        task = self._under_way.get(url)
        if task is None:
            task = self._under_way[url] = asyncio.create_task(self._fetch(url))
        return await asyncio.shield(task)

    async def file_of(self, picture: Picture) -> Path:
        """The picture's file, out of the store where it was not fetched this time."""
        async with picture.lock:
            if picture.path is None:
                path = self._folder / f"{picture.sha256}.stored"
                await self._kit.store.get_file(picture.key, path)
                picture.path = path
        return picture.path

    async def close(self) -> None:
        """Stop what is under way."""
        for task in self._under_way.values():
            task.cancel()
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)

    async def _fetch(self, url: str) -> Picture:
        row = self._known.get(_hash(url))
        if row is not None and not await self._kit.store.exists(row.object_key):
            row = None  # known, but gone: without the condition, so that it comes again
        started = self._run.started_at
        if row is not None and started is not None and row.checked_at >= started:
            return Picture(row.sha256, row.object_key, None)  # another chunk of this run has just asked
        known = None if row is None else Known(row.sha256, row.etag, row.last_modified, row.bytes)
        got = await self._kit.sources.get(url, known, self._folder)
        key = source_key(self._run.owner_id, got.sha256)
        if got.path is not None and not got.unchanged:
            await self._kit.store.put_file(key, got.path, media_type="application/octet-stream")
        if known is None or _told(known) != _told(got):
            self._on_learned(self._row(url, key, got))
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


def _hash(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()
