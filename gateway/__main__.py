"""`python -m gateway [serve|init|migrate|keys ...]`: the composition root of the gateway's process."""

from __future__ import annotations

import logging
import os
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
import uvloop
from rich.console import Console
from rich.table import Column, Table

from gateway.firstkey import FIRST_USER, initialise
from gateway.keys import Keys
from gateway.settings import GatewaySettings
from models.db import Database, DatabaseError, utc_now
from models.logs import configure_logging
from models.migrations import SchemaError, check_schema, upgrade
from models.settings import SettingsError, load_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from datetime import datetime

USAGE = 2
FAILED = 1

app = typer.Typer(help="IGen's gateway.", no_args_is_help=False, add_completion=False)
keys_app = typer.Typer(help="API keys.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
out = Console()
err = Console(stderr=True, soft_wrap=True, highlight=False)


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """Serve, unless a command says otherwise."""
    os.umask(0o077)  # database and pictures are nobody else's to read
    if context.invoked_subcommand is None:
        serve_command()


@app.command("serve")
def serve_command() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    settings = _settings()
    _run(_serve(settings), settings)


@app.command("init")
def init_command() -> None:
    """Migrate the database, make the first user and key, and write the key to $IGEN_HOME/first-key."""
    settings = _settings()

    async def work() -> None:
        async with _database(settings) as db:
            path = await initialise(db, settings.home)
        err.print(f"The first API key is in {path}")

    _run(work(), settings)


@app.command("migrate")
def migrate_command() -> None:
    """Bring the database's tables up to this version."""
    settings = _settings()

    async def work() -> None:
        async with _database(settings) as db:
            await upgrade(db)
        err.print("The database is up to date.")

    _run(work(), settings)


@keys_app.command("create")
def create_key(
    user: Annotated[str, typer.Option(help="Owner's name; made if there is none.")] = FIRST_USER,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "key",
    days: Annotated[int | None, typer.Option(min=1, max=36_500, help="Days until it expires.")] = None,
) -> None:
    """Make a key and print it, this once."""
    settings = _settings()

    async def work() -> None:
        async with _database(settings) as db:
            await check_schema(db)
            keys = Keys(db)
            expires_at = None if days is None else utc_now() + timedelta(days=days)
            key = await keys.create(await keys.user(user), name, expires_at=expires_at)
        err.print(f"Key {key.id} of {user}. It is shown only now:")
        typer.echo(key.text)

    _run(work(), settings)


@keys_app.command("list")
def list_keys() -> None:
    """Show every key, without its secret."""
    settings = _settings()

    async def work() -> None:
        async with _database(settings) as db:
            await check_schema(db)
            found = await Keys(db).list()
        table = Table(Column("id", no_wrap=True), "owner", "name", "made", "last used", "expires", "revoked")
        for key, user in found:
            moments = (key.created_at, key.last_used_at, key.expires_at, key.revoked_at)
            table.add_row(key.id, user.name, key.name, *map(_moment, moments))
        out.print(table)

    _run(work(), settings)


@keys_app.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(help="The 12 characters after `igen_`.")]) -> None:
    """Make a key useless at once."""
    settings = _settings()

    async def work() -> None:
        async with _database(settings) as db:
            await check_schema(db)
            done = await Keys(db).revoke(key_id)
        err.print(f"Key {key_id} is revoked." if done else f"There is no good key {key_id}.")
        if not done:
            raise typer.Exit(FAILED)

    _run(work(), settings)


async def _serve(settings: GatewaySettings) -> None:
    # imported here: the other commands need no web framework, and start in half the time without
    from gateway.server import bind, serve  # noqa: PLC0415
    from models.store import open_store  # noqa: PLC0415

    open_store(settings.store)
    async with _database(settings) as db:
        await check_schema(db)
    try:
        listening = bind(settings)
    except OSError as problem:
        reason = os.strerror(problem.errno) if problem.errno else str(problem)
        raise SettingsError(
            f"IGEN_BIND, IGEN_PORT: cannot listen on {settings.bind}:{settings.port}: {reason}"
        ) from None
    with listening:
        if not await serve(settings, listening):
            raise typer.Exit(FAILED)


@asynccontextmanager
async def _database(settings: GatewaySettings) -> AsyncIterator[Database]:
    db = Database(settings.database)
    try:
        yield db
    finally:
        await db.close()


def _settings() -> GatewaySettings:
    try:
        return load_settings(GatewaySettings)
    except SettingsError as problem:
        _fail(str(problem))


def _run(work: Coroutine[None, None, None], settings: GatewaySettings) -> None:
    configure_logging(settings, "gateway")
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of its own set-up at every command
    try:
        uvloop.run(work)
    except (SettingsError, SchemaError, DatabaseError) as problem:
        _fail(str(problem))
    except OSError as problem:
        _fail(f"{problem.strerror}: {problem.filename}" if problem.filename else str(problem))


def _fail(message: str) -> NoReturn:
    err.print(message, style="red", markup=False)
    raise typer.Exit(USAGE)


def _moment(value: datetime | None) -> str:
    return "" if value is None else value.strftime("%Y-%m-%d %H:%M")


if __name__ == "__main__":
    app(prog_name="python -m gateway")
