"""An origin of large files that fails as real ones do: a hub with a store that it redirects to, and plain files."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from tests.support.checkpoints import hub_etag

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

RESOLVE = re.compile(r"^/([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/(.+)$")
RANGE = re.compile(r"^bytes=(\d+)-$")
BLOCK = 4096


@dataclass(frozen=True)
class Asked:
    """A request that came."""

    path: str
    range: str | None
    token: str | None


@dataclass
class Faults:
    """What goes wrong. Lists are used up, one item a request of a large file."""

    cut_after: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    ignores_range: bool = False
    no_etag: bool = False
    wrong_range: bool = False
    bytes_per_s: int | None = None


class FlakyOrigin:
    """Repositories are folders at one commit each, `main` too; `files` are served at their path as they are."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.repositories: dict[str, tuple[Path, str]] = {}
        self.token: str | None = None
        self.faults = Faults()
        self.requests: list[Asked] = []
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.origin = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def of(self, part: str) -> list[Asked]:
        """Requests whose path has `part` in it."""
        return [item for item in self.requests if part in item.path]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    origin: FlakyOrigin

    def handle_error(self, *_: Any) -> None:
        """A client that went away is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        origin = self.server.origin
        token = self.headers.get("Authorization")
        origin.requests.append(Asked(self.path, self.headers.get("Range"), token))
        if self.path in origin.files:
            self._send_large(origin.files[self.path], {})
            return
        found = RESOLVE.match(self.path)
        folder, commit = origin.repositories.get(found[1], (None, "")) if found else (None, "")
        if found is None or folder is None or found[2] not in {commit, "main"}:
            self._say(404)
        elif origin.token is not None and token != f"Bearer {origin.token}":
            self._say(401)
        elif not (folder / found[3]).is_file():
            self._say(404)
        else:
            self._send_of_repository(folder / found[3], commit)

    def _send_of_repository(self, path: Path, commit: str) -> None:
        etag = hub_etag(path)
        if path.suffix != ".safetensors":
            self._send(path.read_bytes(), {"ETag": f'"{etag}"', "X-Repo-Commit": commit})
            return
        place = f"/store/{etag}"
        self.server.origin.files[place] = path.read_bytes()
        moved = {"Location": place, "X-Linked-Etag": f'"{etag}"', "X-Repo-Commit": commit}
        self._say(302, moved)

    def _send_large(self, data: bytes, headers: Mapping[str, str]) -> None:
        faults = self.server.origin.faults
        if faults.statuses:
            self._say(faults.statuses.pop(0))
            return
        etag = {} if faults.no_etag else {"ETag": f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'}
        asked = RANGE.match(self.headers.get("Range", ""))
        start = 0 if asked is None or faults.ignores_range else int(asked[1])
        cut = faults.cut_after.pop(0) if faults.cut_after else None
        if start and start >= len(data):
            self._say(416, {"Content-Range": f"bytes */{len(data)}", **etag})
        elif start:
            told = start + 1 if faults.wrong_range else start
            span = {"Content-Range": f"bytes {told}-{len(data) - 1}/{len(data)}"}
            self._send(data[start:], {**headers, **etag, **span}, status=206, cut=cut)
        else:
            self._send(data, {**headers, **etag}, cut=cut)

    def _say(self, status: int, headers: Mapping[str, str] | None = None) -> None:
        self._send(b"", headers or {}, status=status)

    def _send(self, data: bytes, headers: Mapping[str, str], *, status: int = 200, cut: int | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        rate = self.server.origin.faults.bytes_per_s
        for start in range(0, len(data[:cut]), BLOCK):
            self.wfile.write(data[:cut][start : start + BLOCK])
            if rate:
                time.sleep(BLOCK / rate)
        if cut is not None:
            self.close_connection = True
            self.connection.shutdown(2)

    def log_message(self, *_: Any) -> None:
        pass
