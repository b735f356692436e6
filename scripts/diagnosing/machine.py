"""The settings themselves, the home folder, its disk, the first key's file, the ports."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compositor.settings import CompositorSettings
from gateway.settings import GatewaySettings
from models.settings import SettingsError, load_settings
from scripts.diagnosing.finding import fault, good, program, skipped, warning
from scripts.supervise.checks import MIN_FREE_BYTES, CheckError, check_ports
from scripts.supervise.settings import SupervisorSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pydantic_settings import BaseSettings

    from inference.settings import InferenceSettings
    from scripts.diagnosing.finding import Finding

LITTLE_BYTES = 5 * 2**30
ROOT_USER = 0
OTHERS = 0o077
"""Permissions of group and others."""


@dataclass(frozen=True)
class Loaded:
    """Every program's settings. The inference server's are None where its program is not installed."""

    gateway: GatewaySettings
    compositor: CompositorSettings
    supervisor: SupervisorSettings
    inference: InferenceSettings | None = None


def load_all() -> tuple[Loaded | None, list[Finding]]:
    """All settings, or a fault for each program whose variables are wrong."""
    findings: dict[str, Finding] = {}
    found: list[BaseSettings] = []
    for kind in _kinds():
        try:
            found.append(load_settings(kind))
        except SettingsError as problem:
            for line in str(problem).splitlines():
                findings[line] = fault("settings", line, "correct the variable in the environment or in .env")
    if findings:
        return None, list(findings.values())
    return Loaded(*found), [good("settings", "all variables can be read")]  # type: ignore[arg-type]


def _kinds() -> list[type[BaseSettings]]:
    """As `Loaded` has them. An image for gateways and workers has no inference server in it."""
    kinds: list[type[BaseSettings]] = [GatewaySettings, CompositorSettings, SupervisorSettings]
    if importlib.util.find_spec("inference") is not None:
        from inference.settings import InferenceSettings  # noqa: PLC0415 - only where it is

        kinds.append(InferenceSettings)
    return kinds


def check_owner(home: Path, user: int) -> Iterator[Finding]:
    """Whether root looks at a home that is another user's: what it writes there, that user could not use any more."""
    owner = home.stat().st_uid if home.is_dir() else user
    if user != ROOT_USER or owner == user:
        return
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = str(owner)
    mend = f"run this as {name} and with its environment; igen-run does so where docs/deploy/host.md was followed"
    yield fault("home", f"{home} is {name}'s, and root would leave files there that {name} cannot use", mend)


def check_home(home: Path) -> Iterator[Finding]:
    """Whether the folder is there, ours to write, nobody else's to read, and how full its disk is."""
    if not home.is_dir():
        mend = "start IGen once, or correct IGEN_HOME; the units of docs/deploy/host.md have theirs: use igen-run"
        yield fault("home", f"IGEN_HOME: there is no folder {home}", mend)
        return
    probe = home / f".probe-{os.getpid()}"
    try:
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except OSError as problem:
        mend = f"make it this user's: chown -R $(id -un) {home}"
        yield fault("home", f"IGEN_HOME: cannot write to {home}: {problem.strerror}", mend)
    else:
        yield good("home", f"{home} can be written")
    if home.stat().st_mode & OTHERS:
        yield warning("home", f"other users may look into {home}, where pictures and keys lie", f"chmod 700 {home}")
    yield check_disk("disk", home)


def check_disk(part: str, folder: Path) -> Finding:
    """How much room is left where a folder lies."""
    usage = shutil.disk_usage(folder)
    told = f"{usage.free / 2**30:.1f} GiB of {usage.total / 2**30:.1f} GiB are free where {folder} lies"
    if usage.free < MIN_FREE_BYTES:
        return fault(part, f"the disk is full: {told}", "make room: Redis, the database and pictures need it")
    if usage.free < LITTLE_BYTES:
        return warning(
            part, f"the disk is filling up: {told}", "make room, or lower IGEN_KEEP_RUNS and IGEN_KEEP_DAYS"
        )
    return good(part, told)


def check_first_key(home: Path) -> Finding:
    """Whether the first key's file is there and its owner's alone."""
    path = home / "first-key"
    try:
        mode = path.stat().st_mode
    except OSError:
        mend = f"{program('gateway init')} makes one, unless keys are kept elsewhere"
        return warning("first key", f"there is no {path}", mend)
    if mode & OTHERS:
        return fault("first key", f"other users may read {path} (mode {mode & 0o777:o})", f"chmod 600 {path}")
    return good("first key", f"{path} is its owner's alone")


def check_free_ports(loaded: Loaded, *, gateway_runs: bool, backend_runs: bool) -> Iterator[Finding]:
    """Whether what does not run yet will be able to listen."""
    wanted = [("IGEN_PORT", loaded.gateway.port, gateway_runs)]
    if loaded.supervisor.draws_here:
        wanted.append(("IGEN_INFERENCE_PORT", loaded.supervisor.inference_port, backend_runs))
    for variable, port, runs in wanted:
        if runs:
            yield good("ports", f"{variable}: IGen listens on {port}")
        elif port == 0:
            yield skipped("ports", f"{variable} is 0: any free port")
        else:
            yield _check_port(loaded.gateway.bind, variable, port)


def _check_port(bind: str, variable: str, port: int) -> Finding:
    try:
        check_ports(bind, [(variable, port)])
    except CheckError as problem:
        return fault("ports", str(problem), f"ss -ltnp 'sport = :{port}' shows which program it is")
    return good("ports", f"{variable}: {port} is free")
