"""Put a backup back into a database and a store: scripts/restore.

IGen must be stopped. The backup is verified first, the database must be of the same kind and empty, the store empty
(`--force` goes on all the same, and replaces the database). The tables are brought up to this version's.

Exit codes: 0 done; 2 the settings, the backup or the target are not fit, nothing was changed; 4 it failed on the way.
"""

from __future__ import annotations

import asyncio
from enum import IntEnum
from pathlib import Path  # noqa: TC003 - typer reads it
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from models.db import DatabaseError
from models.service_settings import ServiceSettings
from models.settings import SettingsError, load_settings
from models.store import StoreError, open_store
from scripts.archiving.archive import ArchiveError, verify
from scripts.archiving.databases import DatabaseProblemError
from scripts.archiving.restoring import TargetError, check_target, restore_all
from scripts.calling.environment import adopt_environment
from scripts.calling.folder import disk_words
from scripts.calling.interruption import Interruption

if TYPE_CHECKING:
    from scripts.archiving.archive import Header

AGAIN = "What was written so far is there; run it again with --force."


class ExitCode(IntEnum):
    """What the process ends with."""

    OK = 0
    USAGE = 2
    MACHINE = 4


def put_back(path: Path, settings: ServiceSettings, header: Header, console: Console, *, force: bool) -> None:
    """Restore a verified backup into a checked target."""
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("Restoring", total=header.bytes)
        asyncio.run(
            restore_all(
                path,
                header,
                settings.database,
                open_store(settings.store),
                home=settings.home,
                force=force,
                told=lambda count: progress.advance(task, count),
            )
        )


def attempt(path: Path, console: Console, errors: Console, *, force: bool) -> int:
    """Do it; whatever ends it early is said in a few words."""
    begun = False
    try:
        settings = load_settings(ServiceSettings)
        with console.status("Verifying the backup"):
            header = verify(path)
        asyncio.run(check_target(header, settings.database, open_store(settings.store), force=force))
        begun = True
        put_back(path, settings, header, console, force=force)
    except (SettingsError, ArchiveError, TargetError, DatabaseProblemError, DatabaseError) as error:
        message = str(error)
    except StoreError as error:
        message = f"IGEN_STORE_URL: {error.message}"
    except OSError as error:
        message = disk_words(error, path)
    else:
        console.print(f"Restored {header.objects} objects and the database of {header.created_at}.", highlight=False)
        return ExitCode.OK
    errors.print(f"{message}. {AGAIN}" if begun else message, style="red", markup=False, soft_wrap=True)
    return ExitCode.MACHINE if begun else ExitCode.USAGE


def main(
    backup: Annotated[Path, typer.Argument(help="A file that scripts/backup wrote.")],
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
) -> None:
    """Put a backup back into the database and the store that the settings name."""
    console, errors = Console(), Console(stderr=True)
    interruption = Interruption()
    path = backup.absolute()
    adopt_environment(enter=True)
    try:
        code = attempt(path, console, errors, force=force)
    except KeyboardInterrupt:
        errors.print(f"Interrupted. {AGAIN}")
        code = interruption.code
    raise typer.Exit(code)


if __name__ == "__main__":
    typer.run(main)
