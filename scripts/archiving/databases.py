"""One snapshot of a database as a file, and a database from such a file; for SQLite and for PostgreSQL."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, inspect, text
from sqlalchemy.exc import OperationalError

from models.db import async_url
from scripts.calling.folder import sync_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import URL, Connection

BUSY_S = 10.0
LOCKED = "Stop IGen (scripts/up, or each gateway, worker and reconciler) first, then run this again."
TOO_OLD = ("server version mismatch", "unsupported version")
"""What pg_dump says of a newer server, and pg_restore of a newer one's dump."""
INSTALL = (
    "it comes with PostgreSQL's client programs (apt-get install postgresql-client), of the server's version or newer"
)


class DatabaseProblemError(Exception):
    """The database cannot be read or written; the message says what to do."""


@contextmanager
def snapshot(address: str, target: Path) -> Iterator[Connection]:
    """Write a consistent copy of a database that may be in use, and lend a connection that sees the same rows.

    Raises:
        DatabaseProblemError: it does not answer, or its program is missing or fails.

    """
    url = async_url(address)
    target.unlink(missing_ok=True)
    with _sqlite_snapshot(url, target) if is_sqlite(address) else _postgres_snapshot(url, target) as connection:
        yield connection


def is_sqlite(address: str) -> bool:
    """Whether an address names SQLite."""
    return async_url(address).get_backend_name() == "sqlite"


def is_empty(address: str) -> bool:
    """Whether a database has no tables at all, or is not even there."""
    url = async_url(address)
    if is_sqlite(address) and not _file_of(url).exists():
        return True
    with connected(url) as connection:
        return not inspect(connection).get_table_names()


def restore(address: str, source: Path, *, replace: bool) -> None:
    """Make a database from a snapshot's file; with `replace` whatever is in it goes first.

    Raises:
        DatabaseProblemError: it is in use, does not answer, or does not take the snapshot.

    """
    url = async_url(address)
    if is_sqlite(address):
        _restore_sqlite(url, source)
    else:
        _restore_postgres(url, source, replace=replace)


def refuse_in_use(address: str) -> None:
    """See that nobody else is connected.

    Raises:
        DatabaseProblemError: somebody is.

    """
    url = async_url(address)
    if not is_sqlite(address):
        others = (
            "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        with connected(url) as connection:
            if count := connection.execute(text(others)).scalar_one():
                raise DatabaseProblemError(f"IGEN_DATABASE_URL: {count} others are connected to it. {LOCKED}")
    elif _file_of(url).exists():
        _take_whole(_file_of(url))


def _take_whole(path: Path) -> None:
    """In WAL mode an exclusive lock is had only while no other process has the file open."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=1)) as database:
        try:
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.execute("BEGIN EXCLUSIVE")
            database.execute("ROLLBACK")
        except sqlite3.OperationalError:
            raise DatabaseProblemError(f"IGEN_DATABASE_URL: another program has {path} open. {LOCKED}") from None
        except sqlite3.DatabaseError as problem:  # it is to be replaced; what it is now does not matter
            if "not a database" not in str(problem):
                raise


@contextmanager
def connected(url: URL) -> Iterator[Connection]:
    """A plain connection, in a transaction of one snapshot on PostgreSQL."""
    options: dict[str, Any] = {} if url.get_backend_name() == "sqlite" else {"isolation_level": "REPEATABLE READ"}
    plain = url.set(drivername="sqlite") if url.get_backend_name() == "sqlite" else url
    engine = create_engine(plain, **options)
    try:
        with engine.connect() as connection:
            yield connection
    except OperationalError as problem:
        raise DatabaseProblemError(f"IGEN_DATABASE_URL: the database does not answer: {problem.orig}") from None
    finally:
        engine.dispose()


@contextmanager
def _sqlite_snapshot(url: URL, target: Path) -> Iterator[Connection]:
    path = _file_of(url)
    if not path.is_file():
        raise DatabaseProblemError(f"IGEN_DATABASE_URL: there is no {path}")
    try:
        source = sqlite3.connect(f"file:{_quoted(path)}?mode=ro", uri=True, timeout=BUSY_S)
        with closing(source) as live, closing(sqlite3.connect(target)) as copy:
            live.backup(copy)  # in one step: readers and, in WAL mode, writers go on beside it
            copy.execute("PRAGMA journal_mode = DELETE")
            (state,) = copy.execute("PRAGMA integrity_check(1)").fetchone()
        if state != "ok":
            raise DatabaseProblemError(f"IGEN_DATABASE_URL: {path} is damaged: {state}")
    except sqlite3.Error as problem:
        raise DatabaseProblemError(f"IGEN_DATABASE_URL: {path}: {problem}") from None
    with connected(url.set(database=str(target))) as connection:
        yield connection


@contextmanager
def _postgres_snapshot(url: URL, target: Path) -> Iterator[Connection]:
    with connected(url) as connection:
        name = str(connection.execute(text("SELECT pg_export_snapshot()")).scalar_one())
        _run(
            "pg_dump",
            url,
            "--format=custom",
            "--no-owner",
            "--no-privileges",
            f"--snapshot={name}",
            f"--file={target}",
        )
        yield connection


def _restore_sqlite(url: URL, source: Path) -> None:
    path = _file_of(url)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    refuse_in_use(url.render_as_string(hide_password=False))
    part = path.with_name(f".{path.name}.restored")
    shutil.copyfile(source, part)
    part.chmod(0o600)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    for suffix in ("-wal", "-shm"):  # of the former database: with the new one they would damage it
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    part.replace(path)
    sync_folder(path.parent)


def _restore_postgres(url: URL, source: Path, *, replace: bool) -> None:
    if replace:
        with connected(url) as connection:
            for table in inspect(connection).get_table_names():
                quoted = connection.dialect.identifier_preparer.quote(table)
                connection.execute(text(f"DROP TABLE IF EXISTS {quoted} CASCADE"))
            connection.commit()
    _run("pg_restore", url, "--no-owner", "--no-privileges", "--single-transaction", "--exit-on-error", str(source))


def _run(program: str, url: URL, *arguments: str) -> None:
    """A program of PostgreSQL. The password goes by the environment, which other users do not see."""
    path = shutil.which(program)
    if path is None:
        raise DatabaseProblemError(f"{program} is not installed: {INSTALL}")
    where = url.set(drivername="postgresql")
    secret = {"PGPASSWORD": where.password} if where.password else {}
    bare = where._replace(password=None).render_as_string()
    done = subprocess.run(
        [path, f"--dbname={bare}", *arguments],
        env={**os.environ, "LC_ALL": "C", **secret},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        words = " ".join(line.removeprefix(f"{program}: ") for line in lines[:3])
        older = any(each in words for each in TOO_OLD)
        raise DatabaseProblemError(f"{program}: {words}{f' ({program} is too old: {INSTALL})' if older else ''}")


def _file_of(url: URL) -> Path:
    return Path(str(url.database))


def _quoted(path: Path) -> str:
    return str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
