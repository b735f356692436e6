"""One feed's products, many at a time: fetch the picture, compose what is not there yet, write it whole."""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from compositor.compose.errors import ComposeCode, ComposeError
from compositor.compose.job import ComposeJob
from compositor.sources import SourceError
from scripts.calling.working import work_together
from scripts.headless.manifest import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from compositor.compose.client import ComposePool
    from compositor.design import Design, OutputSize
    from compositor.names import OutputNamer
    from compositor.sources import Known, SourceFetcher, SourcePicture
    from scripts.headless.manifest import Item, Manifest

KEPT_SOURCES = 64
"""Fetched pictures that stay a while after use: variants of a product share one and stand near each other."""
SOURCE_TRIES = 3
COMPOSE_TRIES = 2
COMPOSE_TIMEOUT_S = 30.0


class MachineError(Exception):
    """The run cannot go on for a reason that is no product's: the disk is full, the composing process is gone."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides the pixels, and where they go."""

    frame: Path
    transparent: bool
    design: Design
    sizes: tuple[OutputSize, ...]
    assets: dict[str, Path]
    namer: OutputNamer
    pictures: Path
    work: Path

    def files(self, source_sha256: str, item: Item) -> list[str]:
        """Names of the files that come out of one product, one for each size."""
        suffix = self.design.output.suffix
        return [f"{self.namer.name(source_sha256, item.fields, size)}.{suffix}" for size in self.sizes]

    def is_there(self, name: str) -> bool:
        """Whether a picture was written whole."""
        path = self.pictures / name
        return path.is_file() and path.stat().st_size > 0


class Framing:
    """Takes products from the manifest and settles each."""

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        sources: SourceFetcher,
        pool: ComposePool,
        settled: Callable[[Item, Outcome], None],
    ) -> None:
        self._plan = plan
        self._manifest = manifest
        self._sources = sources
        self._pool = pool
        self._settled = settled
        self._files = _SourceFiles(KEPT_SOURCES)

    async def run(self, at_once: int) -> None:
        """Settle every waiting product, `at_once` of them at a time.

        Raises:
            MachineError: nothing more can be done here; products under way stay waiting.

        """
        items = self._manifest.waiting()
        await work_together(at_once, lambda: self._work(items))

    async def _work(self, items: Iterator[Item]) -> None:
        for item in items:  # shared by all tasks; each takes the next
            outcome = await self._outcome(item)
            self._manifest.settle(outcome)
            self._settled(item, outcome)

    async def _outcome(self, item: Item) -> Outcome:
        try:
            return await self._frame(item)
        except SourceError as error:
            if error.code == "source_not_stored":
                raise MachineError(error.message) from None
            return Outcome(item.position, code=error.code, reason=error.message)
        except ComposeError as error:
            if error.code == ComposeCode.COMPOSER_UNAVAILABLE:
                raise MachineError(error.message) from None
            return Outcome(item.position, code=error.code, reason=error.message)

    async def _frame(self, item: Item) -> Outcome:
        known, fresh = self._manifest.known(item.image_url)
        if known and fresh and self._all_there(known.sha256, item):
            return self._reused(known.sha256, item)
        if known and fresh and (path := self._plan.work / known.sha256).is_file():
            return await self._compose_from(path, known.sha256, item)
        picture = await self._fetch(item.image_url, None if fresh else known)
        if self._all_there(picture.sha256, item):
            self._files.keep(picture.path)
            return self._reused(picture.sha256, item)
        for _ in range(SOURCE_TRIES):
            if picture.path is not None and picture.path.is_file():
                return await self._compose_from(picture.path, picture.sha256, item)
            picture = await self._fetch(item.image_url, None)  # not modified, but what is made of it is not there
        raise SourceError("source_unavailable", "The picture changes from one moment to the next.")

    async def _fetch(self, url: str, known: Known | None) -> SourcePicture:
        picture = await self._sources.get(url, known, self._plan.work)
        self._manifest.remember(url, picture)
        return picture

    def _all_there(self, sha256: str, item: Item) -> bool:
        return all(map(self._plan.is_there, self._plan.files(sha256, item)))

    def _reused(self, sha256: str, item: Item) -> Outcome:
        return Outcome(item.position, tuple(self._plan.files(sha256, item)), reused=True)

    async def _compose_from(self, source: Path, sha256: str, item: Item) -> Outcome:
        names = self._plan.files(sha256, item)
        with self._files.used(source):
            for name, size in zip(names, self._plan.sizes, strict=True):
                if not self._plan.is_there(name):
                    self._write(name, await self._compose(source, item, size))
        return Outcome(item.position, tuple(names))

    async def _compose(self, source: Path, item: Item, size: OutputSize) -> bytes:
        plan = self._plan
        job = ComposeJob(source, plan.frame, plan.transparent, plan.design, size, item.fields, plan.assets)
        for left in reversed(range(COMPOSE_TRIES)):
            try:
                return (await self._pool.compose(job, COMPOSE_TIMEOUT_S)).data
            except ComposeError as error:
                if not left or error.code != ComposeCode.DECODER_DIED:
                    raise
        raise AssertionError("the last try returns or raises")

    def _write(self, name: str, data: bytes) -> None:
        part = self._plan.work / f"{name}.part"
        try:
            part.write_bytes(data)
            part.replace(self._plan.pictures / name)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise MachineError(f"A picture could not be written: {os.strerror(error.errno or 0)}.") from error


@dataclass(slots=True)
class _SourceFiles:
    """Fetched files in use, and the last few that were; older ones are deleted."""

    most: int
    _users: Counter[Path] = field(default_factory=Counter)
    _idle: OrderedDict[Path, None] = field(default_factory=OrderedDict)

    def used(self, path: Path) -> _Use:
        """A context in which `path` is not deleted."""
        return _Use(self, path)

    def keep(self, path: Path | None) -> None:
        """`path` is not used now, and may be soon."""
        if path is None or self._users[path]:
            return
        self._idle[path] = None
        self._idle.move_to_end(path)
        while len(self._idle) > self.most:
            self._idle.popitem(last=False)[0].unlink(missing_ok=True)

    def take(self, path: Path) -> None:
        self._users[path] += 1
        self._idle.pop(path, None)

    def give(self, path: Path) -> None:
        self._users[path] -= 1
        if not self._users[path]:
            del self._users[path]
            self.keep(path)


@dataclass(frozen=True, slots=True)
class _Use:
    files: _SourceFiles
    path: Path

    def __enter__(self) -> None:
        self.files.take(self.path)

    def __exit__(self, *_: object) -> None:
        self.files.give(self.path)
