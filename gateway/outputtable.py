"""The rows behind a frame's table of outputs: found, searched, sorted, paged and deleted in the database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, exists, func, or_, select, update
from sqlalchemy.orm import aliased

from gateway.frametable import MOST_ID
from models.db import utc_now
from models.tables import ItemState, Output, Run, RunItem, RunState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement, ScalarResult
    from sqlalchemy.ext.asyncio import AsyncSession

    from models.db import Database

SORTS: dict[str, Any] = {
    "position": RunItem.position,
    "product_id": RunItem.product_id,
    "state": RunItem.state,
    "title": RunItem.fields["title"].as_string(),
    "created_at": RunItem.finished_at,
    "finished_at": RunItem.finished_at,
}
SEARCHES: dict[str, Any] = {
    "product_id": RunItem.product_id,
    "title": RunItem.fields["title"].as_string(),
    "source_url": RunItem.image_url,
    "state": RunItem.state,
    "code": RunItem.code,
    "reason": RunItem.reason,
}
"""Columns that can be searched one by one."""
BROKEN_OFF = (RunState.FAILED.value, RunState.CANCELLED.value)
ZIP_PAGE = 100
POSITIONS_AT_ONCE = 500
"""SQLite's old bound on variables of a statement is 999."""
ALL_STATES = tuple(state.value for state in ItemState)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows: of a run, in some states, whose id, title or address holds a text, and some `SEARCHES` others."""

    run_id: int
    states: tuple[str, ...] = (ItemState.COMPLETED.value,)
    search: str = ""
    columns: tuple[tuple[str, str], ...] = ()

    @property
    def searched(self) -> bool:
        """Whether anything is searched for."""
        return bool(self.search or self.columns)

    def conditions(self, *, searched: bool = True) -> list[ColumnElement[bool]]:
        """A completed item whose outputs were all deleted is not there."""
        living = exists().where(
            Output.run_id == RunItem.run_id, Output.position == RunItem.position, Output.deleted_at.is_(None)
        )
        found: list[ColumnElement[bool]] = [RunItem.run_id == self.run_id]
        if set(self.states) != set(ALL_STATES):
            found.append(RunItem.state.in_(self.states))
        found.append(or_(RunItem.state != ItemState.COMPLETED.value, living))
        if searched and self.search:
            texts = (RunItem.product_id, RunItem.image_url, RunItem.fields["title"].as_string())
            found.append(or_(*(text.icontains(self.search, autoescape=True) for text in texts)))
        if searched:
            found += [SEARCHES[name].icontains(text, autoescape=True) for name, text in self.columns]
        return found


@dataclass(frozen=True, slots=True)
class Row:
    """An entry of the feed with its outputs that are there, in the order of their sizes' names."""

    item: RunItem
    outputs: tuple[Output, ...]


async def shown_run(db: Database, frame_id: int) -> Run | None:
    """The run whose outputs a frame shows: its latest that has entries, so that a run shows while it goes on.

    One that ended before it made anything, such as by a feed that broke off, does not hide what is published.
    """
    has_items = exists().where(RunItem.run_id == Run.id)
    has_outputs = exists().where(Output.run_id == Run.id, Output.deleted_at.is_(None))
    good = or_(Run.state.not_in(BROKEN_OFF), has_outputs)
    query = select(Run).where(Run.frame_id == frame_id, has_items, good).order_by(Run.id.desc()).limit(1)
    async with db.read() as session:
        return await session.scalar(query)


async def count(db: Database, wanted: Wanted, *, searched: bool = True) -> int:
    """How many rows there are; not `searched`: before the search."""
    query = select(func.count()).select_from(RunItem).where(*wanted.conditions(searched=searched))
    async with db.read() as session:
        return await session.scalar(query) or 0


async def page(
    db: Database, wanted: Wanted, *, order: Sequence[tuple[str, bool]], offset: int, limit: int
) -> list[Row]:
    """Some rows in an order that is the same each time: by some of `SORTS`, each with whether it is descending."""
    columns = [SORTS[name].desc() if descending else SORTS[name].asc() for name, descending in order]
    query = select(RunItem).where(*wanted.conditions()).order_by(*columns, RunItem.position)
    query = query.offset(offset).limit(limit)
    async with db.read() as session:
        return await _with_outputs(session, await session.scalars(query))


