"""Lists, verifies and fetches checkpoints: `scripts/checkpoints list|verify|pull`; see docs/checkpoints.md."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from inference.engine.catalogue import FILE, NAME, Catalogue, Entry, classify
from inference.engine.locate import catalogue, locate
from inference.engine.types import CheckpointError
from models.settings import CommonSettings, SettingsError, load_settings
from scripts.pulling.download import Downloader, PullError, open_session
from scripts.pulling.pull import Place, Pull
from scripts.pulling.records import FileRecord, Record, read_record, record_names, write_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from scripts.pulling.download import Meter

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = ROOT / "inference" / "checkpoints"
HUB = "https://huggingface.co"
BLOCK_BYTES = 8 << 20
PIPE_WIDTH = 240  # columns where nobody looks, so that nothing is cut off

app = typer.Typer(help="Checkpoints: what there is, whether it is whole, and how to get more.", no_args_is_help=True)


def folder_of_checkpoints() -> Path:
    """`$IGEN_HOME/checkpoints`; the home is `var` in the checkout, as for scripts/up, where the variable is unset."""
    settings = load_settings(CommonSettings)
    home = settings.home if "home" in settings.model_fields_set else ROOT / "var"
    return home / "checkpoints"


def read_catalogue(folder: Path) -> Catalogue:
    """The bundled entries and this machine's own, which win."""
    return Catalogue.read((BUNDLED / FILE, folder / FILE))


@app.command("list")
def list_() -> None:
    """Show every checkpoint that is known or here."""
    with _told_plainly():
        folder = folder_of_checkpoints()
        known = read_catalogue(folder)
        table = Table("name", "kind", "size", "where", "licence", "verified")
        for name in sorted({*known.entries, *catalogue((BUNDLED, folder)), *record_names(folder)}):
            table.add_row(*_row(name, known, folder))
        Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)


def _row(name: str, known: Catalogue, folder: Path) -> tuple[str, ...]:
    entry, record = known.entry(name), read_record(folder, name)
    licence = entry.licence if entry else record.licence if record else ""
    try:
        located = locate(name, None, (BUNDLED, folder), kind=None)
    except CheckpointError as problem:
        is_away = entry is not None and entry.origin != "path" and record is None
        where = f"not here: {entry.source}" if is_away and entry else f"unusable: {problem}"
        return name, entry.kind if entry else "?", "", where, licence, ""
    files = [located.single_file] if located.single_file else [f for w in located.weights.values() for f in w.files]
    size = sum(file.stat().st_size for file in files)
    return (
        name,
        located.kind,
        f"{size / 1e6:,.1f} MB",
        str(located.single_file or located.folder),
        licence,
        _age(record, folder),
    )


def _age(record: Record | None, folder: Path) -> str:
    if record is None:
        return "never"
    if all(file.is_as_it_was(record.base(folder) / path) for path, file in record.files.items()):
        return record.verified_at[:10]
    return "changed since"


@app.command()
def verify(name: Annotated[str | None, typer.Argument(help="One checkpoint; all without it.")] = None) -> None:
    """Compare files with the SHA-256 of the catalogue and of what was pulled. Exit 1 when any differs."""
    with _told_plainly():
        folder = folder_of_checkpoints()
        known = read_catalogue(folder)
        names = [name] if name else sorted({*known.entries, *record_names(folder)})
        console = Console(soft_wrap=True)
        bad = [item for item in names if not _verify(item, known, folder, console, is_named=name is not None)]
    if bad:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class Expected:
    """What a file's SHA-256 has to be; `path` is below `root`."""

    root: Path
    path: str
    sha256: str


def _verify(name: str, known: Catalogue, folder: Path, console: Console, *, is_named: bool) -> bool:
    record = read_record(folder, name)
    wanted = list(_expected(known.entry(name), record, folder))
    if not wanted:
        if is_named:
            console.print(f"{name}: nothing is recorded to compare it with")
        return not is_named
    present = [item for item in wanted if (item.root / item.path).is_file()]
    if not present and record is None and not is_named:
        return True  # an entry that was never pulled is no fault
    verdicts = {item.path: _verdict(item, console) for item in wanted}
    wrong = {path: verdict for path, verdict in verdicts.items() if verdict != "ok"}
    for path, verdict in wrong.items():
        console.print(f"{name}: {path}: {verdict}")
    if not wrong:
        console.print(f"{name}: {len(wanted)} files are as they should be")
        _remember(name, wanted, known.entry(name), record, folder)
    return not wrong


def _expected(entry: Entry | None, record: Record | None, folder: Path) -> Iterable[Expected]:
    """The catalogue's digests, and of the other files those of the record."""
    told: set[Path] = set()
    for path, digest in entry.sha256.items() if entry else ():
        assert entry is not None
        base = entry.path or folder / entry.name
        whole = base / path if path else base if entry.path else folder / f"{entry.name}.safetensors"
        told.add(whole)
        yield Expected(whole.parent, whole.name, digest) if not path else Expected(base, path, digest)
    for path, file in record.files.items() if record else ():
        assert record is not None
        if record.base(folder) / path not in told:
            yield Expected(record.base(folder), path, file.sha256)


