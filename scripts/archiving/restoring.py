"""From an archive to a database and a store. Objects go first, so that no row ever names what is not there."""

from __future__ import annotations

import mimetypes
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError

from models import migrations
from models.db import Database
from models.migrations import upgrade
from scripts.archiving.archive import DATABASES, OBJECTS, ArchiveError, reading
from scripts.archiving.databases import is_empty, is_sqlite, refuse_in_use, restore
from scripts.archiving.saving import PROBES

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.store import ObjectStore
    from scripts.archiving.archive import Header

UNKNOWN_TYPE = "application/octet-stream"


class TargetError(Exception):
    """The archive does not go into this database and store; the message says why."""


async def check_target(header: Header, address: str, store: ObjectStore, *, force: bool) -> None:
    """Refuse what would lose something, or would not work afterwards.

    Raises:
        TargetError: another kind of database, a newer one than this program knows, or something is there already.
        DatabaseProblemError, StoreError: they do not answer, or others use the database.

    """
    kind = "sqlite" if is_sqlite(address) else "postgresql"
    if header.database != kind:
        raise TargetError(f"IGEN_DATABASE_URL: the backup is of {header.database}, this names {kind}")
    if not _is_known(header.revision):
        raise TargetError(
            f"The backup is of IGen {header.version} with a database at revision {header.revision}, which this "
            "version does not know: install that version or a newer one"
        )
    if not force:
        await _refuse_filled(address, store)
    refuse_in_use(address)


async def restore_all(
    path: Path,
    header: Header,
    address: str,
    store: ObjectStore,
    *,
    home: Path,
    force: bool,
    told: Callable[[int], None],
) -> None:
    """Put everything back and bring the tables up to this version. The archive is verified and the target checked.

    Args:
        path: the archive.
        header: its header.
        address: the database.
        store: the store.
        home: an existing folder for the database's dump meanwhile; a container's /tmp may be small, and in memory.
        force: replace what is there.
        told: called with the bytes of each object.

    Raises:
        ArchiveError, DatabaseProblemError, StoreError, OSError: on the way; run it again with --force.

    """
    with tempfile.TemporaryDirectory(prefix=".igen-restore-", dir=home) as folder:
        scratch, copy = Path(folder) / "object", Path(folder) / "database"
        with reading(path) as members:
            for info, file in members:
                if info.name.startswith(OBJECTS):
                    _unpack(file, scratch)
                    key = info.name.removeprefix(OBJECTS)
                    await store.put_file(key, scratch, media_type=mimetypes.guess_type(key)[0] or UNKNOWN_TYPE)
                    told(info.size)
                elif info.name == DATABASES[header.database]:
                    _unpack(file, copy)
        if not copy.exists():
            raise ArchiveError(f"{path}: has no database")
        restore(address, copy, replace=force)
    db = Database(address)
    try:
        await upgrade(db)
    finally:
        await db.close()


def _unpack(file: IO[bytes], target: Path) -> None:
    with target.open("wb") as out:
        shutil.copyfileobj(file, out)


async def _refuse_filled(address: str, store: ObjectStore) -> None:
    if not is_empty(address):
        raise TargetError("IGEN_DATABASE_URL: the database is not empty; --force replaces all that is in it")
    async for key in store.list():
        if not key.startswith(PROBES):
            raise TargetError(
                f"IGEN_STORE_URL: the store is not empty ({key} is there); --force writes into it all the same"
            )


def _is_known(revision: str) -> bool:
    scripts = ScriptDirectory(str(Path(str(migrations.__file__)).parent))
    with suppress(CommandError):
        return scripts.get_revision(revision) is not None
    return False
