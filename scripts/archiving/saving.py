"""From a live database and store to an archive that is consistent: every object that its rows name is in it.

The database is copied first, then the store. An object that was deleted in between belongs to a row that is gone by
now too, so the database is copied again, until nothing that it names is missing. Objects that no row names do no
harm: after a restore they are swept as orphans.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from models.db import utc_now
from models.store import ObjectMissingError
from models.version import VERSION
from scripts.archiving.archive import DATABASES, FORMAT, OBJECTS, ArchiveError, ArchiveWriter, Header
from scripts.archiving.databases import is_sqlite, snapshot
from scripts.archiving.references import named_keys, revision_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.store import ObjectStore

SNAPSHOTS = 3
PROBES = "probe/"


async def save(address: str, store: ObjectStore, target: Path, told: Callable[[int], None]) -> Header:
    """Write `target`; `told` is called with the bytes of each object.

    Raises:
        DatabaseProblemError, StoreError: of the database and of the store.
        ArchiveError: the database has no tables.
        OSError: `target` cannot be written; nothing of it is left.

    """
    kind = "sqlite" if is_sqlite(address) else "postgresql"
    with (
        tempfile.TemporaryDirectory(prefix=".igen-backup-", dir=target.parent) as folder,
        ArchiveWriter(target) as out,
    ):
        scratch, copy = Path(folder) / "object", Path(folder) / DATABASES[kind]
        missing: set[str] = set()
        revision: str | None = None
        for attempt in range(SNAPSHOTS):
            with snapshot(address, copy) as connection:
                revision = revision_of(connection)
                wanted = set(named_keys(connection))
            if revision is None:
                raise ArchiveError("IGEN_DATABASE_URL: the database has no tables yet; there is nothing to back up")
            if attempt == 0:
                await _add_all(store, out, scratch, told)
            missing = await _add_named(store, out, scratch, wanted, told)
            if not missing:
                break
        assert revision is not None
        objects, size = len(out.written), out.bytes
        out.add(DATABASES[kind], copy)
        header = Header(
            FORMAT, VERSION, revision, kind, utc_now().isoformat(timespec="seconds"), objects, size, sorted(missing)
        )
        out.finish(header)
        return header


async def _add_all(store: ObjectStore, out: ArchiveWriter, scratch: Path, told: Callable[[int], None]) -> None:
    async for key in store.list():
        if not key.startswith(PROBES):
            await _add(store, out, scratch, key, told)


async def _add_named(
    store: ObjectStore, out: ArchiveWriter, scratch: Path, keys: set[str], told: Callable[[int], None]
) -> set[str]:
    """Put in what is not in yet; those that the store has not got."""
    new = sorted(key for key in keys if OBJECTS + key not in out.written)
    return {key for key in new if not await _add(store, out, scratch, key, told)}


async def _add(store: ObjectStore, out: ArchiveWriter, scratch: Path, key: str, told: Callable[[int], None]) -> bool:
    try:
        size = await store.get_file(key, scratch)
    except ObjectMissingError:
        return False
    out.add(OBJECTS + key, scratch)
    told(size)
    return True
