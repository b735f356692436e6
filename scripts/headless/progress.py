"""The progress bar of a headless run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import Console

    from compositor.feed.entries import FeedEntry
    from scripts.headless.manifest import Counts, Item, Outcome

REPORT_EVERY = 1000


class FramingProgress:
    """Counts entries while the feed is read, then shows how many products are done, at what rate, and failures."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("Reading", total=None, note="")
        self._failed = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def reading(self, entries: Iterable[FeedEntry]) -> Iterator[FeedEntry]:
        """The same entries, counted."""
        for number, entry in enumerate(entries):
            if number % REPORT_EVERY == 0:
                self._progress.update(self._task, completed=number)
            yield entry

    def begin(self, counts: Counts) -> None:
        """The feed is read; so many products have an outcome already."""
        self._failed = counts.failed
        self._progress.remove_task(self._task)
        self._task = self._progress.add_task("Framing", total=counts.total, completed=counts.done, note=self._note())

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._progress.console.print(text)

    def settled(self, _item: Item, outcome: Outcome) -> None:
        """One more product is done."""
        self._failed += outcome.code is not None
        self._progress.update(self._task, advance=1, note=self._note())

    def _note(self) -> str:
        speed = self._progress.tasks[-1].speed if self._progress.tasks else None
        rate = f"{speed:.1f}/s" if speed else ""
        return f"{rate} {self._failed} failed" if self._failed else rate