def _verdict(item: Expected, console: Console) -> str:
    path = item.root / item.path
    try:
        with _progress(console) as progress:
            found = _digest(path, _Meters(progress).meter(item.path))
    except FileNotFoundError:
        return "missing"
    except OSError as problem:
        return f"cannot be read: {problem.strerror}"
    return "ok" if found == item.sha256 else f"CHANGED: SHA-256 is {found}, expected {item.sha256}"


def _digest(path: Path, meter: Meter) -> str:
    digest, done, size = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            done += len(block)
            meter(done, size)
    return digest.hexdigest()


def _remember(name: str, wanted: list[Expected], entry: Entry | None, record: Record | None, folder: Path) -> None:
    files = {str(item.root / item.path): FileRecord.of(item.root / item.path, item.sha256) for item in wanted}
    if record is not None:
        relative = {path.removeprefix(f"{record.base(folder)}/"): file for path, file in files.items()}
        seen = Record(name, record.root, relative, record.source, record.revision, record.kind, record.licence)
        write_record(folder, seen)
    elif entry is not None:
        write_record(folder, Record(name, "/", files, entry.source, entry.revision, entry.kind, entry.licence))


@app.command()
def pull(  # noqa: PLR0917 - Typer takes options as arguments
    what: Annotated[str, typer.Argument(help="A name of the catalogue, a hub id, or the address of one file.")],
    revision: Annotated[str | None, typer.Option(help="Commit of a hub id; its main branch's without it.")] = None,
    name: Annotated[str | None, typer.Option(help="What to call it here; its own last part without it.")] = None,
    kind: Annotated[str | None, typer.Option(help="base or refiner, where the catalogue does not say.")] = None,
    precision: Annotated[str, typer.Option(help="half or full: which weights, where there are both.")] = "half",
    hub_endpoint: Annotated[str, typer.Option(envvar="HF_ENDPOINT", help="Address of the hub.")] = HUB,
    hub_token: Annotated[
        str | None, typer.Option(envvar="HF_TOKEN", show_envvar=True, help="For gated checkpoints.", hidden=True)
    ] = None,
) -> None:
    """Fetch a checkpoint into $IGEN_HOME/checkpoints, checked by SHA-256. Run it again to go on where it stopped."""
    with _told_plainly():
        if precision not in {"half", "full"}:
            raise PullError("--precision is half or full")
        folder = folder_of_checkpoints()
        entry = choose(what, read_catalogue(folder), folder, revision=revision, name=name, kind=kind)
        folder.mkdir(parents=True, exist_ok=True)
        place = Place(folder, hub_endpoint, half=precision == "half")
        if hub_token and not hub_token.strip().isascii():
            raise PullError("HF_TOKEN is no token of the hub")
        record = asyncio.run(_pull(entry, place, (hub_token or "").strip() or None))
        size = sum(file.size for file in record.files.values())
        print(f"{entry.name}: {len(record.files)} files, {size / 1e6:,.1f} MB, verified, in {folder}")
        if record.revision:
            print(f"{entry.name}: {record.source} at {record.revision}")


def choose(
    what: str, known: Catalogue, folder: Path, *, revision: str | None, name: str | None, kind: str | None
) -> Entry:
    """What is to be pulled: a catalogue's entry, or one made up for a source that no catalogue knows.

    Raises:
        PullError: it is neither, or an option does not fit it.

    """
    entry = known.entry(what) or (known.of_source(what) if name is None else None)
    if entry is None:
        origin = classify(what)
        if origin not in {"hub", "url"}:
            raise PullError(f"there is no '{what}' in the catalogue; it has {', '.join(sorted(known.entries))}")
        own = what.partition("?")[0].rpartition("/")[2].removesuffix(".safetensors")
        values = {"source": what} | {key: item for key, item in (("revision", revision), ("kind", kind)) if item}
        entry = Catalogue.of_values(folder / FILE, name or own, values)
    elif name or kind:
        raise PullError(f"{entry.name} is in {entry.file}, which says its name and kind")
    elif revision:
        if entry.origin != "hub":
            raise PullError("--revision is for hub ids only")
        # another commit has other files, so the entry's digests do not hold for it
        digests = entry.sha256 if revision == entry.revision else {}
        entry = replace(entry, revision=revision, sha256=digests)
    if not NAME.fullmatch(entry.name):
        raise PullError(f"'{entry.name}' cannot be a name here; choose one with --name")
    return entry


async def _pull(entry: Entry, place: Place, token: str | None) -> Record:
    async with open_session() as session:
        hub = Downloader(session, token=token)
        downloader = hub if entry.origin == "hub" else Downloader(session)
        with _progress(Console()) as progress:
            return await Pull(entry, place, downloader, hub, _Meters(progress)).run()


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)


class _Meters:
    """A bar for each file."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def meter(self, file: str) -> Meter:
        task = self._progress.add_task(file, total=None, visible=False)
        update: Callable[..., None] = self._progress.update

        def tell(done: int, total: int | None) -> None:
            update(task, completed=done, total=total, visible=True)

        return tell


@contextmanager
def _told_plainly() -> Iterator[None]:
    """Ends the program with the message of an error that the operator can do something about."""
    try:
        yield
    except (PullError, CheckpointError, SettingsError) as problem:
        print(f"scripts/checkpoints: {problem}", file=sys.stderr)
        raise typer.Exit(1) from None
    except OSError as problem:
        print(f"scripts/checkpoints: {problem.filename or ''}: {problem.strerror or problem}", file=sys.stderr)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
