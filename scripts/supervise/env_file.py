"""Reads the optional `.env` file in the checkout. Standard library only: the installation needs it too."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from pathlib import Path


def apply_env_file(path: Path, environ: MutableMapping[str, str]) -> None:
    """Add the file's `NAME=value` lines to `environ`; a variable that is already set wins.

    Empty lines, `#` lines and lines without `=` are skipped, one pair of quotes around a value is removed.
    Nothing is expanded or executed.
    """
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if not equals or name.startswith("#"):
            continue
        environ.setdefault(name.strip(), _unquoted(value.strip()))


def _unquoted(value: str) -> str:
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quoted else value
