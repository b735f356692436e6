"""The database: does it answer, can it be written, is it this version's; its clock, its first key, its reconciler."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import func, select, text, update
from sqlalchemy.exc import SQLAlchemyError

from compositor.reconcile import LEASE, LEASE_S
from gateway.keys import Keys
from models.db import Database, DatabaseError, utc_now
from models.migrations import SchemaError, check_schema
from models.tables import Lease
from scripts.diagnosing.finding import clock, fault, good, program, skipped, warning

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from scripts.diagnosing.finding import Finding

PART = "database"


async def check_database(address: str, home: Path, *, runs: bool) -> AsyncIterator[Finding]:
    """One finding after the other, as far as it goes."""
    db = Database(address)
    kind = "SQLite" if db.is_sqlite else "PostgreSQL"
    if db.is_sqlite and not _file_of(db).exists():
        mend = f"start IGen once, run `{program('gateway init')}`, or correct IGEN_DATABASE_URL"
        yield fault(PART, f"there is no {_file_of(db)}", mend)
        return
    try:
        async for finding in _looked_at(db, kind, home, runs=runs):
            yield finding
    except (DatabaseError, SQLAlchemyError) as problem:
        cause = problem.__cause__ or problem
        reason = str(getattr(cause, "orig", None) or cause).strip().splitlines()[0]
        mend = (
            "see that the file and its folder are this user's, and that the disk is neither full nor read-only"
            if db.is_sqlite
            else "see that PostgreSQL runs, that this machine reaches it, and that user, password and name in "
            "IGEN_DATABASE_URL are right"
        )
        yield fault(PART, f"{kind} does not answer or cannot write: {reason}", mend)
    finally:
        await db.close()


async def _looked_at(db: Database, kind: str, home: Path, *, runs: bool) -> AsyncIterator[Finding]:
    await db.check()
    try:
        await check_schema(db)
    except SchemaError as problem:
        mend = f"{program('gateway migrate')}, with all programs of the former version stopped"
        yield fault(PART, str(problem), mend)
        return
    async with db.write() as session:
        await session.execute(update(Lease).where(Lease.name == "").values(owner=""))
    yield good(PART, f"{kind} answers, can be written, and is at this version's revision")
    if not db.is_sqlite:
        async with db.read() as session:
            now = await session.scalar(select(func.now()))
        if now is not None:
            yield clock("database's clock", (now.astimezone(UTC) - datetime.now(UTC)).total_seconds())
    else:
        yield await _check_wal(db)
    if (home / "first-key").exists():  # that it is missing was said already
        yield await _check_key(db, home)
    yield await _check_reconciler(db, runs=runs)


async def _check_wal(db: Database) -> Finding:
    async with db.read() as session:
        mode = await session.scalar(text("PRAGMA journal_mode"))
    if mode != "wal":
        mend = "keep it on a local disk: WAL does not work on network file systems"
        return fault(PART, f"SQLite's journal is {mode} and not WAL, so readers wait for writers", mend)
    return good(PART, "SQLite's journal is WAL; use PostgreSQL for gateways or workers on several machines")


async def _check_key(db: Database, home: Path) -> Finding:
    path = home / "first-key"
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return skipped("first key", f"{path} cannot be read")
    if await Keys(db).find(key) is None:
        mend = f"{program('gateway init')} makes a new one; was it revoked, or is this another database?"
        return warning("first key", f"the key in {path} does not work", mend)
    return good("first key", "it works")


async def _check_reconciler(db: Database, *, runs: bool) -> Finding:
    async with db.read() as session:
        lease = await session.get(Lease, LEASE)
    late = None if lease is None else utc_now() - lease.expires_at
    if late is not None and late < timedelta(seconds=LEASE_S):
        return good("reconciler", "one is at work")
    if not runs:
        return skipped("reconciler", "none is at work; nothing of IGen runs here")
    mend = f"start `{program('compositor reconcile')}`; without it runs stand still when a worker dies"
    return fault("reconciler", "none is at work", mend)


def _file_of(db: Database) -> Path:
    return Path(str(db.url.database))
