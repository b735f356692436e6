"""Reads and writes of frames and assets. Another owner's row is not there, and neither is a deleted one."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select, update

from models.db import utc_now
from models.errors import InvalidInputError, NotFoundError
from models.tables import Asset, Frame, Output, Run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sqlalchemy.ext.asyncio import AsyncSession

    from compositor.design import Design
    from models.db import Database

    InTransaction = Callable[[AsyncSession], Awaitable[None]]

MOST_ID = 2**31 - 1
"""PostgreSQL's INTEGER."""


async def find_frame(db: Database, owner_id: str, frame_id: int) -> Frame:
    """An owner's frame.

    Raises:
        NotFoundError: none of this id, another's, or deleted.

    """
    query = select(Frame).where(Frame.id == frame_id, Frame.owner_id == owner_id, Frame.deleted_at.is_(None))
    async with db.read() as session:
        frame = await session.scalar(query) if 0 < frame_id <= MOST_ID else None
    if frame is None:
        raise NotFoundError
    return frame


async def list_frames(
    db: Database, owner_id: str, *, search: str, offset: int, limit: int
) -> tuple[list[Frame], int]:
    """A page of an owner's frames, newest first, and how many there are in all."""
    wanted = [Frame.owner_id == owner_id, Frame.deleted_at.is_(None)]
    if search:
        wanted.append(Frame.name.icontains(search, autoescape=True))
    query = select(Frame).where(*wanted).order_by(Frame.id.desc()).offset(offset).limit(limit)
    async with db.read() as session:
        total = await session.scalar(select(func.count()).select_from(Frame).where(*wanted))
        return list(await session.scalars(query)), total or 0


async def latest_runs(db: Database, frame_ids: Sequence[int]) -> dict[int, Run]:
    """The newest run of each frame that has one."""
    newest = select(func.max(Run.id)).where(Run.frame_id.in_(frame_ids)).group_by(Run.frame_id)
    async with db.read() as session:
        return {run.frame_id: run for run in await session.scalars(select(Run).where(Run.id.in_(newest)))}


async def add_frame(db: Database, frame: Frame, before: InTransaction, after: InTransaction) -> None:
    """Save a new frame; `before` and `after` (it has its `id` then) are done in the same transaction."""
    async with db.write() as session:
        await before(session)
        session.add(frame)
        await session.flush()
        await after(session)


async def change_frame(
    db: Database, frame: Frame, values: dict[str, Any], before: InTransaction | None = None
) -> Frame:
    """Change some columns and count the revision up, in a transaction that begins with `before`.

    Raises:
        NotFoundError: it was deleted meanwhile.

    """
    query = update(Frame).where(Frame.id == frame.id, Frame.deleted_at.is_(None))
    query = query.values(**values, revision=Frame.revision + 1, updated_at=utc_now())
    async with db.write() as session:
        if before is not None:
            await before(session)
        done = await session.execute(query.returning(Frame.id))
        if done.first() is None:
            raise NotFoundError
    return await find_frame(db, frame.owner_id, frame.id)


async def delete_frame(db: Database, frame: Frame) -> None:
    """Hide a frame with its outputs and its feed at once; the sweeper removes rows and objects."""
    now = utc_now()
    outputs = update(Output).where(Output.frame_id == frame.id, Output.deleted_at.is_(None))
    async with db.write() as session:
        await session.execute(
            update(Frame)
            .where(Frame.id == frame.id)
            .values(deleted_at=now, feed_token=None, next_refresh_at=None, published_run_id=None)
        )
        await session.execute(outputs.values(deleted_at=now))


def due(refresh_seconds: int | None) -> dict[str, Any]:
    """The columns of a refresh interval that begins now."""
    at = None if refresh_seconds is None else utc_now() + timedelta(seconds=refresh_seconds)
    return {"refresh_seconds": refresh_seconds, "next_refresh_at": at}


async def find_asset(db: Database, owner_id: str, asset_id: str) -> Asset:
    """An owner's asset.

    Raises:
        NotFoundError: none of this id, another's, or deleted.

    """
    query = select(Asset).where(Asset.id == asset_id, Asset.owner_id == owner_id, Asset.deleted_at.is_(None))
    async with db.read() as session:
        asset = await session.scalar(query)
    if asset is None:
        raise NotFoundError
    return asset


async def list_assets(
    db: Database, owner_id: str, *, kind: str | None, offset: int, limit: int
) -> tuple[list[Asset], int]:
    """A page of an owner's assets, newest first, and how many there are in all."""
    wanted = [Asset.owner_id == owner_id, Asset.deleted_at.is_(None)]
    if kind is not None:
        wanted.append(Asset.kind == kind)
    query = select(Asset).where(*wanted).order_by(Asset.id.desc()).offset(offset).limit(limit)
    async with db.read() as session:
        total = await session.scalar(select(func.count()).select_from(Asset).where(*wanted))
        return list(await session.scalars(query)), total or 0


async def check_assets(db: Database, owner_id: str, design: Design) -> None:
    """See that a design names only assets of its owner, each of the right kind.

    Raises:
        InvalidInputError: naming the first that is not.

    """
    if not design.assets:
        return
    query = select(Asset.id, Asset.kind).where(
        Asset.id.in_(design.assets), Asset.owner_id == owner_id, Asset.deleted_at.is_(None)
    )
    async with db.read() as session:
        kinds = {row.id: row.kind for row in await session.execute(query)}
    named = [(f"design.texts.{place}.font", layer.font, "font") for place, layer in enumerate(design.texts)]
    named += [
        (f"design.badges.{place}.badges.{number}.asset", badge.asset, "badge")
        for place, layer in enumerate(design.badges)
        for number, badge in enumerate(layer.badges)
    ]
    for where, asset, kind in named:
        if asset.startswith("ast_") and kinds.get(asset) != kind:
            raise InvalidInputError.for_field(where, f"there is no {kind} of this id")


async def designs_naming(db: Database, owner_id: str, asset_id: str) -> list[int]:
    """Ids of the owner's frames whose design names an asset."""
    query = select(Frame.id, Frame.design).where(Frame.owner_id == owner_id, Frame.deleted_at.is_(None))
    async with db.read() as session:
        return [row.id for row in await session.execute(query) if asset_id in str(row.design)]
