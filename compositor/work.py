"""What a worker does with one chunk: fetch, find what exists, compose the rest, store, write rows, report.

Pictures are fetched several at a time while others are composed. A product's `attempts` is committed before it is
composed, and taken back where that came to nothing without a death: what a waiting product has counts processes that
died over it. A death of the composing process is that product's fault, unless somebody else killed it: it is tried
again alone, a few times, and then failed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compositor.chunks import FAILED_TAKING, Outcome, Results
from compositor.compose.errors import NOT_THE_PRODUCTS, ComposeCode, ComposeError
from compositor.errors import LeaseLostError
from compositor.outputs import Item, Outputs, Pictured
from compositor.pictures import Pictures
from compositor.runlease import keep_beating
from compositor.sources import SourceError
from models.db import DatabaseError
from models.logs import get_logger
from models.store.base import first_of
from models.tables import ItemState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from compositor.chunks import ChunkLease
    from compositor.design import OutputSize
    from compositor.kit import Kit
    from compositor.materials import Materials
    from compositor.names import OutputNamer
    from compositor.outputs import Ready
    from compositor.pictures import Picture
    from compositor.snapshot import Snapshot
    from models.store import NewObject
    from models.tables import Run

PREPARE_AT_ONCE = 16
COMPOSE_AT_ONCE = 16
"""Products whose attempts are committed together, in a transaction that costs as much as a small picture; all of them
count as tried when the worker dies meanwhile."""
SAVE_AT_ONCE = 100
"""Outcomes written together; where nothing is composed that is a chunk: a transaction costs more than a product."""
LONE_TRIES = 3
"""After its decoder died among others; each that dies again costs the time of one product and a process's start."""
MOST_TRIES = 20
"""A product during whose composing workers died this often is failed; its own decoder dying counts as well.

Many, since a picture is decoded in a process of its own: whoever dies with a worker was most likely only there when
somebody killed it. A product with a try behind it is composed alone, so the others are not held up.
"""
MOST_CHUNK_ATTEMPTS = 8 * FAILED_TAKING
"""Takings of a chunk without any progress, after which its products are given up: eight that failed in workers which
live, or three times as many that ended with their workers."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RunWork:
    """One run, as all of its chunks need it."""

    run: Run
    snapshot: Snapshot
    materials: Materials
    namer: OutputNamer
    sizes: tuple[OutputSize, ...]


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
        self._files: list[NewObject] = []
        """Pictures that the rows of `_results` name, and that are not in the store yet."""
        self._pictures = Pictures(kit, work.run, folder, self._learned)
        self._outputs = Outputs(kit, work, folder)
        self._making: dict[str, asyncio.Lock] = {}
        self._prepared: asyncio.Queue[Outcome | Pictured] = asyncio.Queue(2 * PREPARE_AT_ONCE)
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
            raise first_of(group) from None
        await self._save(done=True)

    def _learned(self, source: dict[str, Any], file: NewObject | None) -> None:
        self._results.sources.append(source)
        if file is not None:
            self._files.append(file)

    async def _load(self) -> list[Item]:
        items = [Item(*row) for row in await self._kit.chunks.waiting(self._lease)]
        await self._pictures.learn({item.image_url for item in items if item.image_url})
        await self._outputs.look_ahead([(item, self._pictures.expected(item.image_url or "")) for item in items])
        return items

    async def _prepare_all(self, items: list[Item]) -> None:
        waiting = iter(items)

        async def some() -> None:
            for item in waiting:
                await self._prepared.put(await self._prepare(item))

        async with asyncio.TaskGroup() as together:
            for _ in range(min(PREPARE_AT_ONCE, len(items))):
                together.create_task(some())

    async def _prepare(self, item: Item) -> Outcome | Pictured:
        if item.attempts >= MOST_TRIES:
            return _failed(item, ComposeCode.DECODER_DIED, "Workers died each time when this product was composed.")
        try:
            return Pictured(item, await self._pictures.get(item.image_url or ""))
        except SourceError as problem:
            if problem.code == "source_not_stored":
                raise
            return _failed(item, problem.code, problem.message)

    async def _compose_all(self, left: int) -> None:
        loop = asyncio.get_running_loop()
        saved = loop.time()
        while left:
            batch = [await self._prepared.get()]
            while len(batch) < COMPOSE_AT_ONCE and not self._prepared.empty():
                batch.append(self._prepared.get_nowait())
            left -= len(batch)
            ready = await self._sort(batch)
            calm = [product for product in ready if not product.item.attempts]
            for group in [calm, *([product] for product in ready if product.item.attempts)]:
                if group:
                    await self._compose_group(group)
                    saved = loop.time()
            if len(self._results.outcomes) >= SAVE_AT_ONCE or (self._results and loop.time() - saved > 1):
                await self._save()
                saved = loop.time()

    async def _sort(self, batch: list[Outcome | Pictured]) -> list[Ready]:
        """Put down what has come to an outcome; the rest is to be composed."""
        self._results.outcomes += [found for found in batch if isinstance(found, Outcome)]
        ready = await self._outputs.find([found for found in batch if isinstance(found, Pictured)])
        whole = [product for product in ready if not product.todo]
        self._results.outcomes += [_completed(each.item, each.picture, each.rows, reused=True) for each in whole]
        return [product for product in ready if product.todo]

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
            outcome = await self._compose_alone(product)  # which saves, so that `_results` is another afterwards
            self._results.outcomes.append(outcome)

    async def _compose_alone(self, product: Ready) -> Outcome:
        for left in reversed(range(LONE_TRIES)):
            await self._try([product])
            outcome = await self._compose(product)
            if outcome.code != ComposeCode.DECODER_DIED or not left:
                return outcome
        raise AssertionError("the last try returns")

    async def _compose(self, product: Ready) -> Outcome:
        item = product.item
        rows, reused = list(product.rows), True
        for size, name in product.todo:
            async with self._making.setdefault(name, asyncio.Lock()):  # variants often share picture and text
                if self._outputs.made(name) is None:
                    reused = False
                    try:
                        await self._outputs.make(product, size, name, await self._pictures.file_of(product.picture))
                    except ComposeError as problem:
                        if problem.code in NOT_THE_PRODUCTS:
                            raise
                        if problem.code == ComposeCode.DECODER_DIED:
                            self._tried.discard(item.position)  # this try counts, whatever comes of the others
                        return _failed(item, problem.code, problem.message, product.picture)
            rows.append(self._outputs.row(item, size, name))
        return _completed(item, product.picture, rows, reused=reused)

    async def _save(self, *, done: bool = False) -> None:
        """Keep files, then write the rows that name them: no row names an output that is not on the store's disk."""
        results, self._results = self._results, Results()
        files, self._files = [*self._files, *self._outputs.take_new()], []
        if files:
            await self._kit.store.adopt_files(files)
        try:
            await self._kit.chunks.save(self._lease, results, done=done)
        finally:
            if results.saved:
                self._tried.difference_update(outcome.position for outcome in results.outcomes)
                self._tried.update(results.tries)
        if results.outcomes or done:
            run = self._work.run
            last = results.outcomes[-1].product_id if results.outcomes else None
            await self._kit.reporter.report(run.frame_id, run.id, last)


def _failed(item: Item, code: str, reason: str, picture: Picture | None = None) -> Outcome:
    key = None if picture is None else picture.key
    return Outcome(item.position, item.product_id, ItemState.FAILED, code=str(code), reason=reason, source_key=key)


def _completed(item: Item, picture: Picture, rows: Sequence[dict[str, Any]], *, reused: bool) -> Outcome:
    return Outcome(
        item.position,
        item.product_id,
        ItemState.COMPLETED,
        reused=reused,
        source_key=picture.key,
        outputs=tuple(rows),
    )
