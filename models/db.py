"""The door to the database: short transactions, the same code on SQLite and PostgreSQL.

SQLite allows one writer at a time and tells the others "locked" unless they asked for the write lock first. So writes
there go through an engine of one connection that begins every transaction with BEGIN IMMEDIATE: writers of this
process queue in order in the pool, and writers of other processes wait inside SQLite. Reads have connections of their
own, which WAL lets run beside a writer.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from models.dbthreads import TransactionThreads
from models.errors import UnavailableError
from models.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sqlalchemy.engine import Connection, Engine

T = TypeVar("T")

BUSY_TIMEOUT_MS = 10_000
POOL_WAIT_S = 10
READERS = 4
POSTGRES_CONNECTIONS = 8
POSTGRES_THREADS = 4
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
            self._write_threads = TransactionThreads(partial(_sqlite_writer_in_threads, self.url), 1)
            self._read_threads = TransactionThreads(partial(_sqlite_reader_in_threads, self.url), 2)
        else:
            self._writer = self._reader = _postgres_engine(self.url)
            self._write_threads = TransactionThreads(partial(_postgres_in_threads, self.url), POSTGRES_THREADS)
            self._read_threads = self._write_threads
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

    async def read_at_once(self, work: Callable[[Connection], T]) -> T:
        """As `read`, for statements that follow each other with nothing between: `work` is called in a thread.

        Raises:
            DatabaseError: the database does not answer.

        """
        with _as_database_error():
            return await self._read_threads.run(work)

    async def write_at_once(self, work: Callable[[Connection], T], committed: Callable[[], None] = lambda: None) -> T:
        """As `write`, likewise; it has ended, committed or not, when a cancelled caller goes on.

        `committed` is called once it is committed, in the thread: a cancelled caller cannot tell by itself.

        Raises:
            DatabaseError: as `write`.

        """
        with _as_database_error():
            return await self._write_threads.run(work, committed)

    async def check(self) -> None:
        """Ask the database for one row.

        Raises:
            DatabaseError: it does not answer.

        """
        async with self.read() as session:
            await session.execute(text("SELECT 1"))

    async def close(self) -> None:
        """Close every connection."""
        await self._read_threads.close()
        await self._write_threads.close()
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
    engine = _asked_from_the_loop(url, connections=1, connect_args={"isolation_level": None})
    _begin_at_once(engine.sync_engine)
    return engine


def _sqlite_reader(url: URL) -> AsyncEngine:
    # no transactions: each call into the driver's thread costs more than the statement itself
    return _asked_from_the_loop(url, connections=READERS, isolation_level="AUTOCOMMIT", skip_autocommit_rollback=True)


def _sqlite_writer_in_threads(url: URL, connections: int) -> Engine:
    engine = _asked_from_threads(url, connections=connections, connect_args={"isolation_level": None})
    _begin_at_once(engine)
    return engine


def _sqlite_reader_in_threads(url: URL, connections: int) -> Engine:
    return _asked_from_threads(
        url, connections=connections, isolation_level="AUTOCOMMIT", skip_autocommit_rollback=True
    )


def _begin_at_once(engine: Engine) -> None:
    @event.listens_for(engine, "begin")
    def start(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _asked_from_the_loop(url: URL, *, connections: int, **options: Any) -> AsyncEngine:
    engine = create_async_engine(url, **_pool(connections), **options)
    _prepare_sqlite(engine.sync_engine, url)
    return engine


def _asked_from_threads(url: URL, *, connections: int, **options: Any) -> Engine:
    engine = create_engine(url.set(drivername="sqlite+pysqlite"), **_pool(connections), **options)
    _prepare_sqlite(engine, url)
    return engine


def _pool(connections: int) -> dict[str, int]:
    return {"pool_size": connections, "max_overflow": 0, "pool_timeout": POOL_WAIT_S}


def _prepare_sqlite(engine: Engine, url: URL) -> None:
    Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True, mode=0o700)

    @event.listens_for(engine, "connect")
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


def _postgres_engine(url: URL) -> AsyncEngine:
    return create_async_engine(url, **_postgres_options(POSTGRES_CONNECTIONS))


def _postgres_in_threads(url: URL, connections: int) -> Engine:
    return create_engine(url, **_postgres_options(connections))


def _postgres_options(connections: int) -> dict[str, Any]:
    return {
        "connect_args": {"connect_timeout": CONNECT_TIMEOUT_S},
        **_pool(connections),
        "pool_pre_ping": True,  # connections of before a restart of the server are replaced, not handed out
    }
