"""Plays a Python of another version, or one without venv: other_python.py VERSION with|without ARGUMENTS…

Knows what scripts/up asks of an interpreter: `--version`, `-c CODE`, `-m MODULE ARGUMENTS…`.
"""

from __future__ import annotations

import platform
import runpy
import sys
from typing import NamedTuple


class Version(NamedTuple):
    """The part of `sys.version_info` that is looked at."""

    major: int
    minor: int
    micro: int


def main() -> None:
    version, venv, *arguments = sys.argv[1:]
    sys.version_info = Version(*map(int, version.split(".")))  # type: ignore[assignment]
    platform.python_version = lambda: version
    sys._base_executable = "false"  # this Python cannot make a real virtual environment
    if venv == "without":
        sys.modules["ensurepip"] = None  # type: ignore[assignment]
    if arguments[0] == "--version":
        print(f"Python {version}")
    elif arguments[0] == "-c":
        exec(arguments[1], {"__name__": "__main__"})
    else:
        sys.path.insert(0, "")
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
