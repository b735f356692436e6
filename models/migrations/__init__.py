"""The database's history. Alembic is configured here, in code; there is no alembic.ini."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection

    from models.db import Database


class SchemaError(Exception):
    """The database's tables are not those that this version of the program knows."""


async def upgrade(db: Database, revision: str = "head") -> None:
    """Bring the tables up to a revision, all steps in one transaction. Safe to run twice, and from two processes."""
    await _run(db, lambda config: command.upgrade(config, revision))


async def downgrade(db: Database, revision: str = "base") -> None:
    """Take the tables back to a revision; `base` is an empty database."""
    await _run(db, lambda config: command.downgrade(config, revision))


async def new_revision(db: Database, message: str) -> None:
    """Write the next file of `versions/` from the difference between the tables and the database."""
    await _run(db, lambda config: command.revision(config, message, autogenerate=True))


async def check_schema(db: Database) -> None:
    """Hold the database against the newest migration.

    Raises:
        SchemaError: it is older or newer than this program.
        DatabaseError: it does not answer.

    """
    async with db.read() as session:
        found = await (await session.connection()).run_sync(_current)
    wanted = ScriptDirectory.from_config(_config()).get_current_head()
    if found != wanted:
        state = "has no tables yet" if found is None else f"is at revision {found}, this program needs {wanted}"
        raise SchemaError(f"the database {state}: run `python -m gateway migrate`")


async def _run(db: Database, step: Callable[[Config], object]) -> None:
    def inside(connection: Connection) -> None:
        config = _config()
        config.attributes["connection"] = connection
        step(config)

    async with db.writer.begin() as connection:
        await connection.run_sync(inside)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()
