"""One chunk's work when things go wrong: a picture that kills its decoder, a store that is full, a lost lease."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete, select, update

from compositor.chunks import FAILED_TAKING, Results
from compositor.compose.errors import ComposeCode, ComposeError
from compositor.compose.process import ComposeProcess
from compositor.errors import LeaseLostError
from compositor.jobs import compose_run, ingest_run, open_run, take_chunk
from compositor.kit import open_kit
from compositor.runs import counts, start_run
from compositor.settings import CompositorSettings
from compositor.work import LONE_TRIES, MOST_CHUNK_ATTEMPTS, MOST_TRIES
from models.db import utc_now
from models.store import StoreError
from models.tables import Frame, Run, RunChunk, RunItem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Sequence
    from pathlib import Path

    from compositor.compose.job import ComposeJob
    from compositor.kit import Kit
    from models.store import NewObject
    from tests.support.compositor_rig import Rig, Shop


TITLES = frozenset(map(str, range(10)))


class ScriptedComposer:
    """Composes nothing real; titles in `deadly` kill it so often, and for those in `unavailable` it is not there.

    With `stuck` it says so by that event, and never ends.
    """

    def __init__(self) -> None:
        self.deadly: dict[str, int] = {}
        self.unavailable: Collection[str] = ()
        self.stuck: asyncio.Event | None = None
        self.jobs: list[str] = []

    async def compose_file(self, job: ComposeJob, target: Path, timeout_s: float = 1) -> int:
        title = job.fields["title"]
        self.jobs.append(title)
        if self.stuck is not None:
            self.stuck.set()
            await asyncio.Event().wait()
        if self.deadly.get(title, 0) > 0:
            self.deadly[title] -= 1
            raise ComposeError(ComposeCode.DECODER_DIED, "The process that decoded the picture died.")
        if title in self.unavailable:
            raise ComposeError(ComposeCode.COMPOSER_UNAVAILABLE, "none")
        return await asyncio.to_thread(target.write_bytes, title.encode())


def full(real: Any) -> Any:
    """A store whose disk is full for outputs."""
    return FullStore(real)


class FullStore:
    """See `full`."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def adopt_files(self, files: Sequence[NewObject]) -> None:
        if any(file.key.startswith("outputs/") for file in files):
            raise StoreError("The object store's disk is full.")
        await self._real.adopt_files(files)


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


async def let_pauses_pass(rig: Rig) -> None:
    """As if a chunk that was given back for later had waited long enough."""
    async with rig.db.write() as session:
        late = update(RunChunk).where(RunChunk.lease_owner.is_(None), RunChunk.lease_expires_at.is_not(None))
        await session.execute(late.values(lease_expires_at=utc_now()))


async def take_once(kit: Kit, run: Run) -> None:
    """A run's chunk is taken once, and what it needs is brought along as a job would."""
    work = await open_run(kit, run.id)
    lease = await kit.chunks.claim(run.id)
    assert work is not None
    assert lease is not None
    await take_chunk(kit, work, lease)


async def test_a_picture_that_kills_its_decoder_again_and_again_fails_alone(
    rig: Rig, kit: Kit, run: Run, composer: ScriptedComposer
) -> None:
    composer.deadly = {"3": 99, "5": LONE_TRIES}
    await compose_run(kit, run.id)
    found = await counts(rig.db, run.id)
    assert (found.completed, found.failed, found.waiting) == (9, 1, 0)
    poison, unlucky, calm = await item(rig, run, 3), await item(rig, run, 5), await item(rig, run, 1)
    assert (poison.state, poison.code, poison.attempts) == ("failed", "decoder_died", 1 + LONE_TRIES)
    assert (unlucky.state, unlucky.attempts) == ("completed", 1 + LONE_TRIES)
    assert (calm.state, calm.attempts) == ("completed", 1)
    assert composer.jobs.count("3") == 1 + LONE_TRIES


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
    await compose_run(dataclasses.replace(kit, store=full(kit.store)), run.id)
    found = await counts(rig.db, run.id)
    assert (found.failed, found.waiting) == (0, 10)
    async with rig.db.read() as session:
        (chunk,) = list(await session.scalars(select(RunChunk)))
    assert chunk.lease_owner is None
    assert chunk.lease_expires_at is not None
    assert 0 < (chunk.lease_expires_at - utc_now()).total_seconds() <= 4, "given back for a little later"
    await compose_run(kit, run.id)
    assert (await counts(rig.db, run.id)).completed == 0, "the disk gets time"
    await let_pauses_pass(rig)
    await compose_run(kit, run.id)
    assert (await counts(rig.db, run.id)).completed == 10


