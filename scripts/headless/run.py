"""One run from its feed to its report."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from compositor.compose.client import ComposePool
from compositor.compose.process import ComposeProcess
from compositor.feed.reader import open_feed
from compositor.names import OutputNamer, used_fields
from compositor.snapshot import AssetRef, Snapshot
from compositor.sources import SourceFetcher
from models.fetch import FetchError, SafeFetcher
from scripts.headless import report
from scripts.headless.framing import Framing, Plan
from scripts.headless.manifest import Manifest
from scripts.headless.options import OptionsError, inputs_hash, sha256_of
from scripts.headless.progress import FramingProgress

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import Console

    from compositor.compose.job import PictureInfo
    from compositor.design import Design
    from compositor.feed.edit import Mode
    from compositor.feed.entries import FeedEntry
    from compositor.feed.reader import FeedReader
    from models.fetch import FetchPolicy
    from scripts.headless.manifest import Counts

FETCHES = 32
FEED_TIMEOUT_S = 600.0
FEED_MAX_BYTES = 2 * 2**30
SHOWN_REASONS = 5
BLOCKED = "source_blocked"
SECRET = "headless"  # noqa: S105 - names need not be unguessable here: whoever sees the feed sees them


class FeedUnavailableError(Exception):
    """The feed's address gives no feed; `message` says why."""

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Request:
    """The command line, checked. `feed` is a file or an address; `base_url` is where `pictures/` will be served."""

    feed: Path | str
    frame: Path
    out: Path
    design: Design
    assets: dict[str, Path]
    workers: int
    per_host: int
    policy: FetchPolicy
    mode: Mode
    base_url: str | None

    @property
    def pictures(self) -> Path:
        """Folder of finished pictures."""
        return self.out / "pictures"

    @property
    def work(self) -> Path:
        """Folder of files under way."""
        return self.out / ".work"

    @property
    def base(self) -> str:
        """What links to pictures begin with."""
        return f"{(self.base_url or self.pictures.resolve().as_uri()).rstrip('/')}/"


def frame_feed(request: Request, console: Console) -> Counts:
    """Fetch the feed, read it, frame its products, write what goes beside them. Needs `output_folder`.

    Raises:
        ComposeError: the frame's picture cannot be used, or the composing process does not start.
        FeedError, FeedUnavailableError: the feed.
        MachineError, OSError, sqlite3.Error: this machine.

    """
    with ComposeProcess() as composer, Manifest(request.out / "manifest.db") as manifest:
        frame = shutil.copyfile(request.frame, request.work / "frame")  # edits on the way do not reach in
        plan = _plan(request, frame, asyncio.run(_inspect(composer, frame)))
        feed = asyncio.run(_fetch_feed(request))
        reader = open_feed(feed)
        with FramingProgress(console) as progress:
            _read_feed(manifest, plan, feed, reader, progress)
            progress.begin(manifest.counts())
            asyncio.run(_frame_all(request, manifest, plan, composer, progress))
        counts = manifest.counts()
        written = [
            *report.write_feeds(manifest, feed, request.out, base=request.base, mode=request.mode),
            report.write_pictures(manifest, request.out, [size.name for size in plan.sizes]),
            report.write_failures(manifest, request.out),
        ]
        manifest.finish()
        _summarise(console, counts, written, partial=manifest.partial)
        _tell_failures(console, manifest.reasons())
        return counts


