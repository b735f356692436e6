"""Later uses of an id, found when a feed's rows are all there, and what each chunk then has to skip.

A million rows are gone through in short transactions, each of some chunks, so that no other writer waits for long.
Every step finds the same when it is done twice, so an ingest that is killed here starts this again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Table, case, func, literal_column, select, update

from models.tables import ItemState, RunChunk, RunItem

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from compositor.runlease import RunLease, RunLeases
    from models.db import Database

CHUNKS_AT_ONCE = 200
"""Chunks in one transaction: 10,000 entries of the usual size, some 50 ms."""
DUPLICATE = "duplicate_id", "An earlier entry of the feed has the same id."
ITEMS = cast("Table", RunItem.__table__)
CHUNKS = cast("Table", RunChunk.__table__)


async def mark_duplicates(db: Database, leases: RunLeases, lease: RunLease) -> None:
    """Skip later uses of an id, and count what is skipped; chunks with nothing left to do are done.

    Raises:
        LeaseLostError: another process has the run, or it was cancelled.

    """
    run_id = lease.run.id
    async with db.read() as session:
        repeated = await session.scalar(_repeated_id(run_id)) is not None
        skipped = await session.scalar(_skipped_item(run_id)) is not None
    if not repeated and not skipped:
        return
    start: int | None = 0
    while start is not None:
        async with db.write() as session:
            await leases.guard(session, lease)
            end: int | None = await session.scalar(_start_after(run_id, start))
            if repeated:
                await session.execute(_skip_later_uses(run_id, start, end))
            await _count_skipped(session, run_id, start, end)
        start = end


def _repeated_id(run_id: int) -> Any:
    mine = (RunItem.run_id == run_id, RunItem.product_id.is_not(None))
    return select(RunItem.product_id).where(*mine).group_by(RunItem.product_id).having(func.count() > 1).limit(1)


def _skipped_item(run_id: int) -> Any:
    return select(RunItem.position).where(RunItem.run_id == run_id, RunItem.state == ItemState.SKIPPED.value).limit(1)


def _start_after(run_id: int, start: int) -> Any:
    """Where the next transaction's chunks begin; none: these are the last."""
    following = select(RunChunk.number).where(RunChunk.run_id == run_id, RunChunk.number >= start)
    return following.order_by(RunChunk.number).offset(CHUNKS_AT_ONCE).limit(1)


def _between(column: Any, start: int, end: int | None) -> Any:
    return column >= start if end is None else (column >= start) & (column < end)


def _skip_later_uses(run_id: int, start: int, end: int | None) -> Any:
    """One probe of the index of ids for each entry.

    Conditions are written so that no database takes another index, for one that is long may hold most of a run, nor
    makes a join of the probes.
    """
    earlier = ITEMS.alias("earlier")
    probe = (
        select(literal_column("1"))
        .where(earlier.c.run_id == run_id, earlier.c.product_id == ITEMS.c.product_id)
        .where(earlier.c.position + 0 < ITEMS.c.position)
        .limit(1)
        .scalar_subquery()
    )
    code, reason = DUPLICATE
    return (
        update(ITEMS)
        .where(ITEMS.c.run_id == run_id, _between(ITEMS.c.position, start, end))
        .where(func.coalesce(ITEMS.c.state, "") == ItemState.WAITING.value, probe.is_not(None))
        .values(state=ItemState.SKIPPED.value, code=code, reason=reason)
    )


async def _count_skipped(session: AsyncSession, run_id: int, start: int, end: int | None) -> None:
    number = (
        select(func.coalesce(func.sum(case((ITEMS.c.state == ItemState.SKIPPED.value, 1), else_=0)), 0))
        .where(ITEMS.c.run_id == run_id)
        .where(ITEMS.c.position >= CHUNKS.c.first, ITEMS.c.position < CHUNKS.c.first + CHUNKS.c.size)
        .scalar_subquery()
    )
    these = update(CHUNKS).where(CHUNKS.c.run_id == run_id, _between(CHUNKS.c.number, start, end))
    await session.execute(these.values(skipped=number))
    await session.execute(these.where(CHUNKS.c.skipped == CHUNKS.c.size).values(state="done"))