async def test_a_chunk_that_never_moves_is_given_up_in_the_end(
    rig: Rig, kit: Kit, run: Run, composer: ScriptedComposer
) -> None:
    composer.unavailable = TITLES
    for _ in range(MOST_CHUNK_ATTEMPTS // FAILED_TAKING):
        await take_once(kit, run)
        found = await counts(rig.db, run.id)
        assert (found.failed, found.waiting) == (0, 10)
    await take_once(kit, run)
    found = await counts(rig.db, run.id)
    assert (found.failed, found.waiting) == (10, 0)
    assert {(await item(rig, run, position)).code for position in range(10)} == {"gave_up"}


@pytest.mark.parametrize("fault", ["composer", "store"])
async def test_tries_that_killed_nobody_do_not_count(
    rig: Rig, kit: Kit, run: Run, composer: ScriptedComposer, fault: str
) -> None:
    composer.unavailable = TITLES if fault == "composer" else ()
    broken = dataclasses.replace(kit, store=full(kit.store)) if fault == "store" else kit
    for _ in range(MOST_CHUNK_ATTEMPTS // FAILED_TAKING - 1):
        composer.jobs.clear()
        await let_pauses_pass(rig)
        await take_once(broken, run)
        assert composer.jobs, "a product was composed, or would have been"
        assert {(await item(rig, run, position)).attempts for position in range(10)} == {0}
    assert (await counts(rig.db, run.id)).failed == 0


async def test_a_try_that_was_broken_off_does_not_count(
    rig: Rig, kit: Kit, run: Run, composer: ScriptedComposer
) -> None:
    composer.stuck = asyncio.Event()
    taking = asyncio.create_task(take_once(kit, run))
    await composer.stuck.wait()
    assert (await item(rig, run, int(composer.jobs[0]))).attempts == 1, "committed before it is composed"
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert {(await item(rig, run, position)).attempts for position in range(10)} == {0}


async def test_a_death_counts_even_where_the_rest_of_the_group_came_to_nothing(
    rig: Rig, kit: Kit, run: Run, composer: ScriptedComposer
) -> None:
    composer.deadly, composer.unavailable = {"0": 1}, TITLES
    await take_once(kit, run)
    assert [(await item(rig, run, position)).attempts for position in range(10)] == [1] + 9 * [0]
    composer.unavailable = ()
    await compose_run(kit, run.id)
    assert (await counts(rig.db, run.id)).completed == 10
    assert (await item(rig, run, 0)).attempts == 2


async def test_a_worker_that_lost_its_chunk_writes_nothing_more(
    rig: Rig, kit: Kit, run: Run, composer: ScriptedComposer
) -> None:
    composed: list[int] = []

    async def taken_over(job: ComposeJob, target: Path, timeout_s: float = 1) -> int:
        composed.append(int(job.fields["title"]))
        async with rig.db.write() as session:
            await session.execute(update(RunChunk).values(fence=RunChunk.fence + 1, lease_owner="another"))
        return await asyncio.to_thread(target.write_bytes, b"late")

    composer.compose_file = taken_over  # type: ignore[method-assign]
    lease = await kit.chunks.claim(run.id)
    assert lease is not None
    await kit.chunks.release(lease)
    await compose_run(kit, run.id)
    assert (await counts(rig.db, run.id)).waiting == 10
    assert await rig.outputs(run.id) == []
    assert (await item(rig, run, composed[0])).attempts == 1, "no longer this worker's to take back"
    with pytest.raises(LeaseLostError):
        await kit.chunks.save(lease, Results())


async def test_a_run_that_was_deleted_meanwhile_ends_quietly(
    rig: Rig, kit: Kit, run: Run, composer: ScriptedComposer
) -> None:
    async def deleted(job: ComposeJob, target: Path, timeout_s: float = 1) -> int:
        async with rig.db.write() as session:
            for table in (RunItem, RunChunk):
                await session.execute(delete(table).where(table.run_id == run.id))
            await session.execute(delete(Run).where(Run.id == run.id))
        return await asyncio.to_thread(target.write_bytes, b"late")

    composer.compose_file = deleted  # type: ignore[method-assign]
    await compose_run(kit, run.id)
    async with rig.db.read() as session:
        assert await session.get(Run, run.id) is None


async def test_what_is_gone_or_cut_short_in_the_store_is_made_again(
    rig: Rig, kit: Kit, run: Run, shop: Shop, composer: ScriptedComposer
) -> None:
    await compose_run(kit, run.id)
    outputs = await rig.outputs(run.id)
    await kit.store.delete(outputs[3].object_key)
    cut, gone = str((await item(rig, run, 5)).source_key), str((await item(rig, run, 7)).source_key)
    await kit.store.put(cut, b"\xff\xd8\xff", media_type="image/jpeg")
    await kit.store.delete(gone)
    composer.jobs.clear()
    shop.sent.clear()
    async with rig.db.read() as session:
        frame = await session.get_one(Frame, run.frame_id)
    again = await start_run(rig.db, frame)
    await ingest_run(kit, again.id)
    await compose_run(kit, again.id)
    assert composer.jobs == ["3"]
    assert sorted(shop.sent) == ["5.jpg", "7.jpg"]
    assert (await counts(rig.db, again.id)).reused == 9
    assert await kit.store.sizes([output.object_key for output in outputs]) == dict.fromkeys(
        (output.object_key for output in outputs), 1
    )
    assert (await kit.store.sizes([cut, gone])).keys() == {cut, gone}
    assert await kit.store.get(cut) == shop.pictures["5.jpg"]


async def test_what_was_damaged_in_the_store_is_fetched_again_before_it_is_composed(
    rig: Rig, kit: Kit, run: Run, shop: Shop, composer: ScriptedComposer
) -> None:
    await compose_run(kit, run.id)
    damaged = str((await item(rig, run, 5)).source_key)
    whole = await kit.store.get(damaged)
    await kit.store.put(damaged, bytes(len(whole)), media_type="image/jpeg")  # as after a power failure
    async with rig.db.write() as session:
        frame = await session.get_one(Frame, run.frame_id)
        frame.design = {**frame.design, "output": {"quality": 80}}
    shop.sent.clear()
    composer.jobs.clear()
    again = await start_run(rig.db, frame)
    await ingest_run(kit, again.id)
    await compose_run(kit, again.id)
    assert (await counts(rig.db, again.id)).failed == 0
    await let_pauses_pass(rig)
    await compose_run(kit, again.id)
    assert shop.sent == ["5.jpg"]
    assert (await counts(rig.db, again.id)).completed == 10
    assert await kit.store.get(damaged) == whole
    assert set(composer.jobs) == {str(number) for number in range(10)}
