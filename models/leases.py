"""Leases by name, each held by one process at a time; and the lock between those who name objects and who delete."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Table, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from models.db import utc_now
from models.tables import Lease

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncSession

    from models.db import Database

DELETING = 0x1_6E_53_77_70
"""Any number of our own: the advisory lock of PostgreSQL between naming objects and deleting them."""


class NamedLease:
    """One process's hold on one row of `leases`. Clocks of the processes must agree within a few seconds."""

    def __init__(
        self, db: Database, name: str, owner: str, *, seconds: float, clock: Callable[[], datetime] = utc_now
    ) -> None:
        self._db = db
        self._name = name
        self._owner = owner
        self._lease = timedelta(seconds=seconds)
        self._clock = clock

    async def hold(self) -> bool:
        """Take the lease, or prolong it; False: another process has it.

        Raises:
            DatabaseError: nobody knows.

        """
        now = self._clock()
        mine_or_free = (Lease.name == self._name, (Lease.owner == self._owner) | (Lease.expires_at <= now))
        values = {"owner": self._owner, "expires_at": now + self._lease}
        async with self._db.write() as session:
            held: Any = await session.execute(update(Lease).where(*mine_or_free).values(**values))
            if held.rowcount:
                return True
            there = await session.get(Lease, self._name)
        return there is None and await self._make(values)

    async def rest(self, pause: timedelta) -> None:
        """Give the lease up, for nobody to take before `pause` is over."""
        mine = (Lease.name == self._name, Lease.owner == self._owner)
        async with self._db.write() as session:
            await session.execute(update(Lease).where(*mine).values(owner="", expires_at=self._clock() + pause))

    async def _make(self, values: dict[str, Any]) -> bool:
        try:
            async with self._db.write() as session:
                await session.execute(insert(cast("Table", Lease.__table__)), {"name": self._name, **values})
        except IntegrityError:  # another process was first
            return False
        return True


async def about_to_name(session: AsyncSession) -> None:
    """Let nothing be deleted from the store until this transaction ends: its rows name objects that are there.

    To be called before the look whether they are. On PostgreSQL transactions that name do not wait for each other; on
    SQLite one transaction at a time writes anyway.
    """
    await _lock(session, func.pg_advisory_xact_lock_shared)


async def about_to_delete(session: AsyncSession) -> None:
    """Let no row that names an object come into being until this transaction ends. To be called before the look."""
    await _lock(session, func.pg_advisory_xact_lock)


async def _lock(session: AsyncSession, function: Any) -> None:
    await session.connection()  # the transaction begins here, on SQLite with the write lock, and not at `write()`
    if session.get_bind().dialect.name == "postgresql":
        await session.execute(select(function(DELETING)))
