"""A gateway as a process of its own over a fresh home, before a fake backend that lives in a thread of the test's."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.support.fake_backend import FakeBackend
from tests.support.stack import free_ports

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]


def plain_environment(**values: str) -> dict[str, str]:
    """This process's environment without any of the product's variables, and with these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("IGEN_")}
    return kept | {"COLUMNS": "200"} | values


def wait_until(condition: Callable[[], Any], seconds: float = 60, what: str = "") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what or condition}"
        time.sleep(0.01)


class GatewayProcess:
    """Backend and gateway. `database` and `store` may name others than those of the home."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.home = home
        self.backend = FakeBackend()
        self.port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self.extra = environment
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self.call(self.backend.start())
        subprocess.run([sys.executable, "-m", "gateway", "init"], cwd=ROOT, env=self.environment, check=True)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.call(self.backend.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def environment(self) -> dict[str, str]:
        return plain_environment(
            IGEN_HOME=str(self.home),
            IGEN_PORT=str(self.port),
            IGEN_BACKEND_URL=self.backend.url,
            IGEN_BACKEND_KEY=self.backend.key,
            IGEN_DRAIN_SECONDS="1",
            IGEN_LEASE_SECONDS="1",
            **self.extra,
        )

    @property
    def key(self) -> str:
        return (self.home / "first-key").read_text().strip()

    def call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def start(self) -> None:
        log = (self.home / "gateway.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gateway", "serve"], cwd=ROOT, env=self.environment, stdout=log, stderr=log
            )
        wait_until(self._answers, 60, "the gateway")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.home / "gateway.log").read_text()
        try:
            urllib.request.urlopen(f"{self.url}/healthz", timeout=5).close()
        except urllib.error.HTTPError as problem:
            problem.close()
            return False
        except OSError:
            return False
        return True

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(30)
        self._process = None

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Rows of the home's SQLite."""
        database = sqlite3.connect(self.home / "igen.db")
        try:
            return database.execute(query).fetchall()
        finally:
            database.close()
