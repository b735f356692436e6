"""The registry of services, as data: what runs, after what, and how one sees that it is ready."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scripts.supervise.probes import http_answers, process_lives
from scripts.supervise.settings import connect_host

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from scripts.supervise.redis_server import RedisServer
    from scripts.supervise.settings import SupervisorSettings


@dataclass(frozen=True)
class Service:
    """One child process.

    Attributes:
        name: shown on the console, and the log's file name.
        command: program and arguments.
        ready: a check of a moment, False while the service loads. None: the command has to run to its end, with
            exit code 0, before those that need it start.
        needs: names of services that must have been ready before this one starts the first time.
        environment: variables beside the supervisor's own.
        port: what it listens on, if anything, and the variable that names the port.

    """

    name: str
    command: tuple[str, ...]
    ready: Callable[[], Awaitable[bool]] | None
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    port: tuple[str, int] | None = None


def registry(settings: SupervisorSettings, redis: RedisServer | None, host_header: str = "") -> list[Service]:
    """All services for these settings, in the order in which they are stopped last to first.

    `host_header` is a name that the gateway answers to, where that is not its address.
    """
    shared = {
        "IGEN_HOME": str(settings.home),
        "IGEN_REDIS_URL": redis.url if redis else settings.redis_url,
        "IGEN_BACKEND_URL": settings.backend_url or settings.local_backend_url,
        "PYTHONUNBUFFERED": "1",
    }
    host = connect_host(settings.bind)
    services = []
    if redis:
        services.append(Service("redis", redis.command, redis.answers))
    services.append(Service("init", _python("gateway", "init"), None, environment=shared))
    if settings.draws_here:
        services.append(
            Service(
                "inference",
                _python("inference"),
                http_answers(f"http://{host}:{settings.inference_port}/ping"),
                environment=shared,
                port=("IGEN_INFERENCE_PORT", settings.inference_port),
            )
        )
    services.append(
        Service(
            "gateway",
            _python("gateway", "serve"),
            http_answers(f"http://{host}:{settings.port}/healthz", host_header),
            needs=("redis", "init") if redis else ("init",),
            environment=shared,
            port=("IGEN_PORT", settings.port),
        )
    )
    names = [f"worker-{number}" for number in range(1, settings.workers + 1)]
    if names:
        names.append("reconcile")
    services += [_compositor(name, settings, shared, needs_redis=redis is not None) for name in names]
    return services


def _compositor(name: str, settings: SupervisorSettings, shared: Mapping[str, str], *, needs_redis: bool) -> Service:
    """A worker or the reconciler; each writes its process id into a file when it is ready."""
    ready = settings.home / "run" / f"{name}.pid"
    command = name.partition("-")[0]
    return Service(
        name,
        _python("compositor", command, "--ready", str(ready)),
        process_lives(ready),
        needs=("redis", "init") if needs_redis else ("init",),
        environment=shared,
    )


def _python(module: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module, *arguments)
