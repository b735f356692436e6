"""What pip is to install: the requirements of pyproject.toml, and the pins that hold them. Standard library only."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.supervise.prerequisites import SetupError

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[2]
PINS = ROOT / "constraints.txt"


def dependencies() -> list[str]:
    """What every installation needs."""
    found = _project()["dependencies"]
    assert isinstance(found, list)
    return found


def optional() -> dict[str, list[str]]:
    """What each extra adds."""
    found = _project()["optional-dependencies"]
    assert isinstance(found, dict)
    return found


def _project() -> dict[str, object]:
    project: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def refuse_unknown(extras: Sequence[str]) -> None:
    """Check the names of extras.

    Raises:
        SetupError: there is no such extra.

    """
    if unknown := [name for name in extras if name not in optional()]:
        raise SetupError(f"no such extra: {', '.join(unknown)} (there are {', '.join(optional())})")


def own_versions(extras: Sequence[str]) -> dict[str, str]:
    """What an extra names exactly (`cuda`: a torch that xformers fits); it wins over constraints.txt."""
    lines = [line for name in extras for line in optional().get(name, [])]
    return {name: version for name, exactly, version in (line.partition("==") for line in lines) if exactly}


def pinned(name: str, extras: Sequence[str] = ()) -> str:
    """The version of a package: an extra's own, else the one in constraints.txt.

    Raises:
        SetupError: it has no pin.

    """
    if own := own_versions(extras).get(name):
        return own
    for line in PINS.read_text(encoding="utf-8").splitlines():
        package, _, version = line.partition("==")
        if package.strip() == name:
            return version.split(";")[0].strip()
    raise SetupError(f"constraints.txt has no pin for {name}")


def constraints(extras: Sequence[str], venv: Path) -> Path:
    """The file of pins for pip: constraints.txt itself, or one in `venv` without the pins that an extra replaces."""
    if not (own := own_versions(extras)):
        return PINS
    merged = venv / "igen-constraints.txt"
    lines = PINS.read_text(encoding="utf-8").splitlines(keepends=True)
    merged.write_text("".join(line for line in lines if line.partition("==")[0] not in own), encoding="utf-8")
    return merged