@contextmanager
def output_folder(request: Request) -> Iterator[None]:
    """The output folder, for this process alone, with nothing half done in it.

    Raises:
        OptionsError: another process works in it, or it cannot be made.

    """
    try:
        request.pictures.mkdir(parents=True, exist_ok=True)
        lock = (request.out / ".lock").open("w")
    except OSError as error:
        raise OptionsError(f"--out: {error.strerror}: {error.filename}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OptionsError(f"--out: another process is at work in {request.out}") from None
        shutil.rmtree(request.work, ignore_errors=True)  # what a killed process left
        request.work.mkdir()
        try:
            yield
        finally:
            shutil.rmtree(request.work, ignore_errors=True)


async def _inspect(composer: ComposeProcess, frame: Path) -> PictureInfo:
    async with ComposePool(composer.socket_path, 1, composer) as pool:
        return await pool.inspect(frame)


async def _fetch_feed(request: Request) -> Path:
    if not isinstance(request.feed, str):
        return request.feed
    target = request.work / "feed"
    async with SafeFetcher(request.policy) as fetcher:
        try:
            got = await fetcher.download(
                request.feed,
                target,
                total_timeout_s=FEED_TIMEOUT_S,
                max_wire_bytes=FEED_MAX_BYTES,
                max_decoded_bytes=FEED_MAX_BYTES,
            )
        except FetchError as error:
            raise FeedUnavailableError(error.message) from None
    if not got.stored:
        raise FeedUnavailableError(f"Its server answered {got.status}.")
    return target


def _plan(request: Request, frame: Path, info: PictureInfo) -> Plan:
    design = request.design
    snapshot = Snapshot(
        picture_key="",
        picture_sha256=sha256_of(frame),
        width=info.width,
        height=info.height,
        transparent=info.transparent,
        secret=SECRET,
        design=design,
        assets={name: AssetRef(key="", sha256=sha256_of(path), kind="") for name, path in request.assets.items()},
        feed_mode=request.mode,
    )
    sizes = design.output_sizes(info.width, info.height)
    return Plan(
        frame=frame,
        transparent=info.transparent,
        design=design,
        sizes=sizes,
        assets={name: path.resolve() for name, path in request.assets.items()},
        namer=OutputNamer(snapshot),
        pictures=request.pictures,
        work=request.work,
    )


def _read_feed(manifest: Manifest, plan: Plan, feed: Path, reader: FeedReader, progress: FramingProgress) -> None:
    """Bring the feed's entries into the manifest, unless an interrupted run with the same inputs did."""
    assets = [f"{name} {sha256_of(path)}" for name, path in sorted(plan.assets.items())]
    inputs = inputs_hash(feed, [sha256_of(plan.frame), plan.design.model_dump_json(), *assets])
    if manifest.goes_on(inputs):
        manifest.take_up({entry.name for entry in os.scandir(plan.pictures)})
        progress.say("Going on with the run that was interrupted.")
        return
    names = {name: name.strip().lower().removeprefix("g:") for name in used_fields(plan.design)}
    manifest.begin(inputs, (_narrowed(entry, names) for entry in progress.reading(reader)), lambda: reader.partial)


def _narrowed(entry: FeedEntry, names: dict[str, str]) -> FeedEntry:
    """The entry with only the fields that the design looks at, under the names that it uses."""
    return entry._replace(fields={name: entry.fields[key] for name, key in names.items() if key in entry.fields})


async def _frame_all(
    request: Request, manifest: Manifest, plan: Plan, composer: ComposeProcess, progress: FramingProgress
) -> None:
    async with (
        SafeFetcher(request.policy) as fetcher,
        ComposePool(composer.socket_path, request.workers, composer) as pool,
    ):
        sources = SourceFetcher(fetcher, request.per_host, FETCHES)
        framing = Framing(plan, manifest, sources, pool, progress.settled)
        await framing.run(FETCHES + 2 * request.workers)


def _summarise(console: Console, counts: Counts, written: list[Path], *, partial: bool) -> None:
    table = Table("composed", "unchanged", "failed", "skipped", "total")
    numbers = (counts.composed, counts.reused, counts.failed, counts.skipped, counts.total)
    table.add_row(*map(str, numbers))
    console.print(table)
    if partial:
        console.print("The feed is damaged; it was read as well as it can be.", style="yellow")
    for path in written:
        console.print(str(path), soft_wrap=True, highlight=False, markup=False)


def _tell_failures(console: Console, reasons: list[tuple[int, str, str]]) -> None:
    def say(text: str) -> None:
        console.print(text, soft_wrap=True, highlight=False, markup=False)

    for count, code, reason in reasons[:SHOWN_REASONS]:
        say(f"{count} failed: {reason} ({code})")
    if len(reasons) > SHOWN_REASONS:
        say(f"and for {len(reasons) - SHOWN_REASONS} other reasons, see {report.FAILURES}")
    if any(code == BLOCKED for _, code, _ in reasons):
        say("--allow-host HOST:PORT, or IGEN_FETCH_ALLOW_HOSTS, allows a host of your own network.")
