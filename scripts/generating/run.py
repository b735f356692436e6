"""One run from its file of prompts to its report."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from scripts.calling.folder import locked
from scripts.calling.gateway import Gateway
from scripts.generating.drawing import Drawing, Patience
from scripts.generating.manifest import Manifest
from scripts.generating.prompts import one_prompt, read_prompts
from scripts.generating.report import write_reports

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from scripts.calling.access import Access
    from scripts.generating.manifest import Counts, Ended

PART = ".part"


class ElsewhereError(Exception):
    """Requests without an end were sent to another gateway, or under another key."""


@dataclass(frozen=True, slots=True)
class Request:
    """The command line, checked: `prompt` or `file`, and fields that count where a row has none."""

    access: Access
    out: Path
    prompt: str | None
    file: Path | None
    defaults: dict[str, Any]
    concurrency: int
    patience_s: float
    retry_failed: bool
    same_gateway: bool


def generate(request: Request, console: Console) -> Counts:
    """Draw all that is not drawn yet, and write the reports, whatever ends the drawing.

    Raises:
        PromptsError, FolderError: the command line's file or folder.
        ElsewhereError: see there.
        GatewayRefusedError, DiskError: run the same command again to go on.
        OSError, sqlite3.Error: this machine.

    """
    with locked(request.out), Manifest(request.out / "manifest.db") as manifest:
        _take_in(request, manifest)
        for part in request.out.glob(f"*{PART}"):  # what a killed process left
            part.unlink()
        again = manifest.take_up({entry.name for entry in os.scandir(request.out)})
        if again:
            console.print(f"{again} finished before and have lost their files; they are fetched again, not drawn.")
        if request.retry_failed:
            console.print(f"{manifest.retry_failed()} failed ones are tried again, as new requests.")
        _settle_gateway(request, manifest)
        try:
            with DrawingProgress(console, manifest.counts()) as progress:
                asyncio.run(_draw(request, manifest, progress))
        finally:
            counts = manifest.counts()
            _summarise(console, counts, write_reports(manifest, request.out))
        return counts


def _take_in(request: Request, manifest: Manifest) -> None:
    if request.file is not None:
        manifest.list_prompts(read_prompts(request.file, request.defaults))
    else:
        manifest.list_one(one_prompt(request.prompt or "", request.defaults))


def _settle_gateway(request: Request, manifest: Manifest) -> None:
    elsewhere = manifest.sent_elsewhere(request.access.identity)
    if elsewhere and not request.same_gateway:
        raise ElsewhereError(
            f"{elsewhere} of these were sent to another address or under another key and have not ended. Sent again, "
            "they may be drawn and paid for twice. Finish with the former --url and --key; or, where it is the same "
            "gateway and the key is of the same owner, add --same-gateway."
        )
    manifest.keep_identity(request.access.identity)


async def _draw(request: Request, manifest: Manifest, progress: DrawingProgress) -> None:
    async with Gateway(request.access, connections=2 * request.concurrency) as gateway:
        patience = Patience(request.patience_s)
        settled, waiting = progress.settled, progress.waiting
        drawing = Drawing(gateway, manifest, request.out, patience, settled=settled, waiting=waiting)
        await drawing.run(request.concurrency)


class DrawingProgress:
    """How many requests have ended, at what rate, and failures."""

    def __init__(self, console: Console, counts: Counts) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._failed = counts.failed
        ended = counts.done + counts.failed
        self._task = self._progress.add_task("Drawing", total=counts.total, completed=ended, note="")
        self._waits_for: set[str] = set()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def waiting(self, reason: str) -> None:
        """A request is tried again; said once, and again only after one has ended."""
        if reason not in self._waits_for:
            self._waits_for.add(reason)
            self._progress.console.print(f"Waiting: {reason}", markup=False, highlight=False, soft_wrap=True)

    def settled(self, ended: Ended) -> None:
        """One more request has ended."""
        self._waits_for.clear()
        self._failed += ended.code is not None
        speed = self._progress.tasks[-1].speed
        rate = f"{speed:.1f}/s" if speed else ""
        note = f"{rate} {self._failed} failed" if self._failed else rate
        self._progress.update(self._task, advance=1, note=note)


def _summarise(console: Console, counts: Counts, written: list[Path]) -> None:
    table = Table("drawn", "failed", "open", "total")
    table.add_row(*map(str, (counts.done, counts.failed, counts.open, counts.total)))
    console.print(table)
    for path in written:
        console.print(str(path), soft_wrap=True, highlight=False, markup=False)
