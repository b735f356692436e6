"""A service's output: into a bounded log file, and what concerns a person onto the console."""

from __future__ import annotations

import json
import re
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOG_BYTES = 10 * 1024**2
"""A log reaches this size twice at most: the current file and the one before it, `<name>.log.1`."""

LINE_BYTES = 64 * 1024
TAIL_LINES = 8
SHOWN_KEYS_LEFT_OUT = {"event", "level", "timestamp", "process", "logger", "exception", "stack"}
CONSOLE_WARNING = re.compile(r"\[\s*(warning|error|critical)\s*\]")  # structlog's line for people


class RotatingFile:
    """An append-only file that is renamed to `<name>.1` when it is full.

    A full disk must not stop a service: what cannot be written is dropped and `failed` holds the reason.
    """

    def __init__(self, path: Path, limit: int = LOG_BYTES) -> None:
        self.path = path
        self.failed: OSError | None = None
        self._limit = limit

    def write(self, data: bytes) -> None:
        """Append, rotating first when the file would grow past its limit."""
        try:
            if self.path.exists() and self.path.stat().st_size + len(data) > self._limit:
                self.path.replace(self.path.with_name(self.path.name + ".1"))
            with self.path.open("ab") as file:
                file.write(data)
            self.failed = None
        except OSError as problem:
            self.failed = problem


class ChildLog:
    """Takes a child's output in pieces of any size; holds no more than one line and a short tail in memory.

    The tail is of plain lines, such as a traceback: structured ones have been shown if they matter.
    """

    def __init__(self, file: RotatingFile, say: Callable[[str], None]) -> None:
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._file = file
        self._say = say
        self._rest = b""
        self._last_shown = ""
        self._complained = False

    def feed(self, data: bytes) -> None:
        """Store a piece of output and look at the lines that it completes."""
        self._file.write(data)
        self._complain_once()
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_BYTES:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            self._look_at(line.decode("utf-8", "replace").rstrip())

    def _complain_once(self) -> None:
        if self._file.failed and not self._complained:
            self._say(f"its log {self._file.path} cannot be written: {self._file.failed.strerror}")
        self._complained = self._file.failed is not None

    def _look_at(self, line: str) -> None:
        if not line:
            return
        if not line.startswith("{"):
            self.tail.append(line)
        shown = worth_showing(line)
        if shown and shown != self._last_shown:  # a warning a second, all alike, hides what matters
            self._say(shown)
            self._last_shown = shown


def worth_showing(line: str) -> str | None:
    """A warning's or error's text for the console, None for any other line.

    Services log JSON with a `level`, or, with IGEN_LOG_FORMAT=console, lines with the level in brackets.
    """
    if not line.startswith("{"):
        return line if CONSOLE_WARNING.search(line) else None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if record.get("level") not in ("warning", "error", "critical"):
        return None
    details = [f"{key}={value}" for key, value in record.items() if key not in SHOWN_KEYS_LEFT_OUT]
    return " ".join([f"{record['level']}: {record.get('event', '')}", *details])
