"""When old things are looked for: what is kept every hour, the whole store every day, by one process at a time."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from models.db import DatabaseError
from models.leases import NamedLease
from models.logs import get_logger
from models.store import StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.orphans import Orphans
    from gateway.retention import Retention
    from models.db import Database

EVERY_S = 60.0
LEASE_S = 300.0
RENEWED_EVERY_S = 30.0

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Chore:
    name: str
    pause: timedelta
    work: Callable[[Callable[[], Awaitable[bool]]], Awaitable[object]]


class Housekeeper:
    """One task a process; a lease for each chore says who does it, and when it is due again."""

    def __init__(self, db: Database, retention: Retention, orphans: Orphans) -> None:
        self._db = db
        self._owner = f"hk_{secrets.token_hex(8)}"
        self._chores = (
            _Chore("retention", timedelta(hours=1), retention.sweep),
            _Chore("orphans", timedelta(days=1), orphans.sweep),
        )
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start."""
        self._task = asyncio.create_task(self._work(), name="housekeeper")

    async def stop(self) -> None:
        """Stop at once; whoever gets the lease next begins the chore anew."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def keep(self) -> list[str]:
        """Do the chores that are due and nobody else's; their names.

        Raises:
            DatabaseError, StoreError: one was broken off, and is due again when its lease has run out.

        """
        done = []
        for chore in self._chores:
            lease = NamedLease(self._db, chore.name, self._owner, seconds=LEASE_S)
            if await lease.hold():
                await chore.work(_Renewed(lease))
                await lease.rest(chore.pause)
                done.append(chore.name)
        return done

    async def _work(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.keep()
            except (DatabaseError, StoreError) as problem:
                log.warning("housekeeping_put_off", reason=problem.message)
            except Exception:  # the edge of a task that must not die while the process lives
                log.exception("housekeeping_crashed")


class _Renewed:
    """Whether a lease is still ours, asked of the database every half minute."""

    def __init__(self, lease: NamedLease) -> None:
        self._lease = lease
        self._asked = time.monotonic()

    async def __call__(self) -> bool:
        if time.monotonic() - self._asked < RENEWED_EVERY_S:
            return True
        self._asked = time.monotonic()
        return await self._lease.hold()
