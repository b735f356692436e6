"""SIGTERM and SIGHUP stop a command as Ctrl-C does, with an exit code of their own."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

INTERRUPTED, TERMINATED = 130, 143


class Interruption:
    """Takes the signals when it is made. `code` is what the process should end with after a KeyboardInterrupt."""

    def __init__(self) -> None:
        self.code = INTERRUPTED
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, self._stop)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.code = TERMINATED
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)
