"""Objects that no row names: of a process killed between storing and saving, or of a row that names another now.

The store is listed folder by folder. What was written less than a day ago stays: somebody may be about to name it.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import true

from gateway.naming import FOLDERS, named
from gateway.removal import AT_ONCE, Removal
from models.db import utc_now
from models.logs import get_logger
from models.tables import Run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from sqlalchemy import ColumnElement

    from models.db import Database
    from models.store import ObjectStore

OLD = timedelta(days=1)
LOOK_AT_ONCE = 200
PAUSE_S = 0.01
"""Between two looks, so that listing millions of objects does not hold up requests."""

log = get_logger(__name__)


class Orphans:
    """Finds and removes them."""

    def __init__(self, db: Database, store: ObjectStore, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._db = db
        self._store = store
        self._removal = Removal(db, store)
        self._clock = clock

    async def sweep(self, still_ours: Callable[[], Awaitable[bool]]) -> int:
        """Go through the whole store once; how many were removed. `still_ours` is asked now and then.

        Raises:
            DatabaseError, StoreError: the rest is looked at next time.

        """
        removed = 0
        for folder in FOLDERS:
            batch: list[str] = []
            async for key in self._store.list(folder):
                batch.append(key)
                if len(batch) == LOOK_AT_ONCE:
                    removed += await self._look(folder, batch)
                    batch = []
                    if not await still_ours():
                        return removed
                    await asyncio.sleep(PAUSE_S)
            removed += await self._look(folder, batch)
        return removed

    async def _look(self, folder: str, keys: list[str]) -> int:
        before = self._clock() - OLD
        async with self._db.read() as session:
            free = set(keys) - await named(session, keys)
        old = await self._removal.old(sorted(free), before)
        removed = 0
        for first in range(0, len(old), AT_ONCE):
            part = old[first : first + AT_ONCE]
            if await self._removal.objects(part, idle=_users(folder, part[0]), older_than=before):
                removed += len(part)
                log.info("orphans_removed", folder=folder, count=len(part), first=part[0])
        return removed


def _users(folder: str, key: str) -> ColumnElement[bool] | None:
    """The runs whose workers may come across objects of a folder without a row that names them."""
    if folder == "sources":
        return Run.owner_id == key.split("/")[1]
    return true() if folder == "outputs" else None