async def has_outputs(db: Database, wanted: Wanted, positions: Collection[int] | None, size: str | None) -> bool:
    """Whether `walk` would come across an output, of one size if that is asked for."""
    made = aliased(Output)  # the conditions look at outputs themselves
    query = (
        select(made.position)
        .join(RunItem, and_(RunItem.run_id == made.run_id, RunItem.position == made.position))
        .where(*wanted.conditions(), made.deleted_at.is_(None))
        .limit(1)
    )
    if size is not None:
        query = query.where(made.size == size)
    parts = [None] if positions is None else _parts(sorted(set(positions)))
    async with db.read() as session:
        for part in parts:
            some = query if part is None else query.where(made.position.in_(part))
            if await session.scalar(some) is not None:
                return True
    return False


async def find_row(db: Database, run_id: int, position: int) -> Row | None:
    """One entry."""
    query = select(RunItem).where(RunItem.run_id == run_id, RunItem.position == position)
    async with db.read() as session:
        rows = await _with_outputs(session, await session.scalars(query)) if 0 <= position <= MOST_ID else []
    return rows[0] if rows else None


async def walk(
    db: Database, wanted: Wanted, positions: Sequence[int] | None = None
) -> AsyncIterator[tuple[RunItem, Output]]:
    """Every output of the wanted rows, or of some positions of them, a page at a time in the feed's order."""
    after = -1
    chosen = None if positions is None else sorted(set(positions))
    while True:
        query = select(RunItem).where(*wanted.conditions(), RunItem.position > after)
        if chosen is not None:
            part, chosen = chosen[:ZIP_PAGE], chosen[ZIP_PAGE:]
            if not part:
                return
            query = query.where(RunItem.position.in_(part))
        async with db.read() as session:
            rows = await _with_outputs(
                session, await session.scalars(query.order_by(RunItem.position).limit(ZIP_PAGE))
            )
        for row in rows:
            for output in row.outputs:
                yield row.item, output
        if chosen is None and not rows:
            return
        after = rows[-1].item.position if rows and chosen is None else after


async def delete_outputs(
    db: Database, run: Run, positions: Collection[int] | None, size: str | None, *, everywhere: bool
) -> int:
    """Hide outputs of a run, all of it or some positions; the sweeper removes the files. How many there were.

    The frame's other runs name the same file where nothing about a product has changed since. With `everywhere` it is
    hidden there too, unless another output of this run is the same picture: then the file is shared, and stays.
    """
    now = utc_now()
    wanted = [Output.run_id == run.id, Output.deleted_at.is_(None)]
    if size is not None:
        wanted.append(Output.size == size)
    hide = update(Output).values(deleted_at=now)
    parts = [None] if positions is None else _parts(sorted(set(positions)))
    deleted = 0
    async with db.write() as session:
        for part in parts:
            where = wanted if part is None else [*wanted, Output.position.in_(part)]
            done: Any = await session.execute(hide.where(*where))
            deleted += done.rowcount
        if deleted and everywhere:
            await session.execute(hide.where(*_same_elsewhere(run, now)))
    return deleted


def _same_elsewhere(run: Run, hidden_at: datetime) -> list[ColumnElement[bool]]:
    """Outputs of the frame's other runs whose file a run has just lost for good."""
    mine, shown = aliased(Output), aliased(Output)
    lost = select(mine.name).where(mine.run_id == run.id, mine.deleted_at == hidden_at)
    kept = select(shown.name).where(shown.run_id == run.id, shown.deleted_at.is_(None))
    return [
        Output.frame_id == run.frame_id,
        Output.run_id != run.id,
        Output.deleted_at.is_(None),
        Output.name.in_(lost),
        Output.name.not_in(kept.where(shown.name.in_(lost))),
    ]


def _parts(positions: list[int]) -> list[list[int] | None]:
    return [positions[first : first + POSITIONS_AT_ONCE] for first in range(0, len(positions), POSITIONS_AT_ONCE)]


async def _with_outputs(session: AsyncSession, items: ScalarResult[RunItem]) -> list[Row]:
    found = list(items)
    if not found:
        return []
    query = (
        select(Output)
        .where(Output.run_id == found[0].run_id, Output.deleted_at.is_(None))
        .where(Output.position.in_([item.position for item in found]))
        .order_by(Output.position, Output.size)
    )
    outputs: dict[int, list[Output]] = {item.position: [] for item in found}
    for output in await session.scalars(query):
        outputs[output.position].append(output)
    return [Row(item, tuple(outputs[item.position])) for item in found]
