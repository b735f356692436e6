"""The objects that a database's rows name: those that a backup must have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, select

from models.tables import Asset, Frame, Output, Picture, Run, RunItem, Source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection

PAGE = 10_000
COLUMNS: tuple[tuple[Any, Any], ...] = (
    (Picture.object_key, Picture.deleted_at),
    (Asset.object_key, Asset.deleted_at),
    (Frame.picture_key, Frame.deleted_at),
    (Frame.feed_key, Frame.deleted_at),
    (Run.feed_key, None),
    (Run.output_feed_key, None),
    (Run.output_csv_key, None),
    (RunItem.source_key, None),
    (Output.object_key, Output.deleted_at),
    (Source.object_key, None),
)
"""Each column of keys, and the one that says when a row only waits for its object's deletion."""


def revision_of(connection: Connection) -> str | None:
    """The migration that a database is at; None for one without tables."""
    return MigrationContext.configure(connection).get_current_revision()


def named_keys(connection: Connection) -> Iterator[str]:
    """Keys that rows name, perhaps some more than once. Columns that an older database has not got are left out."""
    tables = inspect(connection)
    known = {table: {column["name"] for column in tables.get_columns(table)} for table in tables.get_table_names()}
    for column, deleted in COLUMNS:
        there = known.get(column.class_.__tablename__, set())
        if column.name not in there:
            continue
        query = select(column).where(column.is_not(None)).distinct()
        if deleted is not None and deleted.name in there:
            query = query.where(deleted.is_(None))
        for (key,) in connection.execution_options(yield_per=PAGE).execute(query):
            yield str(key)
