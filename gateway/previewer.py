"""One product in its frame, exactly as a run would make it: the same reader, fetch, snapshot and child.

Feeds and product pictures are kept for some minutes, so that only the first preview waits for their coming. One that
was not asked for in the last seconds is asked for again, which brings it only if it has changed.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import islice
from typing import TYPE_CHECKING

from compositor.compose.errors import ComposeError
from compositor.compose.job import ComposeJob
from compositor.errors import NoFeedError, RunFailedError
from compositor.feed.reader import FeedError, FeedLimits, open_feed
from compositor.materials import gather_materials
from compositor.snapshot import take_snapshot
from compositor.sources import Known, SourceError, SourceFetcher
from gateway.errors import UploadRefusedError
from models.errors import InvalidInputError, UnavailableError
from models.fetch import FetchError
from models.store import StoreError

if TYPE_CHECKING:
    from pathlib import Path

    from compositor.compose.job import Composed
    from compositor.design import OutputSize
    from compositor.feed.reader import FeedEntry
    from compositor.snapshot import Snapshot
    from gateway.composer import Composer
    from models.db import Database
    from models.fetch import SafeFetcher
    from models.store import ObjectStore
    from models.tables import Frame

KEPT_S = 300.0
FRESH_S = 10.0
UNUSED_S = 3600.0
MOST_KEPT = 200
MOST_LOCKS = 1000
FEED_TIMEOUT_S = 60.0
PER_HOST, TOTAL = 4, 16


@dataclass(frozen=True, slots=True)
class Preview:
    """What was drawn, and of which product."""

    composed: Composed
    entry: FeedEntry
    media_type: str


@dataclass(slots=True)
class _Kept:
    """A file and what its server said of it; when that was last asked, and when it last said that this is the one."""

    path: Path
    known: Known | None = None
    asked: float = field(default_factory=time.monotonic)
    sure: float = field(default_factory=time.monotonic)

    @property
    def over(self) -> bool:
        return time.monotonic() - self.sure > KEPT_S

    @property
    def fresh(self) -> bool:
        """Whether it need not be asked for again: an upload never changes."""
        return self.known is None or time.monotonic() - self.asked < FRESH_S

    def again(self, *, sure: bool) -> Path:
        """It was asked for, and is still the one, as far as can be told."""
        self.asked = time.monotonic()
        self.sure = self.asked if sure else self.sure
        return self.path


@dataclass(slots=True)
class Previewer:
    """Draws previews. `folder` is its own; what lies there may be deleted at any time between requests."""

    db: Database
    store: ObjectStore
    fetcher: SafeFetcher
    composer: Composer
    folder: Path
    feed_max_bytes: int
    source_max_bytes: int
    _kept: dict[str, _Kept] = field(default_factory=dict)
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)
    _sources: SourceFetcher | None = None

    async def draw(self, frame: Frame, entry: FeedEntry, size: str | None) -> Preview:
        """One product in one of the frame's sizes, by default the first.

        Raises:
            InvalidInputError: no such size, or the product cannot be framed; the code says why.
            UnavailableError: the store, the database or the child do not answer.

        """
        async with self.db.read() as session:
            snapshot = await take_snapshot(session, frame)
        wanted = _size(snapshot, size)
        if entry.code is not None or entry.image_url is None:
            raise _refused(entry.code or "missing_image", entry.reason or "The product has no picture.")
        try:
            materials = await gather_materials(self.store, self.folder / "materials", snapshot)
            source = await self._source(entry.image_url)
            job = ComposeJob(
                source=source,
                frame=materials.frame,
                transparent=snapshot.transparent,
                design=snapshot.design,
                size=wanted,
                fields=entry.fields,
                assets=materials.assets,
            )
            composed = await self.composer.compose(job)
        except (ComposeError, SourceError, RunFailedError) as problem:
            raise _refused(problem.code, problem.message) from None
        except OSError as problem:
            raise StoreError("A working copy could not be kept on the disk.") from problem
        return Preview(composed, entry, snapshot.design.output.media_type)

    async def entry(self, frame: Frame, position: int) -> FeedEntry:
        """The feed's entry at a position, from 0.

        Raises:
            NoFeedError: the frame has none.
            InvalidInputError: the feed cannot be read or is shorter.

        """
        path = await self._feed(frame)
        try:
            found = await asyncio.to_thread(_nth, path, FeedLimits(max_bytes=self.feed_max_bytes), position)
        except FeedError as problem:
            raise UploadRefusedError("feed", problem.code, problem.message) from None
        except OSError as problem:
            raise UnavailableError(retry_after_s=1) from problem
        if found is None:
            raise InvalidInputError.for_field("position", "the feed has fewer entries")
        return found

    async def _feed(self, frame: Frame) -> Path:
        address = frame.feed_url or frame.feed_key
        if address is None:
            raise NoFeedError
        name = _hash(f"feed {frame.owner_id} {address}")
        async with self._lock(name):
            kept = await self._still(name)
            if kept is not None and kept.fresh:
                return kept.path
            path = await self._place(name)
            known = None
            if frame.feed_url is None:
                await self.store.get_file(address, path)
            elif (known := await self._download(address, path, kept)) is None and kept is not None:
                return kept.path
            self._kept[name] = _Kept(path, known)
            return path

    async def _download(self, url: str, path: Path, kept: _Kept | None) -> Known | None:
        """Fetch a feed; None where the one that is kept is as good as any that can be had now."""
        conditions = kept.known.conditions if kept is not None and kept.known is not None else {}
        try:
            got = await self.fetcher.download(
                url,
                path,
                headers=conditions,
                total_timeout_s=FEED_TIMEOUT_S,
                max_wire_bytes=self.feed_max_bytes,
                max_decoded_bytes=self.feed_max_bytes,
            )
        except FetchError as problem:
            if kept is not None:
                kept.again(sure=False)
                return None
            raise UploadRefusedError("feed_url", problem.code, problem.message) from None
        if not got.stored:
            if kept is not None:
                kept.again(sure=got.status == HTTPStatus.NOT_MODIFIED)
                return None
            raise UploadRefusedError("feed_url", "feed_unavailable", f"The feed's server answered {got.status}.")
        etag, modified = (_sendable(got.headers.get(name)) for name in ("ETag", "Last-Modified"))
        return Known(got.sha256, etag, modified, got.bytes)

    async def _source(self, url: str) -> Path:
        name = _hash(f"source {url}")
        async with self._lock(name):
            kept = await self._still(name)
            if kept is not None and kept.fresh:
                return kept.path
            if self._sources is None:
                self._sources = SourceFetcher(self.fetcher, PER_HOST, TOTAL, max_bytes=self.source_max_bytes)
            await self._place(name)
            try:
                got = await self._sources.get(url, kept.known if kept is not None else None, self.folder)
            except SourceError as problem:
                if kept is not None and problem.retryable:
                    return kept.again(sure=False)
                raise
            if got.path is None:
                if kept is None:
                    raise SourceError("source_unavailable", "The picture did not come.")
                return kept.again(sure=True)
            self._kept[name] = _Kept(got.path, Known(got.sha256, got.etag, got.last_modified, got.bytes))
            return got.path

    async def _still(self, name: str) -> _Kept | None:
        kept = self._kept.get(name)
        if kept is None or kept.over or not await asyncio.to_thread(kept.path.exists):
            return None
        return kept

    async def _place(self, name: str) -> Path:
        """Where a new file goes, after the old ones were cleared away."""
        for old in [each for each, kept in self._kept.items() if kept.over]:
            del self._kept[old]
        while len(self._kept) >= MOST_KEPT:
            del self._kept[next(iter(self._kept))]
        using = {kept.path for kept in self._kept.values()}
        await asyncio.to_thread(_clear, self.folder, using)
        return self.folder / f"{name}.{secrets.token_hex(4)}"  # the one before it may be in use

    def _lock(self, name: str) -> asyncio.Lock:
        if len(self._locks) > MOST_LOCKS:
            self._locks = {each: lock for each, lock in self._locks.items() if lock.locked()}
        return self._locks.setdefault(name, asyncio.Lock())


def _size(snapshot: Snapshot, name: str | None) -> OutputSize:
    sizes = snapshot.design.output_sizes(snapshot.width, snapshot.height)
    found = sizes[0] if name is None else next((size for size in sizes if size.name == name), None)
    if found is None:
        raise InvalidInputError.for_field("size", f"must be one of {', '.join(size.name for size in sizes)}")
    return found


def _sendable(validator: str | None) -> str | None:
    """What a server said, if it can be said back to it."""
    return validator if validator and validator.isascii() and validator.isprintable() else None


def _nth(path: Path, limits: FeedLimits, position: int) -> FeedEntry | None:
    return next(islice(open_feed(path, limits), position, None), None)


def _clear(folder: Path, using: set[Path]) -> None:
    """Make the folder, and remove files that nothing names and nobody has touched for an hour."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    oldest = time.time() - UNUSED_S
    for each in (*folder.iterdir(), *(folder / "materials").glob("*")):
        if each not in using and each.is_file() and each.stat().st_mtime < oldest:
            each.unlink(missing_ok=True)


def _refused(code: str, message: str) -> UploadRefusedError:
    return UploadRefusedError("product", code, message)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
