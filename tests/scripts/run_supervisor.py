"""Runs a real supervisor over services in a JSON file: run_supervisor.py CHECKOUT FILE LOGS STOP_TIMEOUT_S."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path


def main() -> int:
    sys.path.insert(0, sys.argv[1])
    from scripts.supervise.console import Console
    from scripts.supervise.probes import http_answers
    from scripts.supervise.services import Service
    from scripts.supervise.supervisor import Pace, Supervisor

    logs = Path(sys.argv[3])
    services = [
        Service(
            item["name"],
            tuple(item["command"]),
            http_answers(f"http://127.0.0.1:{item['port']}/") if item["port"] else None,
            needs=tuple(item["needs"]),
        )
        for item in json.loads(Path(sys.argv[2]).read_text())
    ]
    console = Console(logs / "supervisor.log")
    pace = Pace(first_backoff=0.1, tries=3, probe=0.05, report=0.2)
    supervisor = Supervisor(services, logs, console, stop_timeout_s=float(sys.argv[4]), pace=pace)
    return asyncio.run(supervisor.run(lambda _: console.line("ALL READY")))


if __name__ == "__main__":
    sys.exit(main())
