"""What the person at the terminal sees: lines, and on a terminal one moving line below them."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

from scripts.supervise.child_log import RotatingFile

if TYPE_CHECKING:
    from pathlib import Path


class Console:
    """Writes each line to a stream and to the supervisor's own log; survives a stream whose reader has gone."""

    def __init__(self, log: Path, stream: TextIO | None = None) -> None:
        self._stream: TextIO | None = stream or sys.stdout
        self._log = RotatingFile(log)
        self._live: Any = None
        self._spinner: Any = None

    @property
    def moves(self) -> bool:
        """Whether a moving line can be shown."""
        return self._stream is not None and self._stream.isatty()

    def line(self, text: str) -> None:
        """One line, never wrapped, so that it can be pasted."""
        self._log.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {text}\n".encode())
        if self._stream is None:
            return
        try:
            if self._live is not None:
                self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                print(text, file=self._stream, flush=True)
        except (BrokenPipeError, OSError):
            self._stream = None  # a closed terminal or pipe must not stop the services

    def moving(self, text: str) -> None:
        """Show or replace the moving line; empty text takes it away. Nothing happens off a terminal."""
        if not self.moves:
            return
        if text and self._live is None:
            self._live, self._spinner = _new_live(self._stream)
            self._live.start()
        if text:
            self._spinner.update(text=text)
            self._live.refresh()
        elif self._live is not None:
            self._live.stop()
            self._live = None


def _new_live(stream: Any) -> tuple[Any, Any]:
    # Rich costs a tenth of a second, which a start without a terminal need not spend. No refreshing thread of
    # its own: the supervisor forks children. Its console also shows what others print, a traceback for one.
    from rich.console import Console as RichConsole  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415
    from rich.spinner import Spinner  # noqa: PLC0415

    spinner = Spinner("dots")
    return Live(spinner, console=RichConsole(file=stream), auto_refresh=False, transient=True), spinner
