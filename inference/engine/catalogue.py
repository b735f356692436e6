"""Catalogues: files in TOML that say, name by name, where a checkpoint comes from and what it should be.

One table an entry. `source` is a Hugging Face id (`org/name`), an https address of one `.safetensors` file, or a path
that begins with `.`, `/` or `~` (relative to the file). Beside it may stand `revision` (commit of a hub id), `sha256`
(text for one file, a table of files for several), `title`, `licence`, `kind` (`base` or `refiner`), `preset`
(`turbo`, `lightning`, `lcm`; see `metadata`) and `defaults` (as in `igen.json`).
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from inference.engine.metadata import PRESETS
from inference.engine.metadata import RULES as DEFAULTS
from inference.engine.types import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from inference.engine.layout import Kind

FILE = "catalogue.toml"
NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_. -]*$")
HUB_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*$")
COMMIT = re.compile(r"^[0-9a-f]{40}$")
SHA256 = re.compile(r"^[0-9a-f]{64}$")
KINDS = ("base", "refiner")
MAX_BYTES = 1_000_000
LOOPBACK = ("127.0.0.1", "::1", "localhost")

Origin = Literal["hub", "url", "path"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One checkpoint of a catalogue. `file` is the catalogue; `sha256` goes by file, `""` being a single file's."""

    name: str
    source: str
    origin: Origin
    file: Path
    revision: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    title: str = ""
    licence: str = ""
    kind: Kind = "base"
    preset: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path | None:
        """Where a source that is a path leads; None for the others."""
        return self.file.parent / Path(self.source).expanduser() if self.origin == "path" else None


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Entries of several files; a later file's entry takes an earlier one's place."""

    entries: Mapping[str, Entry] = field(default_factory=dict)

    @classmethod
    def read(cls, files: Iterable[Path]) -> Catalogue:
        """Read those of the files that exist.

        Raises:
            CheckpointError: naming the file, the entry and the key that is wrong.

        """
        entries: dict[str, Entry] = {}
        for file in files:
            entries |= {name: _entry(file, name, values) for name, values in _tables(file).items()}
        return cls(entries)

    @classmethod
    def in_folders(cls, folders: Iterable[Path]) -> Catalogue:
        """Read the `catalogue.toml` of each folder that has one; as in a search path, an earlier folder wins.

        Raises:
            CheckpointError: as `read`.

        """
        return cls.read(folder / FILE for folder in reversed(tuple(folders)))

    @staticmethod
    def of_values(file: Path, name: str, values: Mapping[str, Any]) -> Entry:
        """An entry as if `file` held it.

        Raises:
            CheckpointError: as `read`.

        """
        return _entry(file, name, values)

    def entry(self, name: str) -> Entry | None:
        """What a name stands for, None where it stands for nothing."""
        return self.entries.get(name)

    def of_source(self, source: str) -> Entry | None:
        """The first entry that comes from a source."""
        return next((entry for entry in self.entries.values() if entry.source == source), None)


def classify(source: str) -> Origin | None:
    """What kind of source a text is, None for none."""
    if HUB_ID.match(source):
        return "hub"
    if source.startswith((".", "/", "~")):
        return "path"
    try:
        url = urlsplit(source)
        is_safe = url.scheme == "https" or (url.scheme == "http" and url.hostname in LOOPBACK)
    except ValueError:  # such as a bracket that is not closed
        return None
    return "url" if is_safe and url.hostname and url.path.lower().endswith(".safetensors") else None


def _tables(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise CheckpointError(f"{file} is larger than {MAX_BYTES} bytes")
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as problem:
        raise CheckpointError(f"{file} cannot be read: {problem.strerror}") from None
    except (ValueError, RecursionError) as problem:  # TOML and UTF-8 errors are both
        raise CheckpointError(f"{file} is no TOML: {problem}") from None


def _entry(file: Path, name: str, values: Any) -> Entry:
    where = f"{file}: [{name}]"
    if not NAME.fullmatch(name):
        raise CheckpointError(
            f"{where}: a name is made of letters, digits, spaces and _.- and begins with one of the first"
        )
    if not isinstance(values, dict):
        raise CheckpointError(f"{where} must be a table")
    for key, value in values.items():
        if key not in RULES:
            raise CheckpointError(f"{where} has no key '{key}'; there are {', '.join(RULES)}")
        accepts, wanted = RULES[key]
        if not accepts(value):
            raise CheckpointError(f"{where}: {key} must be {wanted}")
    for key, value in values.get("defaults", {}).items():
        _check_default(where, key, value)
    if "source" not in values:
        raise CheckpointError(f"{where}: source is missing")
    origin = classify(values["source"])
    assert origin is not None  # noqa: S101 - RULES has looked
    if "revision" in values and origin != "hub":
        raise CheckpointError(f"{where}: revision is for hub ids only")
    digests = values.get("sha256", {})
    return Entry(
        name, origin=origin, file=file, **{**values, "sha256": {"": digests} if _is_text(digests) else digests}
    )


def _check_default(where: str, key: str, value: Any) -> None:
    if key not in DEFAULTS:
        raise CheckpointError(f"{where}: defaults has no '{key}'; there are {', '.join(DEFAULTS)}")
    accepts, wanted = DEFAULTS[key]
    if not accepts(value):
        raise CheckpointError(f"{where}: defaults.{key} must be {wanted}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and SHA256.match(value) is not None


def _is_file(name: str) -> bool:
    return (
        not name.startswith("/") and ".." not in name.split("/") and name.endswith((".safetensors", ".json", ".txt"))
    )


def _are_digests(value: Any) -> bool:
    is_table = isinstance(value, dict) and all(_is_file(key) and _is_digest(item) for key, item in value.items())
    return is_table or _is_digest(value)


RULES = {
    "source": (
        lambda value: isinstance(value, str) and classify(value) is not None,
        "a hub id (org/name), the https address of a .safetensors file, or a path that begins with . / or ~",
    ),
    "revision": (
        lambda value: isinstance(value, str) and COMMIT.match(value),
        "the 40 hexadecimal digits of a commit",
    ),
    "sha256": (_are_digests, "64 hexadecimal digits in lower case, or a table of them by file"),
    "title": (_is_text, "text"),
    "licence": (_is_text, "text"),
    "kind": (lambda value: value in KINDS, f"one of {', '.join(KINDS)}"),
    "preset": (lambda value: isinstance(value, str) and value in PRESETS, f"one of {', '.join(PRESETS)}"),
    "defaults": (lambda value: isinstance(value, dict), "a table, as in igen.json"),
}
