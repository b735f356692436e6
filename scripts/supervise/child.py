"""One child process: started so that it cannot outlive the supervisor, stopped with its whole process group."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scripts.supervise.child_log import ChildLog

POLL_S = 0.1
READ_BYTES = 65536
PR_SET_PDEATHSIG = 1
"""prctl(2), Linux: the kernel sends the given signal to this process when its parent ends, however it ends."""


class Child:
    """A running process whose standard output and error go to its log."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: ChildLog) -> None:
        """Start the process in a session of its own, so that a Ctrl-C at the terminal reaches the supervisor alone.

        Raises:
            OSError: the program cannot be started.

        """
        self._log = log
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
            preexec_fn=_tied_to(os.getpid()),  # noqa: PLW1509 - the supervisor has one thread
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout.fileno()
        os.set_blocking(self._output, False)
        self._reading = True
        asyncio.get_running_loop().add_reader(self._output, self._read)

    @property
    def pid(self) -> int:
        """The process's id, also that of its group."""
        return self._process.pid

    async def wait(self) -> int:
        """Wait for the end, end what is left of its group, and return the exit code (negative: a signal)."""
        while not self._ended():  # noqa: ASYNC110 - no event of this loop's comes with a process's end
            await asyncio.sleep(POLL_S)
        self._signal_group(signal.SIGKILL)  # the unreaped leader keeps the group's number from being given away
        code = self._process.wait()
        if self._reading:
            self._read()
            self._close_output()
        return code

    async def stop(self, grace_s: float) -> None:
        """Ask the process to stop, and kill it when it has not within `grace_s` seconds."""
        self._signal_group(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                while not self._ended():  # noqa: ASYNC110 - as above
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            self.kill()

    def kill(self) -> None:
        """End the process and its group at once."""
        self._signal_group(signal.SIGKILL)

    def _ended(self) -> bool:
        if self._process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _signal_group(self, number: int) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def _read(self) -> None:
        try:
            data = os.read(self._output, READ_BYTES)
        except BlockingIOError:
            return
        if data:
            self._log.feed(data)
        else:
            self._close_output()

    def _close_output(self) -> None:
        if self._reading:
            self._reading = False
            asyncio.get_running_loop().remove_reader(self._output)
            assert self._process.stdout is not None
            self._process.stdout.close()


def _tied_to(parent: int) -> Callable[[], None]:
    """What a child does before it becomes its program: die with the supervisor, even one killed with -9."""
    if sys.platform != "linux":
        return lambda: None
    prctl = ctypes.CDLL(None).prctl  # looked up here, since after a fork as little as possible should happen

    def tie() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent ended before the line above
            os._exit(1)

    return tie
