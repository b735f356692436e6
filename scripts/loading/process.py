"""A gateway as a process of its own over a fresh home, and what it uses of the processor."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.loading.standin import KEY
from scripts.supervise.redis_server import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
START_S = 60.0
TICKS = os.sysconf("SC_CLK_TCK")


class StartError(Exception):
    """The gateway did not start; the message has its log's end."""


@dataclass(frozen=True, slots=True)
class Running:
    """One gateway. `key` is good for it."""

    pid: int
    url: str
    key: str

    def cpu_s(self) -> float:
        """Seconds of processor that it has used, in user and kernel, its threads included."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def rss_mb(self) -> float:
        """Its resident memory."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def gateway(home: Path, backend_url: str, database_url: str | None) -> Iterator[Running]:
    """Start a gateway over `home`, and stop it.

    Raises:
        StartError: it does not come up.

    """
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("IGEN_")}
    environment |= {
        "IGEN_HOME": str(home),
        "IGEN_PORT": str(port),
        "IGEN_BACKEND_URL": backend_url,
        "IGEN_BACKEND_KEY": KEY,
        "IGEN_LOG_LEVEL": "warning",
        **({"IGEN_DATABASE_URL": database_url} if database_url else {}),
    }
    subprocess.run(
        [sys.executable, "-m", "gateway", "init"], cwd=ROOT, env=environment, check=True, capture_output=True
    )
    with (home / "gateway.log").open("wb") as log:
        command = [sys.executable, "-m", "gateway", "serve"]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(process, url, home / "gateway.log")
        yield Running(process.pid, url, (home / "first-key").read_text().strip())
    finally:
        process.terminate()
        process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            urllib.request.urlopen(f"{url}/healthz", timeout=5).close()  # noqa: S310 - our own address
        except (urllib.error.URLError, ConnectionError) as problem:
            if process.poll() is not None or time.monotonic() > deadline:
                raise StartError(f"the gateway did not start: {log.read_text()[-2000:]}") from problem
            time.sleep(0.1)
        else:
            return
