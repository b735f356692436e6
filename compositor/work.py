"""What a worker does with one chunk: fetch, find what exists, compose the rest, store, write rows, report.

Pictures are fetched several at a time while others are composed. A product's `attempts` is committed before it is
composed, and taken back where that came to nothing without a death: what a waiting product has counts processes that
died over it. A death of the composing process is that product's fault: it is tried once more, alone, and then failed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from compositor.chunks import FAILED_TAKING, Outcome, Results
from compositor.compose.errors import ComposeCode, ComposeError
from compositor.compose.job import ComposeJob
from compositor.errors import LeaseLostError
from compositor.names import output_key
from compositor.pictures import Pictures
from compositor.runlease import keep_beating
from compositor.sources import SourceError
from models.db import DatabaseError, utc_now
from models.logs import get_logger
from models.store import ObjectMissingError
from models.tables import ItemState, RunItem

if TYPE_CHECKING:
    from pathlib import Path

    from compositor.chunks import ChunkLease
    from compositor.design import OutputSize
    from compositor.kit import Kit
    from compositor.materials import Materials
    from compositor.names import OutputNamer
    from compositor.pictures import Picture
    from compositor.snapshot import Snapshot
    from models.tables import Run

PREPARE_AT_ONCE = 16
COMPOSE_AT_ONCE = 16
"""Products whose attempts are committed together, in a transaction that costs as much as a small picture; all of them
count as tried when the worker dies meanwhile."""
SAVE_AT_ONCE = 100
"""Outcomes written together; where nothing is composed that is a chunk: a transaction costs more than a product."""
MOST_TRIES = 6
"""A product during whose composing workers died this often is failed; its own decoder dying counts to two."""
MOST_CHUNK_ATTEMPTS = 8 * FAILED_TAKING
"""Takings of a chunk without any progress, after which its products are given up: eight that failed in workers which
live, or three times as many that ended with their workers."""

ITEM = (RunItem.position, RunItem.product_id, RunItem.image_url, RunItem.fields, RunItem.attempts)

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RunWork:
    """One run, as all of its chunks need it."""

    run: Run
    snapshot: Snapshot
    materials: Materials
    namer: OutputNamer
    sizes: tuple[OutputSize, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """A product as its row has it when its chunk is begun; the fields in the order of `ITEM`."""

    position: int
    product_id: str | None
    image_url: str | None
    fields: dict[str, str]
    attempts: int


@dataclass(frozen=True, slots=True)
class Ready:
    """A product that is to be composed: sizes with the names of their outputs, and rows of those that exist."""

    item: Item
    picture: Picture
    todo: tuple[tuple[OutputSize, str], ...]
    rows: tuple[dict[str, Any], ...]


async def work_on_chunk(kit: Kit, work: RunWork, lease: ChunkLease, folder: Path) -> None:
    """Bring every item of a leased chunk to an outcome.

    Raises:
        LeaseLostError: the chunk is another worker's now, or the run has ended.
        StoreError, DatabaseError, ComposeError, OSError: something that all products need is not there; the chunk is
            unfinished.

    """
    async with keep_beating(lambda: kit.chunks.renew(lease), kit.chunks.lease_seconds):
        await _ChunkWork(kit, work, lease, folder).do()


class _ChunkWork:
    """The state of one chunk under way."""

    def __init__(self, kit: Kit, work: RunWork, lease: ChunkLease, folder: Path) -> None:
        self._kit = kit
        self._work = work
        self._lease = lease
        self._results = Results()
        self._pictures = Pictures(kit, work.run, folder, self._learned)
        self._suffix = work.snapshot.design.output.suffix
        self._named: dict[tuple[int, str, str], str] = {}
        """Names looked for ahead, by position, size and the picture's hash."""
        self._made: dict[str, int] = {}
        """Bytes of outputs that are there, by name."""
        self._making: dict[str, asyncio.Lock] = {}
        self._prepared: asyncio.Queue[Outcome | Ready] = asyncio.Queue(2 * PREPARE_AT_ONCE)
        self._tried: set[int] = set()
        """Positions with a committed try of which no outcome is saved, and of which nobody has died."""

    async def do(self) -> None:
        try:
            await self._bring_to_outcomes()
        except BaseException:  # whatever it was, and be it the end of our time: this process outlives it
            await self._take_back()
            raise

    async def _bring_to_outcomes(self) -> None:
        items = await self._load()
        if self._lease.attempts > MOST_CHUNK_ATTEMPTS:
            reason = "Its part of the run was begun again and again without progress."
            self._results.outcomes += [_failed(item, "gave_up", reason) for item in items]
            items = []
        try:
            async with asyncio.TaskGroup() as together:
                together.create_task(self._prepare_all(items))
                together.create_task(self._compose_all(len(items)))
        except* Exception as group:  # noqa: BLE001 - the first cause is raised again as itself
            raise _first(group) from None
        await self._save(done=True)

    def _learned(self, source: dict[str, Any]) -> None:
        self._results.sources.append(source)

    async def _load(self) -> list[Item]:
        lease = self._lease
        query = (
            select(*ITEM)
            .where(RunItem.run_id == lease.run_id, RunItem.state == ItemState.WAITING.value)
            .where(RunItem.position >= lease.first, RunItem.position < lease.first + lease.size)
            .order_by(RunItem.position)
        )
        async with self._kit.db.read() as session:
            items = [Item(*row) for row in await session.execute(query)]
        await self._pictures.learn({item.image_url for item in items if item.image_url})
        await self._look_ahead(items)
        return items

    async def _look_ahead(self, items: list[Item]) -> None:
        """Ask the store once for all outputs there will be if no picture has changed.

        What is there stays there: nobody deletes a frame's outputs while a run of that frame is under way.
        """
        known = [(item, self._pictures.expected(item.image_url or "")) for item in items]
        self._named = {
            (item.position, size.name, sha256): self._work.namer.name(sha256, item.fields, size)
            for item, sha256 in known
            if sha256 is not None
            for size in self._work.sizes
        }
        if not self._named:
            return
        keys = {output_key(name, self._suffix): name for name in self._named.values()}
        sizes = await self._kit.store.sizes(keys)
        self._made = {name: sizes[key] for key, name in keys.items() if key in sizes}

    async def _prepare_all(self, items: list[Item]) -> None:
        waiting = iter(items)

        async def some() -> None:
            for item in waiting:
                await self._prepared.put(await self._prepare(item))

        async with asyncio.TaskGroup() as together:
            for _ in range(min(PREPARE_AT_ONCE, len(items))):
                together.create_task(some())

    async def _prepare(self, item: Item) -> Outcome | Ready:
        if item.attempts >= MOST_TRIES:
            return _failed(item, ComposeCode.DECODER_DIED, "Workers died each time when this product was composed.")
        try:
            picture = await self._pictures.get(item.image_url or "")
        except SourceError as problem:
            if problem.code == "source_not_stored":
                raise
            return _failed(item, problem.code, problem.message)
        rows, todo = [], []
        for size in self._work.sizes:
            name = self._named.get((item.position, size.name, picture.sha256))
            ahead = name is not None
            name = name or self._work.namer.name(picture.sha256, item.fields, size)
            found = self._made.get(name) if ahead else await self._existing(name)
            if found is None:
                todo.append((size, name))
            else:
                rows.append(self._row(item, size, name, found))
        if todo:
            return Ready(item, picture, tuple(todo), tuple(rows))
        return _completed(item, picture, rows, reused=True)

    async def _existing(self, name: str) -> int | None:
        """Bytes of an output with these inputs, if there is one."""
        if name in self._made:
            return self._made[name]
        try:
            return (await self._kit.store.head(output_key(name, self._suffix))).size
        except ObjectMissingError:
            return None

    async def _compose_all(self, left: int) -> None:
        loop = asyncio.get_running_loop()
        saved = loop.time()
        while left:
            batch = [await self._prepared.get()]
            while len(batch) < COMPOSE_AT_ONCE and not self._prepared.empty():
                batch.append(self._prepared.get_nowait())
            left -= len(batch)
            self._results.outcomes += [found for found in batch if isinstance(found, Outcome)]
            ready = [found for found in batch if isinstance(found, Ready)]
            calm = [product for product in ready if not product.item.attempts]
            for group in [calm, *([product] for product in ready if product.item.attempts)]:
                if group:
                    await self._compose_group(group)
                    saved = loop.time()
            if len(self._results.outcomes) >= SAVE_AT_ONCE or (self._results and loop.time() - saved > 1):
                await self._save()
                saved = loop.time()

    async def _take_back(self) -> None:
        """Undo the tries in hand; nothing is written when the chunk is another's by now."""
        if not self._tried:
            return
        lease, positions = self._lease, sorted(self._tried)
        try:
            await self._kit.chunks.take_back(lease, positions)
        except (LeaseLostError, DatabaseError) as problem:
            log.warning("tries_not_taken_back", run_id=lease.run_id, chunk=lease.number, reason=str(problem))

    async def _try(self, group: list[Ready]) -> None:
        """Commit that these products are about to be composed."""
        positions = [product.item.position for product in group]
        self._results.tries = positions
        await self._save()
        self._tried.update(positions)

    async def _compose_group(self, group: list[Ready]) -> None:
        """Compose some products; those whose composing process died are tried again, each alone."""
        await self._try(group)
        again: list[Ready] = []
        async with asyncio.TaskGroup() as together:
            tasks = [together.create_task(self._compose(product)) for product in group]
        for product, task in zip(group, tasks, strict=True):
            outcome = task.result()
            if outcome.code == ComposeCode.DECODER_DIED:
                again.append(product)
            else:
                self._results.outcomes.append(outcome)
        for product in again:
            await self._try([product])
            self._results.outcomes.append(await self._compose(product))

    async def _compose(self, product: Ready) -> Outcome:
        item = product.item
        rows, reused = list(product.rows), True
        for size, name in product.todo:
            async with self._making.setdefault(name, asyncio.Lock()):  # variants often share picture and text
                if name not in self._made:
                    reused = False
                    try:
                        self._made[name] = await self._make(product, size, name)
                    except ComposeError as problem:
                        if problem.code == ComposeCode.COMPOSER_UNAVAILABLE:
                            raise
                        if problem.code == ComposeCode.DECODER_DIED:
                            self._tried.discard(item.position)  # this try counts, whatever comes of the others
                        return _failed(item, problem.code, problem.message, product.picture)
            rows.append(self._row(item, size, name, self._made[name]))
        return _completed(item, product.picture, rows, reused=reused)

    async def _make(self, product: Ready, size: OutputSize, name: str) -> int:
        """Compose and store one output; returns its bytes."""
        output = self._work.snapshot.design.output
        job = ComposeJob(
            source=await self._pictures.file_of(product.picture),
            frame=self._work.materials.frame,
            transparent=self._work.snapshot.transparent,
            design=self._work.snapshot.design,
            size=size,
            fields=product.item.fields,
            assets=self._work.materials.assets,
        )
        composed = await self._kit.composer.compose(job, self._kit.settings.compose_timeout)
        await self._kit.store.put(output_key(name, output.suffix), composed.data, media_type=output.media_type)
        return len(composed.data)

    async def _save(self, *, done: bool = False) -> None:
        results, self._results = self._results, Results()
        await self._kit.chunks.save(self._lease, results, done=done)
        self._tried.difference_update(outcome.position for outcome in results.outcomes)
        if results.outcomes or done:
            run = self._work.run
            last = results.outcomes[-1].product_id if results.outcomes else None
            await self._kit.reporter.report(run.frame_id, run.id, last)

    def _row(self, item: Item, size: OutputSize, name: str, count: int) -> dict[str, Any]:
        suffix = self._suffix
        return {
            "run_id": self._lease.run_id,
            "position": item.position,
            "size": size.name,
            "frame_id": self._work.run.frame_id,
            "owner_id": self._work.run.owner_id,
            "name": name,
            "suffix": suffix,
            "object_key": output_key(name, suffix),
            "width": size.width,
            "height": size.height,
            "bytes": count,
            "created_at": utc_now(),
            "deleted_at": None,
        }


def _failed(item: Item, code: str, reason: str, picture: Picture | None = None) -> Outcome:
    key = None if picture is None else picture.key
    return Outcome(item.position, item.product_id, ItemState.FAILED, code=str(code), reason=reason, source_key=key)


def _completed(item: Item, picture: Picture, rows: list[dict[str, Any]], *, reused: bool) -> Outcome:
    return Outcome(
        item.position,
        item.product_id,
        ItemState.COMPLETED,
        reused=reused,
        source_key=picture.key,
        outputs=tuple(rows),
    )


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    """The first plain exception in a group of groups."""
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found
