"""A service for the supervisor's tests: notes its life in a file and answers HTTP 200 when it is ready.

fake_service.py NAME EVENTS [--port N] [--ready-after S] [--exit CODE] [--deaf] [--grandchild]
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


class Answer(BaseHTTPRequestHandler):
    ready_at = 0.0

    def do_GET(self) -> None:
        self.send_response(200 if time.monotonic() >= self.ready_at else 204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("events", type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("--ready-after", type=float, default=0.0)
    parser.add_argument("--exit", type=int)
    parser.add_argument("--deaf", action="store_true")
    parser.add_argument("--grandchild", action="store_true")
    options = parser.parse_args()

    def note(what: str, pid: int) -> None:
        with options.events.open("a") as file:
            file.write(f"{what} {options.name} {pid}\n")

    def stop(_signal: int, _frame: object) -> None:
        note("stop", os.getpid())
        sys.exit(0)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if options.deaf else stop)
    note("start", os.getpid())
    print('{"level": "warning", "event": "a warning", "answer": 42}', flush=True)
    print('{"level": "info", "event": "chatter"}', flush=True)
    if options.grandchild:
        note("grandchild", subprocess.Popen(["sleep", "600"]).pid)
    if options.exit is not None:
        print("Traceback: the reason why", flush=True)
        sys.exit(options.exit)
    Answer.ready_at = time.monotonic() + options.ready_after
    if options.port is None:
        signal.pause()
    HTTPServer(("127.0.0.1", options.port), Answer).serve_forever()


if __name__ == "__main__":
    main()
