"""A finished run as its workers would leave it, for tests of what is shown of runs."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, update

from compositor.names import output_key
from models.tables import Frame, Output, Run, RunChunk, RunItem

if TYPE_CHECKING:
    from models.db import Database
    from models.store import ObjectStore

BEGAN = datetime(2026, 11, 1, 12, tzinfo=UTC)
JPEG = b"\xff\xd8\xff"


async def seed_run(  # noqa: PLR0917 - the parts of a run
    db: Database,
    store: ObjectStore,
    frame_id: int,
    completed: int = 3,
    failed: int = 1,
    skipped: int = 1,
    sizes: tuple[str, ...] = ("original",),
    publish: bytes | None = None,
    **columns: Any,
) -> Run:
    """A run whose first items are completed, then failed, then skipped; each output has bytes of its own."""
    total = completed + failed + skipped
    states = ["completed"] * completed + ["failed"] * failed + ["skipped"] * skipped
    async with db.write() as session:
        frame = await session.scalar(select(Frame).where(Frame.id == frame_id))
        assert frame is not None
        values = {
            "state": "completed_with_failures" if failed else "completed",
            "total": total,
            "finished_at": BEGAN + timedelta(minutes=1),
            **columns,
        }
        run = Run(
            frame_id=frame_id,
            owner_id=frame.owner_id,
            trigger="manual",
            snapshot={"picture_key": frame.picture_key},
            feed_url=frame.feed_url,
            partial=False,
            fence=1,
            attempts=1,
            created_at=BEGAN,
            started_at=BEGAN,
            **values,
        )
        session.add(run)
        await session.flush()
        session.add(
            RunChunk(
                run_id=run.id,
                number=0,
                first=0,
                size=total,
                state="done",
                completed=completed,
                reused=0,
                failed=failed,
                skipped=skipped,
                fence=1,
                attempts=1,
            )
        )
        for position, state in enumerate(states):
            source_key = f"sources/{frame.owner_id}/{position:064x}.bin" if state == "completed" else None
            session.add(
                RunItem(
                    run_id=run.id,
                    position=position,
                    product_id=f"sku-{position}",
                    image_url=f"http://shop.example/{position}.jpg",
                    fields={"title": f"Shoe number {position}"},
                    state=state,
                    reused=False,
                    attempts=1,
                    code=None if state == "completed" else f"code_{state}",
                    reason=None if state == "completed" else f"It was {state}.",
                    source_key=source_key,
                    finished_at=BEGAN + timedelta(seconds=total - position),
                )
            )
            if source_key is not None:
                await store.put(source_key, JPEG + b"source %d" % position, media_type="image/jpeg")
                for size in sizes:
                    session.add(await _output(store, run, position, size))
    if publish is not None:
        await _publish(db, store, run, publish)
    return run


async def _output(store: ObjectStore, run: Run, position: int, size: str) -> Output:
    data = JPEG + f"{run.frame_id} {position} {size}".encode()
    name = hashlib.sha256(data).hexdigest()
    key = output_key(name, "jpg")
    await store.put(key, data, media_type="image/jpeg")
    return Output(
        run_id=run.id,
        position=position,
        size=size,
        frame_id=run.frame_id,
        owner_id=run.owner_id,
        name=name,
        suffix="jpg",
        object_key=key,
        width=100,
        height=80,
        bytes=len(data),
        created_at=BEGAN,
    )


async def _publish(db: Database, store: ObjectStore, run: Run, feed: bytes) -> None:
    import gzip

    keys = [f"runs/{run.id}/output.xml", f"runs/{run.id}/output.csv"]
    for key, data in zip(keys, (feed, b"id\r\n1\r\n"), strict=True):
        await store.put(key, data, media_type="application/octet-stream")
        await store.put(f"{key}.gz", gzip.compress(data), media_type="application/gzip")
    async with db.write() as session:
        await session.execute(
            update(Run).where(Run.id == run.id).values(output_feed_key=keys[0], output_csv_key=keys[1])
        )
        await session.execute(update(Frame).where(Frame.id == run.frame_id).values(published_run_id=run.id))
