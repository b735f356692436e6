"""What is looked at before anything starts. Each fault is one line that names the variable to change."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
import socket
import time
from typing import TYPE_CHECKING

from models.files import write_private

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from scripts.supervise.settings import SupervisorSettings

LOCK_NAME = "supervisor.lock"
MIN_FREE_BYTES = 100 * 1024**2
"""Below this Redis and the database soon fail in ways that are harder to read."""

PORT_PATIENCE_S = 2.0
"""How long a port may stay taken by the children of a supervisor that was killed a moment ago."""


class CheckError(Exception):
    """IGen cannot start here; the message is one line."""


def prepare_home(home: Path) -> None:
    """Make the state folder and its parts, and see that they can be written.

    Raises:
        CheckError: they cannot, or the disk is full.

    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        (home / "logs").mkdir(exist_ok=True)
        probe = home / f".probe-{os.getpid()}"
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except OSError as problem:
        raise CheckError(f"IGEN_HOME: cannot write to {home}: {problem.strerror}") from None
    free = shutil.disk_usage(home).free
    if free < MIN_FREE_BYTES:
        raise CheckError(
            f"IGEN_HOME: the disk of {home} is full: {free // 10**6} MB free, {MIN_FREE_BYTES // 10**6} MB are needed"
        )


def take_lock(home: Path, address: str) -> int:
    """Hold the home folder for this process; the kernel lets go when the process ends, however it ends.

    Returns:
        The lock's file descriptor, to be kept open.

    Raises:
        CheckError: another supervisor holds it.

    """
    try:
        descriptor = os.open(home / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 4096)
            os.close(descriptor)
            raise CheckError(_already_running(holder, home)) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({"pid": os.getpid(), "address": address}).encode())
    except OSError as problem:
        raise CheckError(f"IGEN_HOME: cannot lock {home / LOCK_NAME}: {problem.strerror}") from None
    return descriptor


def _already_running(holder: bytes, home: Path) -> str:
    try:
        record = json.loads(holder)
        who = f"at {record['address']} (process {record['pid']})"
    except (ValueError, KeyError, TypeError):
        who = "(it is just starting)"
    return f"already running {who} with IGEN_HOME={home}; stop that one, or set IGEN_HOME and the ports for a second"


def check_ports(bind: str, ports: Iterable[tuple[str, int]]) -> None:
    """See that every port can be listened on; `ports` are pairs of a variable's name and a port.

    Raises:
        CheckError: naming the variable of the first that cannot.

    """
    seen: dict[int, str] = {}
    for variable, port in ports:
        if port in seen:
            raise CheckError(f"{variable}: port {port} is {seen[port]}'s already; set another")
        seen[port] = variable
        _check_port(bind, variable, port)


def _check_port(bind: str, variable: str, port: int) -> None:
    deadline = time.monotonic() + PORT_PATIENCE_S
    while True:
        try:
            _listen_once(bind, port)
        except OSError as problem:
            if problem.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            raise CheckError(_port_problem(problem, bind, variable, port)) from None
        return


def _listen_once(bind: str, port: int) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(
        bind or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
        probe.bind(address)
        probe.listen(1)


def _port_problem(problem: OSError, bind: str, variable: str, port: int) -> str:
    if problem.errno == errno.EADDRINUSE:
        return f"{variable}: port {port} is taken by another program; stop that one or set {variable} to a free port"
    if problem.errno == errno.EACCES:
        return f"{variable}: this user may not listen on port {port}; set {variable} to one above 1023"
    return f"IGEN_BIND: cannot listen on {bind!r}: {problem.strerror}"


def ensure_inference_key(settings: SupervisorSettings) -> None:
    """Make the key that the gateway and the inference server share, unless there is one.

    Both read `$IGEN_HOME/inference-key` (mode 0600) when IGEN_INFERENCE_KEY is not set.
    """
    path = settings.home / "inference-key"
    if settings.inference_key or (path.is_file() and path.read_text(encoding="utf-8").strip()):
        return
    write_private(path, secrets.token_urlsafe(32) + "\n")
