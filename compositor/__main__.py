"""`python -m compositor worker|reconcile`: the composition roots of the compositor's two processes."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
import uvloop
from rich.console import Console

from compositor.ready import write_ready
from compositor.settings import CompositorSettings
from models.db import Database, DatabaseError
from models.fetch import parse_allow_hosts
from models.logs import configure_logging
from models.migrations import SchemaError, check_schema
from models.settings import SettingsError, load_settings
from models.store import open_store

if TYPE_CHECKING:
    from collections.abc import Callable

USAGE = 2
ReadyFile = Annotated[Path | None, typer.Option(help="File to write this process's id into once it is ready.")]

app = typer.Typer(help="IGen's compositor.", no_args_is_help=True, add_completion=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


@app.callback()
def main() -> None:
    """Feeds in, framed pictures out."""
    os.umask(0o077)  # pictures are nobody else's to read


@app.command("worker")
def worker_command(ready: ReadyFile = None) -> None:
    """Take jobs until SIGTERM or Ctrl-C."""

    def work(settings: CompositorSettings) -> None:
        from compositor.worker import run_worker  # noqa: PLC0415 - the reconciler needs no imaging

        run_worker(settings, ready)

    _run(work, "worker")


@app.command("reconcile")
def reconcile_command(ready: ReadyFile = None) -> None:
    """See to it that what the rows want is done, until SIGTERM or Ctrl-C."""

    def work(settings: CompositorSettings) -> None:
        uvloop.run(_reconcile(settings, ready))

    _run(work, "reconcile")


async def _reconcile(settings: CompositorSettings, ready: Path | None) -> None:
    from compositor.reconcile import run_reconciler  # noqa: PLC0415 - as above

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if ready is not None:
        await asyncio.to_thread(write_ready, ready)
    await run_reconciler(settings, stop)


def _run(work: Callable[[CompositorSettings], None], process: str) -> None:
    try:
        settings = load_settings(CompositorSettings)
        configure_logging(settings, process)
        open_store(settings.store)
        parse_allow_hosts(settings.fetch_allow_hosts)
        _ = settings.redis
        asyncio.run(_check_database(settings))
        work(settings)
    except (SettingsError, SchemaError, DatabaseError) as problem:
        _fail(str(problem))
    except OSError as problem:
        _fail(f"{problem.strerror}: {problem.filename}" if problem.filename else str(problem))


async def _check_database(settings: CompositorSettings) -> None:
    db = Database(settings.database)
    try:
        await check_schema(db)
    finally:
        await db.close()


def _fail(message: str) -> NoReturn:
    err.print(message, style="red", markup=False)
    raise typer.Exit(USAGE)


if __name__ == "__main__":
    app(prog_name="python -m compositor")
