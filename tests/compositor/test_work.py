"""One chunk's work when things go wrong: a picture that kills its decoder, a store that is full, a lost lease."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, update

from compositor.chunks import Results
from compositor.compose.errors import ComposeCode, ComposeError
from compositor.compose.job import Composed
from compositor.compose.process import ComposeProcess
from compositor.errors import LeaseLostError
from compositor.jobs import compose_run, ingest_run
from compositor.kit import open_kit
from compositor.runs import counts, start_run
from compositor.settings import CompositorSettings
from compositor.work import MOST_CHUNK_ATTEMPTS, MOST_TRIES
from models.store import StoreError
from models.tables import RunChunk, RunItem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from compositor.compose.job import ComposeJob
    from compositor.kit import Kit
    from models.tables import Run
    from tests.support.compositor_rig import Rig, Shop


class ScriptedComposer:
    """Composes nothing real; sources named in `deadly` kill it, `after` is called with each job first."""

    def __init__(self) -> None:
        self.deadly: dict[str, int] = {}
        self.unavailable = False
        self.jobs: list[str] = []

    async def compose(self, job: ComposeJob, timeout_s: float = 1) -> Composed:
        title = job.fields["title"]
        self.jobs.append(title)
        if self.unavailable:
            raise ComposeError(ComposeCode.COMPOSER_UNAVAILABLE, "none")
        if self.deadly.get(title, 0) > 0:
            self.deadly[title] -= 1
            raise ComposeError(ComposeCode.DECODER_DIED, "The process that decoded the picture died.")
        return Composed(title.encode(), job.size.width, job.size.height)


class FullStore:
    """A store whose disk is full for outputs."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def put(self, key: str, data: bytes, *, media_type: str) -> None:
        raise StoreError("The object store's disk is full.")


@pytest.fixture
def composer() -> ScriptedComposer:
    return ScriptedComposer()


@pytest.fixture
async def kit(rig: Rig, tmp_path: Path, composer: ScriptedComposer) -> AsyncIterator[Kit]:
    values: dict[str, Any] = {name.removeprefix("IGEN_").lower(): text for name, text in rig.environment.items()}
    async with open_kit(CompositorSettings(**values), ComposeProcess(tmp_path)) as made:
        yield dataclasses.replace(made, composer=composer)  # type: ignore[arg-type]


@pytest.fixture
async def run(rig: Rig, kit: Kit, shop: Shop) -> Run:
    """A run of ten products with titles 0 to 9, read in."""
    shop.stock(10, broken=False)
    for number in range(10):
        old, new = f"<g:id>id{number}</g:id><title>A product", f"<g:id>id{number}</g:id><title>{number}"
        shop.feed = shop.feed.replace(old.encode(), new.encode())
    box = {"x": 0, "y": 0, "width": 50, "height": 50}
    made = await start_run(rig.db, await rig.frame(design={"texts": [{"text": "{title}", "box": box}]}))
    await ingest_run(kit, made.id)
    return made


async def item(rig: Rig, run: Run, position: int) -> RunItem:
    async with rig.db.read() as session:
        return await session.get_one(RunItem, (run.id, position))


async def test_a_picture_that_kills_its_decoder_twice_fails_alone(
    rig: Rig, kit: Kit, run: Run, composer: ScriptedComposer
) -> None:
    composer.deadly = {"3": 99, "5": 1}
    await compose_run(kit, run.id)
    found = await counts(rig.db, run.id)
    assert (found.completed, found.failed, found.waiting) == (9, 1, 0)
    poison, unlucky, calm = await item(rig, run, 3), await item(rig, run, 5), await item(rig, run, 1)
    assert (poison.state, poison.code, poison.attempts) == ("failed", "decoder_died", 2)
    assert (unlucky.state, unlucky.attempts) == ("completed", 2)
    assert (calm.state, calm.attempts) == ("completed", 1)
    assert composer.jobs.count("3") == 2


async def test_a_product_that_killed_worker_after_worker_is_failed_untried(
    rig: Rig, kit: Kit, run: Run, composer: ScriptedComposer
) -> None:
    async with rig.db.write() as session:
        await session.execute(update(RunItem).where(RunItem.position == 2).values(attempts=MOST_TRIES))
    await compose_run(kit, run.id)
    assert "2" not in composer.jobs
    assert (await item(rig, run, 2)).code == "decoder_died"
    assert (await counts(rig.db, run.id)).completed == 9


async def test_a_full_disk_fails_no_product_until_nothing_else_is_left(rig: Rig, kit: Kit, run: Run) -> None:
    full = dataclasses.replace(kit, store=FullStore(kit.store))
    await compose_run(full, run.id)
    found = await counts(rig.db, run.id)
    assert (found.failed, found.waiting) == (0, 10)
    async with rig.db.read() as session:
        (chunk,) = list(await session.scalars(select(RunChunk)))
    assert (chunk.state, chunk.lease_owner) == ("waiting", None), "given back at once"
    await compose_run(kit, run.id)
    assert (await counts(rig.db, run.id)).completed == 10


async def test_a_chunk_that_never_moves_is_given_up_in_the_end(
    rig: Rig, kit: Kit, run: Run, composer: ScriptedComposer
) -> None:
    composer.unavailable = True
    for _ in range(MOST_CHUNK_ATTEMPTS + 4):
        await compose_run(kit, run.id)
    found = await counts(rig.db, run.id)
    assert (found.failed, found.waiting) == (10, 0)
    assert (await item(rig, run, 0)).code == "gave_up"


async def test_a_worker_that_lost_its_chunk_writes_nothing_more(
    rig: Rig, kit: Kit, run: Run, composer: ScriptedComposer
) -> None:
    async def taken_over(job: ComposeJob, timeout_s: float = 1) -> Composed:
        async with rig.db.write() as session:
            await session.execute(update(RunChunk).values(fence=RunChunk.fence + 1, lease_owner="another"))
        return Composed(b"late", 1, 1)

    composer.compose = taken_over  # type: ignore[method-assign]
    lease = await kit.chunks.claim(run.id)
    assert lease is not None
    await kit.chunks.release(lease)
    await compose_run(kit, run.id)
    assert (await counts(rig.db, run.id)).waiting == 10
    assert await rig.outputs(run.id) == []
    with pytest.raises(LeaseLostError):
        await kit.chunks.save(lease, Results())
