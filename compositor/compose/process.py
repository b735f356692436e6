"""Starting and stopping the composing process from whoever needs one: a worker, the gateway, a script."""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Self

from compositor.compose.errors import ComposeCode, ComposeError
from compositor.compose.limits import Limits

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(128 * 2**20),
    "OPENBLAS_NUM_THREADS": "1",
}
"""The C library keeps up to 128 MiB for the next picture: otherwise each canvas is mapped afresh and faulted in page
by page, an eighth of a product's time. NumPy must have no threads when the process forks."""
READY = b"ready\n"
OWN_FOLDER_PREFIX = "igen-compose-"
"""A process without a folder given has one of this prefix, its owner's id and a dash, so that others can sweep it."""
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0


class ComposeProcess:
    """A composing process on a private socket, which ends with whoever holds this.

    It may be handed to forks: they use the socket, and `ensure` starts the process again from any of them.
    """

    def __init__(self, folder: Path | None = None, limits: Limits | None = None) -> None:
        """`folder` holds the socket and must have a short path; by default a fresh private one."""
        self._limits = limits or Limits()
        self._own_folder = folder is None
        self._owner = os.getpid()
        self._folder = folder or Path(tempfile.mkdtemp(prefix=f"{OWN_FOLDER_PREFIX}{self._owner}-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @property
    def socket_path(self) -> Path:
        """Where the process listens."""
        return self._folder / "compose.sock"

    @property
    def pid(self) -> int | None:
        """The listening process, if this one started it."""
        return self._process.pid if self._process else None

    def __enter__(self) -> Self:
        """Starts it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops it."""
        self.stop()

    def start(self) -> None:
        """Start the process and wait until it listens.

        Raises:
            ComposeError: `composer_unavailable`: it did not start.

        """
        with self._lock:
            self._start()

    def ensure(self) -> None:
        """Start the process again if nothing listens.

        Raises:
            ComposeError: `composer_unavailable`: it did not start.

        """
        with self._lock:
            if not self._listens():
                self._end()
                self._start()

    def stop(self) -> None:
        """End the process; in a fork of the owner this does nothing unless the fork started one itself."""
        with self._lock:
            self._end()
            if self._own_folder and os.getpid() == self._owner:
                shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        limits = self._limits
        command = [sys.executable, "-m", "compositor.compose.child", "--socket", str(self.socket_path)]
        command += ["--memory-bytes", str(limits.memory_bytes), "--cpu-s", str(limits.cpu_s)]
        command += ["--wall-s", str(limits.wall_s)]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # signals to our group are for us; it ends when its input closes
        )
        self._started_by = os.getpid()
        assert self._process.stdout is not None  # noqa: S101 - asked for above
        ready, _, _ = select.select([self._process.stdout], [], [], START_TIMEOUT_S)
        if not ready or not os.read(self._process.stdout.fileno(), len(READY)):
            self._end()
            raise ComposeError(ComposeCode.COMPOSER_UNAVAILABLE, "The composing process did not start.")

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or self._started_by != os.getpid():
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(self.socket_path))
            except OSError:
                return False
            return True


def _environment() -> dict[str, str]:
    """Ours without the product's settings: a process that decodes strangers' pictures is told no secrets."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("IGEN_")}
    return {**kept, **ENVIRONMENT}
