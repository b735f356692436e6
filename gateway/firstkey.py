"""What makes a fresh installation usable: tables, the first user, and a key in a file that only its owner reads."""

from __future__ import annotations

import fcntl
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gateway.keys import Keys
from models.files import write_private
from models.migrations import upgrade

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from models.db import Database

FIRST_USER = "admin"
FILE = "first-key"


async def initialise(db: Database, home: Path) -> Path:
    """Migrate, and leave a good key in `first-key`. A key there that still works is kept; returns the file.

    A lost file gets a new key; the old one goes on working, since somebody may have moved it to a safer place.
    """
    path = home / FILE
    with _alone(home):
        await upgrade(db)
        keys = Keys(db)
        kept = path.read_text().strip() if path.is_file() else ""
        if not kept or await keys.find(kept) is None:
            key = await keys.create(await keys.user(FIRST_USER), FILE)
            write_private(path, f"{key.text}\n")
        elif path.stat().st_mode & 0o077:
            path.chmod(0o600)
    return path


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """One process at a time initialises a home, which is made if it is not there."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (home / ".init-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
