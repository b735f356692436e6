"""Writes constraints.txt: the exact version of everything that pyproject.toml asks for, as `.venv` has it."""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
OPTIONAL = {"xformers"}
"""Of use with CUDA alone, so a developer's machine may lack it; its pin is kept by hand."""

HEADER = """\
# Exact versions of every dependency, all extras included. Written by scripts/pin from .venv; do not edit.
# torch has no local version here, so that any of its builds fits; what PyTorch's CUDA builds bring beside it,
# torch itself names exactly.
"""


def main() -> int:
    """Write the file; packages that this machine cannot have (xformers without CUDA) keep their pins."""
    kept = read_pins()
    pins, missing = closure()
    if missing - OPTIONAL:
        print(
            f"not installed: {', '.join(sorted(missing - OPTIONAL))}; scripts/test installs everything",
            file=sys.stderr,
        )
        return 1
    if not missing & OPTIONAL:
        print("the extra cuda is installed, whose torch is not the one to pin", file=sys.stderr)
        return 1
    pins |= {name: kept[name] for name in missing if name in kept}
    lines = [f"{name}=={pins[name]}" for name in sorted(pins)]
    CONSTRAINTS.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} pins in {CONSTRAINTS.name}")
    return 0


def read_pins() -> dict[str, str]:
    """Names and versions in constraints.txt."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines() if CONSTRAINTS.exists() else []
    pairs = [line.partition("==") for line in lines if line and not line.startswith("#")]
    return {name: pinned for name, _, pinned in pairs}


def declared() -> dict[str, Requirement]:
    """What pyproject.toml asks for, all extras included, by canonical name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    found = [Requirement(line) for line in lines]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def closure() -> tuple[dict[str, str], set[str]]:
    """Versions of all that is declared and of all that it needs in turn, and the names that are not installed."""
    pins: dict[str, str] = {}
    missing: set[str] = set()
    waiting = [requirement for requirement in declared().values() if _applies(requirement, {""})]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            pins[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            missing.add(name)
            continue
        needs = [Requirement(line) for line in requires(name) or []]
        waiting += [need for need in needs if _applies(need, extras | {""})]
    return pins, missing


def _applies(requirement: Requirement, extras: set[str] | frozenset[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)


if __name__ == "__main__":
    sys.exit(main())
