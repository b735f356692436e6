"""Run by Alembic, never imported: hands it the open connection and the tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from alembic import context
from sqlalchemy import text

from models.tables import Base, UtcDateTime

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

MIGRATION_LOCK = 0x1_6E_47_65_6E
"""Any number of our own; PostgreSQL's advisory lock lets one process migrate at a time."""


def run(connection: Connection) -> None:
    """Migrate on a connection whose transaction the caller owns (on SQLite it already holds the write lock)."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": MIGRATION_LOCK})
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        transactional_ddl=True,
        render_as_batch=True,
        compare_type=True,
        render_item=_render,
    )
    with context.begin_transaction():
        context.run_migrations()


def _render(kind: str, item: object, _context: object) -> str | Literal[False]:
    """A migration must not change when the program does, so our own types are written as SQL's."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcDateTime) else False


run(context.config.attributes["connection"])
