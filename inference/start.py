"""The GPU image's entry: `python -m inference.start [auto|server|worker|health]`.

`auto` is the RunPod worker where RunPod's queue hands out jobs (RUNPOD_WEBHOOK_GET_JOB is set), else the HTTP server.
The server listens on PORT where the platform names one, and answers `/ping` on PORT_HEALTH too where that is another
port, as RunPod's load balancer wants it. `health` is the image's health check.
"""

from __future__ import annotations

import http.client
import os
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

MODES = ("auto", "server", "worker", "health")
USAGE = 2
OUR_PORT = "IGEN_INFERENCE_PORT"
DEFAULT_PORT = "8001"
LAST_PORT = 65_535
PING_S = 3.0
ALIVE = (HTTPStatus.OK, HTTPStatus.NO_CONTENT)
"""`/ping` while it serves and while it loads."""


class HealthServer(HTTPServer):
    """Answers `/ping` with what the server on `port` says: 204 until it listens. One request at a time."""

    def __init__(self, address: tuple[str, int], port: int) -> None:
        super().__init__(address, _Ping)
        self.port = port

    def handle_error(self, request: object, client_address: object) -> None:
        """A prober that hangs up is no news."""


class _Ping(BaseHTTPRequestHandler):
    timeout = PING_S  # a prober that says nothing must not keep the others waiting for long
    server: HealthServer

    def do_GET(self) -> None:
        """The health of the server beside it; nothing else is here."""
        status = ping(self.server.port) if self.path.partition("?")[0] == "/ping" else HTTPStatus.NOT_FOUND
        self.send_response(HTTPStatus.NO_CONTENT if status is None else status)
        if status not in (None, HTTPStatus.NO_CONTENT):
            self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Probes every few seconds are nothing to log."""


def ping(port: int) -> int | None:
    """Status of the server's own `/ping`; None while nothing listens, 503 where it listens and does not answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PING_S)
    try:
        connection.request("GET", "/ping")
        return connection.getresponse().status
    except ConnectionRefusedError:
        return None
    except (OSError, http.client.HTTPException):
        return HTTPStatus.SERVICE_UNAVAILABLE
    finally:
        connection.close()


def port_of(environ: MutableMapping[str, str], name: str, default: str) -> int:
    """A port that the environment names.

    Raises:
        ValueError: it is none; the message names the variable.

    """
    text = environ.get(name) or default
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= LAST_PORT:
        raise ValueError(f"{name}: not a port")
    return int(text)


def main(arguments: Sequence[str], environ: MutableMapping[str, str]) -> int:
    """Become what the mode says; the process's exit code."""
    mode = arguments[0] if arguments else "auto"
    if mode not in MODES or len(arguments) > 1:
        sys.stderr.write(f"igen: one of {', '.join(MODES)}\n")
        return USAGE
    is_worker = mode == "worker" or (mode != "server" and bool(environ.get("RUNPOD_WEBHOOK_GET_JOB")))
    if is_worker and mode != "health":
        from inference.runpod_worker import main as worker  # noqa: PLC0415 - only one of the two is needed

        return worker()
    try:
        if environ.get("PORT"):
            environ[OUR_PORT] = str(port_of(environ, "PORT", DEFAULT_PORT))
        port = port_of(environ, OUR_PORT, DEFAULT_PORT)
        health_port = port_of(environ, "PORT_HEALTH", str(port))
    except ValueError as problem:
        sys.stderr.write(f"igen: {problem}\n")
        return USAGE
    if mode == "health":
        return _health(port, is_worker=is_worker)
    return _serve(port, health_port, environ.get("IGEN_BIND") or "127.0.0.1")


def _health(port: int, *, is_worker: bool) -> int:
    status = ping(port)
    # a worker has no port, and ends by itself when it is not well
    well = is_worker if status is None else status in ALIVE
    return 0 if well else 1


def _serve(port: int, health_port: int, bind: str) -> int:
    from inference.__main__ import main as server  # noqa: PLC0415 - as above

    if health_port != port:
        try:
            health = HealthServer((bind, health_port), port)
        except OSError as problem:
            sys.stderr.write(f"igen: PORT_HEALTH: cannot listen on {bind}:{health_port}: {problem.strerror}\n")
            return USAGE
        threading.Thread(target=health.serve_forever, name="igen-health", daemon=True).start()
    return server()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
