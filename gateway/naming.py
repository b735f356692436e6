"""Which objects of the store are named by rows: what is not may go, and only then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import or_, select

from models.leases import about_to_name
from models.tables import Asset, Frame, Generation, GenerationState, Output, Picture, Run, RunItem, Source

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import InstrumentedAttribute

    from models.store import ObjectStore

FOLDERS = ("objects", "feeds", "runs", "outputs", "sources", "inputs")
"""Of the store: pictures and fonts by content, uploaded feeds, feeds of runs, framed pictures, products' pictures,
and pictures that generations were asked to start from."""


async def named(session: AsyncSession, keys: Collection[str]) -> set[str]:
    """Those of some keys that a row names. Rows that only wait for their object's deletion do not count.

    What lies in none of `FOLDERS` is not ours to judge and counts as named.
    """
    found: set[str] = set()
    for folder in {key.partition("/")[0] for key in keys}:
        here = sorted(key for key in keys if key.startswith(f"{folder}/"))
        found |= await _of_folder(session, folder, here)
    return found


async def _of_folder(session: AsyncSession, folder: str, keys: list[str]) -> set[str]:
    if folder == "outputs":
        return await _in(session, keys, Output.object_key, Output.deleted_at.is_(None))
    if folder == "sources":
        return await _in(session, keys, Source.object_key) | await _in(session, keys, RunItem.source_key)
    if folder == "feeds":
        return await _in(session, keys, Frame.feed_key) | await _in(session, keys, Run.feed_key)
    judges = {"runs": _of_runs, "inputs": _of_generations, "objects": _contents}
    return await judges[folder](session, keys) if folder in judges else set(keys)


async def _in(session: AsyncSession, keys: list[str], column: InstrumentedAttribute[Any], *where: Any) -> set[str]:
    return set(await session.scalars(select(column).where(column.in_(keys), *where).distinct()))


async def _of_runs(session: AsyncSession, keys: list[str]) -> set[str]:
    """A run's copy of its feed, and what it published; of that there is a copy with `.gz` at its end."""
    ids = {int(number) for key in keys if (number := key.split("/")[1]).isdigit()}
    columns = (Run.feed_key, Run.output_feed_key, Run.output_csv_key)
    found: set[str] = set()
    for feed, *published in await session.execute(select(*columns).where(Run.id.in_(ids))):
        found |= {str(feed), *map(str, published), *(f"{key}.gz" for key in published)}
    return found & set(keys)


async def _of_generations(session: AsyncSession, keys: list[str]) -> set[str]:
    """What a generation was asked to start from, unless it ended without a picture or was deleted."""
    ids = {key.split("/")[1] for key in keys}
    failed = GenerationState.FAILED.value
    wanted = (Generation.state != failed, Generation.deleted_at.is_(None))
    query = select(Generation.id).where(Generation.id.in_(ids), *wanted)
    there = set(await session.scalars(query))
    return {key for key in keys if key.split("/")[1] in there}


async def _contents(session: AsyncSession, keys: list[str]) -> set[str]:
    found = await _in(session, keys, Picture.object_key, Picture.deleted_at.is_(None))
    found |= await _in(session, keys, Asset.object_key, Asset.deleted_at.is_(None))
    found |= await _in(session, keys, Frame.picture_key)
    return found | await _started_with(session, set(keys) - found)


async def _started_with(session: AsyncSession, keys: set[str]) -> set[str]:
    """What a run was started with is there for its retry: its picture, and its assets' files."""
    if not keys:
        return set()
    picture, assets = Run.snapshot["picture_key"].as_string(), Run.snapshot["assets"].as_string()
    pictures = select(picture).where(picture.in_(sorted(keys))).distinct()
    told = or_(*(assets.contains(key, autoescape=True) for key in sorted(keys)))
    texts = list(await session.scalars(select(assets).where(told).distinct()))
    return set(await session.scalars(pictures)) | {key for key in keys if any(key in text for text in texts)}


async def still_there(
    session: AsyncSession, store: ObjectStore, key: str, put_again: Callable[[], Awaitable[None]]
) -> None:
    """See to it that an object just stored is there when this transaction, whose rows name it, ends.

    Equal content shares one object, so an older copy without a row may have been on its way out meanwhile.

    Raises:
        StoreError: it was, and cannot be stored again.

    """
    await about_to_name(session)
    if not await store.exists(key):
        await put_again()
