"""The supervisor's composition root: `python -m scripts.supervise`, which `scripts/up` becomes."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

from compositor.settings import CompositorSettings
from gateway.settings import GatewaySettings
from inference.settings import InferenceSettings, check_settings
from models.settings import SettingsError, load_settings
from scripts.supervise.checks import CheckError, check_ports, ensure_inference_key, prepare_home, take_lock
from scripts.supervise.console import Console
from scripts.supervise.env_file import apply_env_file
from scripts.supervise.redis_server import RedisServer, find_redis, prepare_redis
from scripts.supervise.services import Service, registry
from scripts.supervise.settings import SupervisorSettings, connect_host
from scripts.supervise.supervisor import Supervisor
from scripts.supervise.welcome import welcome


def main() -> int:
    """Check, start, wait. Exit code 2: something is to be changed first; 1: a service could not be started."""
    try:
        return _run()
    except SettingsError as problem:
        print(f"scripts/up: {problem}", file=sys.stderr)
    except CheckError as problem:
        print(f"scripts/up: {problem}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 2


def _run() -> int:
    root = Path(__file__).resolve().parents[2]
    os.umask(0o077)  # keys, pictures and logs are their owner's, whatever mode IGEN_HOME has
    apply_env_file(root / ".env", os.environ)
    settings, host_header = _settings(root)
    prepare_home(settings.home)
    lock = take_lock(settings.home, settings.address)
    try:
        services = _prepare(settings, host_header)
        console = Console(settings.logs / "supervisor.log")
        console.line(f"IGen keeps its state in {settings.home} and its logs in {settings.logs}")
        supervisor = Supervisor(services, settings.logs, console, stop_timeout_s=settings.stop_timeout_s)
        return asyncio.run(supervisor.run(lambda seconds: _greet(console, settings, host_header, seconds)))
    finally:
        os.close(lock)


def _prepare(settings: SupervisorSettings, host_header: str) -> list[Service]:
    try:
        services = registry(settings, _redis(settings), host_header)
        check_ports(settings.bind, [service.port for service in services if service.port])
        if settings.draws_here:
            ensure_inference_key(settings)
    except OSError as problem:
        raise CheckError(f"IGEN_HOME: {problem.filename or settings.home}: {problem.strerror}") from problem
    return services


def _settings(root: Path) -> tuple[SupervisorSettings, str]:
    """The settings with an absolute home, after those of the children have been found good too.

    With them comes the name to call the gateway by, where it does not answer to its own address.
    """
    settings = load_settings(SupervisorSettings)
    settings = settings.model_copy(update={"home": (root / settings.home).absolute()})
    os.environ["IGEN_HOME"] = str(settings.home)
    gateway = load_settings(GatewaySettings)
    if settings.workers:
        load_settings(CompositorSettings)
    if settings.draws_here:
        check_settings(load_settings(InferenceSettings))
    answers_to_address = {"*", connect_host(settings.bind).lower()} & gateway.hosts
    return settings, "" if answers_to_address else urlsplit(gateway.public_base).netloc


def _redis(settings: SupervisorSettings) -> RedisServer | None:
    if settings.redis_url:
        return None
    program = find_redis()
    if program is None:
        raise CheckError("there is no redis-server or valkey-server on PATH; install one or set IGEN_REDIS_URL")
    return prepare_redis(program, settings.home)


def _greet(console: Console, settings: SupervisorSettings, host_header: str, seconds: float) -> None:
    for line in welcome(settings, seconds, host_header):
        console.line(line)


if __name__ == "__main__":
    sys.exit(main())
