"""A stand-in for the Hugging Face hub: the few calls by which its client fetches single files, on loopback."""

from __future__ import annotations

import re
import threading
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
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def find(self, path: str) -> tuple[int, dict[str, str], Path | None]:
        """Status, headers and file of the answer."""
        if isinstance(self.fault, int):
            return self.fault, {}, None
        found = RESOLVE.match(path)
        if not found or found[1] != self.name:
            return 404, {"X-Error-Code": "RepoNotFound"}, None
        if found[2] != self.commit:
            return 404, {"X-Error-Code": "RevisionNotFound"}, None
        file = self.folder / found[3]
        if not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.commit}, None
        return 200, {"X-Repo-Commit": self.commit, "ETag": f'"{hub_etag(file)}"'}, file

    def close(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: FakeHub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.server.hub
        hub.requests.append(f"{self.command} {self.path}")
        if hub.fault == "hang":
            hub.stopping.wait(120)
            self.close_connection = True
            return
        status, headers, file = hub.find(self.path)
        data = file.read_bytes() if file else b""
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass
