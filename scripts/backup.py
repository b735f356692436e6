"""Save database and store in one file, while IGen runs: scripts/backup.

The file is a tar, written whole or not at all, read back and checked against its hashes. What it does not hold: Redis
(all of it is made again from rows), logs, `first-key` (the keys themselves are in the database, as hashes) and the
`.env`.

Exit codes: 0 done; 1 done, but the store lacks objects that rows name (they are listed); 2 the settings or the
command line are wrong; 4 database, store or disk failed, and there is no backup.
"""

from __future__ import annotations

import asyncio
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from models.db import utc_now
from models.service_settings import ServiceSettings
from models.settings import SettingsError, load_settings
from models.store import StoreError, open_store
from scripts.archiving.archive import ArchiveError, verify
from scripts.archiving.databases import DatabaseProblemError
from scripts.archiving.saving import save
from scripts.calling.environment import adopt_environment
from scripts.calling.folder import FolderError, disk_words
from scripts.calling.interruption import Interruption

if TYPE_CHECKING:
    from scripts.archiving.archive import Header

SHOWN_KEYS = 20


class ExitCode(IntEnum):
    """What the process ends with."""

    OK = 0
    INCOMPLETE = 1
    USAGE = 2
    MACHINE = 4


def back_up(settings: ServiceSettings, target: Path, console: Console) -> Header:
    """Save and verify.

    Raises:
        FolderError: the target is there already.
        SettingsError, DatabaseProblemError, StoreError, ArchiveError, OSError: see `save` and `verify`.

    """
    if target.exists():
        raise FolderError(f"--out: {target} is there already; backups are never overwritten")
    target.parent.mkdir(parents=True, exist_ok=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("Saving", total=None)
        objects, size = 0, 0

        def told(count: int) -> None:
            nonlocal objects, size
            objects, size = objects + 1, size + count
            progress.update(task, description=f"Saving: {objects} objects, {size / 1e6:.1f} MB")

        asyncio.run(save(settings.database, open_store(settings.store), target, told))
        progress.update(task, description="Reading it back")
        return verify(target)


def attempt(target: Path, console: Console, errors: Console) -> int:
    """Do it; whatever ends it early is said in a few words."""
    try:
        header = back_up(load_settings(ServiceSettings), target, console)
    except (SettingsError, FolderError) as error:
        code, message = ExitCode.USAGE, str(error)
    except (ArchiveError, DatabaseProblemError) as error:
        code, message = ExitCode.MACHINE, str(error)
    except StoreError as error:
        code, message = ExitCode.MACHINE, f"IGEN_STORE_URL: {error.message}"
    except OSError as error:
        code, message = ExitCode.MACHINE, disk_words(error, target.parent)
    else:
        size = target.stat().st_size / 1e6
        console.print(f"{target}: {header.objects} objects, {size:.1f} MB, verified", soft_wrap=True, highlight=False)
        if not header.missing:
            return ExitCode.OK
        shown = "\n".join(header.missing[:SHOWN_KEYS])
        code, message = ExitCode.INCOMPLETE, f"The store lacks {len(header.missing)} objects that rows name:\n{shown}"
    errors.print(message, style="red", markup=False, soft_wrap=True, highlight=False)
    return code


def main(
    out: Annotated[
        Path | None, typer.Option(help="The file. Default: igen-<moment>.tar here.", dir_okay=False)
    ] = None,
) -> None:
    """Save database and store in one file, while IGen runs."""
    console, errors = Console(), Console(stderr=True)
    interruption = Interruption()
    target = (out or Path(f"igen-{utc_now():%Y%m%dT%H%M%SZ}.tar")).absolute()
    adopt_environment(enter=True)
    try:
        code = attempt(target, console, errors)
    except KeyboardInterrupt:
        errors.print("Interrupted; there is no backup.")
        code = interruption.code
    raise typer.Exit(code)


if __name__ == "__main__":
    typer.run(main)
