"""The door to the database: short transactions, the same code on SQLite and PostgreSQL.

SQLite allows one writer at a time and tells the others "locked" unless they asked for the write lock first. So writes
there go through an engine of one connection that begins every transaction with BEGIN IMMEDIATE: writers of this
process queue in order in the pool, and writers of other processes wait inside SQLite. Reads have connections of their
own, which WAL lets run beside a writer.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from models.errors import UnavailableError
from models.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BUSY_TIMEOUT_MS = 10_000
POOL_WAIT_S = 10
READERS = 4
POSTGRES_CONNECTIONS = 8
CONNECT_TIMEOUT_S = 5

log = get_logger(__name__)


class DatabaseError(UnavailableError):
    """The database cannot be reached, is locked for too long, or cannot write."""

    code = "database_unavailable"
    default_message = "The database does not answer. Try again later."


class Database:
    """One database. `read()` and `write()` each give a session in a transaction of its own."""

    def __init__(self, url: str) -> None:
        """Open nothing yet; the first session connects.

        Args:
            url: `sqlite:///path`, `postgresql://user:password@host/name` or `postgres://...`.

        Raises:
            ValueError: the address is of another kind; its text is not repeated, since it may hold a password.

        """
        self.url = async_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        if self.is_sqlite:
            self._writer, self._reader = _sqlite_writer(self.url), _sqlite_reader(self.url)
        else:
            self._writer = self._reader = _postgres_engine(self.url)
        self._write_session = async_sessionmaker(self._writer, expire_on_commit=False)
        self._read_session = async_sessionmaker(self._reader, expire_on_commit=False)

    @property
    def writer(self) -> AsyncEngine:
        """The engine of write transactions; migrations run on it."""
        return self._writer

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A session to read with; each statement sees what was committed before it. Objects outlive the session.

        Raises:
            DatabaseError: the database does not answer.

        """
        with _as_database_error():
            async with self._read_session() as session:
                yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """A session that commits at its end, or rolls back when an exception leaves it.

        Raises:
            DatabaseError: the database does not answer, or stayed locked for `BUSY_TIMEOUT_MS`.

        """
        with _as_database_error():
            async with self._write_session() as session, session.begin():
                yield session

    async def check(self) -> None:
        """Ask the database for one row.

        Raises:
            DatabaseError: it does not answer.

        """
        async with self.read() as session:
            await session.execute(text("SELECT 1"))

    async def close(self) -> None:
        """Close every connection."""
        await self._writer.dispose()
        await self._reader.dispose()


class _as_database_error:  # noqa: N801 - used as `with`, where a verb reads better
    """Turn the driver's "cannot" errors into ours; the cause stays attached for the log."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, problem: BaseException | None, _trace: object) -> None:
        if isinstance(problem, (OperationalError, InterfaceError, PoolTimeoutError)):
            log.error("database_failed", reason=str(getattr(problem, "orig", None) or problem))
            raise DatabaseError(retry_after_s=2) from problem


def async_url(text_url: str) -> URL:
    """The address with the driver that we use: aiosqlite or psycopg 3.

    Raises:
        ValueError: not SQLite in a file and not PostgreSQL.

    """
    try:
        url = make_url(text_url)
    except ArgumentError:
        raise ValueError("not a database address") from None
    if url.drivername in ("sqlite", "sqlite+aiosqlite"):
        if url.database in (None, "", ":memory:"):
            raise ValueError("SQLite needs a file: sqlite:///path/igen.db")
        return url.set(drivername="sqlite+aiosqlite")
    if url.drivername in ("postgres", "postgresql", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    raise ValueError("only sqlite:///path and postgresql://... are supported")


def utc_now() -> datetime:
    """This machine's clock, in UTC."""
    return datetime.now(UTC)


def _sqlite_writer(url: URL) -> AsyncEngine:
    # the driver begins no transaction by itself; we do
    engine = _sqlite_engine(url, connections=1, connect_args={"isolation_level": None})

    @event.listens_for(engine.sync_engine, "begin")
    def start(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _sqlite_reader(url: URL) -> AsyncEngine:
    # no transactions: each call into the driver's thread costs more than the statement itself
    return _sqlite_engine(url, connections=READERS, isolation_level="AUTOCOMMIT", skip_autocommit_rollback=True)


def _sqlite_engine(url: URL, *, connections: int, **options: Any) -> AsyncEngine:
    Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = create_async_engine(url, pool_size=connections, max_overflow=0, pool_timeout=POOL_WAIT_S, **options)

    @event.listens_for(engine.sync_engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        for pragma in (
            f"busy_timeout = {BUSY_TIMEOUT_MS}",
            "journal_mode = WAL",
            # NORMAL survives a killed process but may lose the last commits with the power; a row saved before its
            # job is sent must not vanish, and one fsync a commit is small beside a picture
            "synchronous = FULL",
            "foreign_keys = ON",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine


def _postgres_engine(url: URL) -> AsyncEngine:
    return create_async_engine(
        url,
        connect_args={"connect_timeout": CONNECT_TIMEOUT_S},
        pool_size=POSTGRES_CONNECTIONS,
        max_overflow=0,
        pool_timeout=POOL_WAIT_S,
        pool_pre_ping=True,  # connections of before a restart of the server are replaced, not handed out
    )
