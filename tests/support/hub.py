"""A stand-in for the Hugging Face hub: the few calls by which its client fetches single files, on loopback."""

from __future__ import annotations

import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from tests.support.checkpoints import hub_etag

if TYPE_CHECKING:
    from pathlib import Path

RESOLVE = re.compile(r"^/([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/(.+)$")


class FakeHub:
    """Serves one folder as one repository at one commit.

    `fault` is an HTTP status that every request gets, or "hang" for no answer at all.
    """

    def __init__(self, folder: Path, name: str, commit: str) -> None:
        self.folder, self.name, self.commit = folder, name, commit
        self.fault: int | str | None = None
        self.requests: list[str] = []
        self.stopping = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:  # noqa: N802 - the base class's name
            self._answer(body=False)

        def do_GET(self) -> None:  # noqa: N802
            self._answer(body=True)

        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self, *, body: bool) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            if hub.fault == "hang":
                hub.stopping.wait(120)
                self.close_connection = True
            elif isinstance(hub.fault, int):
                self._send(hub.fault, b"")
            elif not (found := RESOLVE.match(self.path)) or found[1] != hub.name:
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            elif found[2] != hub.commit:
                self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            elif not (path := hub.folder / found[3]).is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": hub.commit})
            else:
                headers = {"X-Repo-Commit": hub.commit, "ETag": f'"{hub_etag(path)}"'}
                self._send(200, path.read_bytes(), headers, body=body)

        def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None, *, body: bool = True) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

    return Handler


def wait_for_request(hub: FakeHub, deadline_s: float = 30) -> None:
    """Until the client has asked for anything."""
    ends = time.monotonic() + deadline_s
    while not hub.requests and time.monotonic() < ends:
        time.sleep(0.05)
