"""Statements that several modules need, the same on SQLite and PostgreSQL."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy.dialects import postgresql, sqlite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Table
    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncSession


def changed(result: Any) -> int:
    """How many rows a statement changed."""
    return int(result.rowcount)


async def insert_many(
    session: AsyncSession, table: str, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> None:
    """Insert many rows of plain values by the driver's own bulk call: several times as fast as through statements.

    Measured with 100,000 feed entries: COPY on PostgreSQL and one prepared INSERT on SQLite. JSON is given as text.
    """
    connection: Any = await (await session.connection()).get_raw_connection()
    driver = connection.driver_connection
    names = ", ".join(columns)
    if session.get_bind().dialect.name == "sqlite":
        places = ", ".join("?" * len(columns))
        await driver.executemany(f"INSERT INTO {table} ({names}) VALUES ({places})", rows)  # noqa: S608 - our names
        return
    async with driver.cursor() as cursor, cursor.copy(f"COPY {table} ({names}) FROM STDIN") as copy:
        for row in rows:
            await copy.write_row(row)


def upsert(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows, or overwrite those with the same primary key. All rows have the same columns."""
    if rows:
        connection.execute(_upsert(table, connection.dialect.name, tuple(rows[0])), list(rows))


@lru_cache(maxsize=16)
def _upsert(table: Table, dialect: str, columns: tuple[str, ...]) -> Any:
    insert: Any = (sqlite if dialect == "sqlite" else postgresql).insert(table)
    keys = [column.name for column in table.primary_key]
    new = {name: insert.excluded[name] for name in columns if name not in keys}
    return insert.on_conflict_do_update(index_elements=keys, set_=new)
