"""Nothing goes that somebody is about to use, on either kind of database."""

from __future__ import annotations

import asyncio
import hashlib
from functools import partial
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select, update

from compositor.errors import RunActiveError
from compositor.runs import cancel_run, start_run
from gateway.naming import named, still_there
from gateway.removal import SETTLED_S, Removal
from models.db import Database, utc_now
from models.store import StoreError, content_key, open_store
from models.tables import Asset, Frame, Output, Run
from tests.support.seeded_frame import OWNER, HeldStore, seed_frame, seed_open_run
from tests.support.seeded_run import seed_run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from models.store import ObjectStore


@pytest.fixture
async def db(either_database: str) -> AsyncIterator[Database]:
    database = Database(either_database)
    yield database
    await database.close()


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path}/store")


@pytest.fixture
async def held(tmp_path: Path) -> HeldStore:
    return HeldStore(tmp_path / "store")


async def hide_outputs(db: Database) -> None:
    async with db.write() as session:
        await session.execute(update(Output).values(deleted_at=utc_now()))


async def outputs_there(db: Database, store: ObjectStore) -> tuple[int, int]:
    async with db.read() as session:
        rows = await session.scalar(select(func.count()).select_from(Output)) or 0
    return rows, len([key async for key in store.list("outputs")])


async def test_outputs_stay_while_a_run_of_their_frame_is_under_way(db: Database, store: ObjectStore) -> None:
    frame = await seed_frame(db, store)
    other = await seed_frame(db, store, name="other")
    await seed_run(db, store, frame.id)
    await hide_outputs(db)
    removal = Removal(db, store)
    run = await seed_open_run(db, frame)
    await seed_open_run(db, other)
    assert not await removal.outputs(frame.id)
    assert await outputs_there(db, store) == (3, 3)
    async with db.write() as session:
        ended = {"state": "completed", "finished_at": utc_now()}
        await session.execute(update(Run).where(Run.id == run.id).values(**ended))
    assert await removal.outputs(frame.id), "another frame's run does not matter"
    assert await outputs_there(db, store) == (0, 0)


async def test_outputs_stay_a_moment_longer_when_a_run_was_stopped(db: Database, store: ObjectStore) -> None:
    frame = await seed_frame(db, store)
    await seed_run(db, store, frame.id)
    await hide_outputs(db)
    run = await seed_open_run(db, frame)
    await cancel_run(db, OWNER, run.id)
    removal = Removal(db, store)
    assert not await removal.outputs(frame.id)
    async with db.write() as session:
        before = run.created_at.fromtimestamp(utc_now().timestamp() - SETTLED_S - 1, tz=run.created_at.tzinfo)
        await session.execute(update(Run).where(Run.id == run.id).values(finished_at=before))
    assert await removal.outputs(frame.id)
    assert await outputs_there(db, store) == (0, 0)


async def test_a_run_begins_before_outputs_go_or_after_and_never_between(db: Database, held: HeldStore) -> None:
    frame = await seed_frame(db, held)
    await seed_run(db, held, frame.id, completed=1)
    await hide_outputs(db)
    going = asyncio.create_task(Removal(db, held).outputs(frame.id))
    await held.deleting.wait()
    starting = asyncio.create_task(start_run(db, frame))
    done, _ = await asyncio.wait({starting}, timeout=0.5)
    assert not done, "it would find outputs that are going"
    held.let_go.set()
    assert await going
    await starting
    assert await outputs_there(db, held) == (0, 0)
    with pytest.raises(RunActiveError):
        await start_run(db, frame)


async def test_a_shared_output_goes_with_its_last_row(db: Database, store: ObjectStore) -> None:
    frame = await seed_frame(db, store)
    first = await seed_run(db, store, frame.id)
    await seed_run(db, store, frame.id)
    async with db.write() as session:
        await session.execute(update(Output).where(Output.run_id == first.id).values(deleted_at=utc_now()))
    assert await Removal(db, store).outputs(frame.id)
    assert await outputs_there(db, store) == (3, 3)


async def test_more_outputs_than_go_at_once(db: Database, store: ObjectStore) -> None:
    frame = await seed_frame(db, store)
    await seed_run(db, store, frame.id, completed=70)
    await hide_outputs(db)
    assert await Removal(db, store).outputs(frame.id)
    assert await outputs_there(db, store) == (0, 0)


async def test_what_the_store_refuses_keeps_its_row(
    db: Database, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = await seed_frame(db, store)
    await seed_run(db, store, frame.id)
    await hide_outputs(db)

    async def refuse(_key: str) -> None:
        raise StoreError

    removal = Removal(db, store)
    with monkeypatch.context() as broken:
        broken.setattr(store, "delete", refuse)
        with pytest.raises(StoreError):
            await removal.outputs(frame.id)
    assert await outputs_there(db, store) == (3, 3)
    assert await removal.outputs(frame.id)
    assert await outputs_there(db, store) == (0, 0)


async def test_an_upload_of_content_that_is_going_is_there_at_the_end(db: Database, held: HeldStore) -> None:
    await seed_frame(db, held)
    data = b"a font that somebody had before"
    sha256 = hashlib.sha256(data).hexdigest()
    key = content_key(sha256, ".ttf")
    put = partial(held.put, key, data, media_type="font/ttf")
    await put()
    going = asyncio.create_task(Removal(db, held).objects([key]))
    await held.deleting.wait()

    async def upload() -> None:
        await put()
        async with db.write() as session:
            await still_there(session, held, key, put)
            asset = Asset(id="ast_1", owner_id=OWNER, kind="font", name="x", object_key=key, sha256=sha256, bytes=9)
            asset.created_at = utc_now()
            session.add(asset)

    uploading = asyncio.create_task(upload())
    await asyncio.sleep(0.2)
    held.let_go.set()
    await asyncio.gather(going, uploading)
    assert await held.exists(key)
    async with db.read() as session:
        assert await named(session, [key]) == {key}


async def test_what_rows_name_and_what_they_do_not(db: Database, store: ObjectStore) -> None:
    frame = await seed_frame(db, store, feed_url=None, feed_key="feeds/mine")
    run = await seed_run(db, store, frame.id, completed=1, publish=b"<feed/>")
    badge = content_key("b" * 64, ".png")
    snapshot = {"picture_key": content_key("a" * 64, ".png"), "assets": {"ast_1": {"key": badge}}}
    async with db.write() as session:
        await session.execute(update(Run).values(snapshot=snapshot, feed_key=f"runs/{run.id}/feed-1"))
    async with db.read() as session:
        output = await session.scalar(select(Output.object_key))
        stays = {
            *(str(output), f"sources/{OWNER}/{0:064x}.bin"),
            *(f"runs/{run.id}/{name}" for name in ("feed-1", "output.xml", "output.xml.gz", "output.csv.gz")),
            *("feeds/mine", frame.picture_key, str(snapshot["picture_key"]), badge, "probe/health"),
        }
        goes = {
            *("outputs/aa/bb/other.jpg", f"sources/{OWNER}/other.bin", "feeds/other", content_key("c" * 64, ".png")),
            *(f"runs/{run.id}/output-2.xml", f"runs/{run.id + 1}/output.xml"),
        }
        assert await named(session, stays | goes) == stays
    await hide_outputs(db)
    async with db.write() as session:
        await session.execute(update(Frame).values(feed_key=None))
    async with db.read() as session:
        assert await named(session, stays) == stays - {str(output), "feeds/mine"}
