"""The whole product as `scripts/up` starts it, on free ports and in a folder of its own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).resolve().parents[2]
CURL = re.compile(r"^\s*(curl .*)$", re.MULTILINE)


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def running(home: Path, environment: Mapping[str, str] | None = None) -> Iterator[Stack]:
    """The whole product until the end of the block, which it must leave with exit code 0."""
    stack = Stack(home, environment)
    try:
        stack.start()
        yield stack
    finally:
        code = stack.stop()
    assert code == 0, stack.output


class Stack:
    """Supervisor, Redis, inference server with the bundled checkpoint, gateway, workers, reconciler."""

    def __init__(self, home: Path, environment: Mapping[str, str] | None = None) -> None:
        self._extra = dict(environment or {})
        self.home = home
        self.port, self.inference_port = free_ports(2)
        self.address = f"http://127.0.0.1:{self.port}"
        self.output = ""
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("IGEN_")}
        environment |= {
            "IGEN_HOME": str(self.home),
            "IGEN_PORT": str(self.port),
            "IGEN_INFERENCE_PORT": str(self.inference_port),
            **self._extra,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "scripts.supervise"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()
        self.wait_for(lambda: len(CURL.findall(self.output)) >= 2, 240, "the curl lines")

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self.output += line

    def wait_for(self, condition: Any, seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self._process is not None
            assert self._process.poll() is None, f"the supervisor ended:\n{self.output}"
            assert time.monotonic() < deadline, f"no {what} after {seconds} s:\n{self.output}"
            time.sleep(0.1)

    def stop(self) -> int:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=60)

    def pid_of(self, module: str) -> int:
        """The child that runs `python -m <module>`."""
        assert self._process is not None
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if parent == self._process.pid and module.encode() in words:
                return int(entry.name)
        raise AssertionError(f"no process runs {module}")

    def kill(self, module: str) -> None:
        os.kill(self.pid_of(module), signal.SIGKILL)

    def log(self, name: str) -> str:
        return (self.home / "logs" / f"{name}.log").read_text()

    @property
    def curl_lines(self) -> list[str]:
        return CURL.findall(self.output)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {(self.home / 'first-key').read_text().strip()}"}

    async def call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Mapping[str, str], Any]:
        """Status, headers and JSON (or bytes) of one request with the first key."""
        url = path if path.startswith("http") else self.address + path
        timeout = aiohttp.ClientTimeout(total=280)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.request(method, url, json=body, headers={**self.headers, **(headers or {})}) as answer,
        ):
            is_json = answer.content_type == "application/json"
            content = await answer.json() if is_json else await answer.read()
            return answer.status, answer.headers, content

    async def generate(
        self, headers: dict[str, str] | None = None, **fields: Any
    ) -> tuple[int, Mapping[str, str], Any]:
        return await self.call("POST", "/api/generate/", fields, headers)
