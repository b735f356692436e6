"""What was pulled or verified: one JSON file a checkpoint under `.records/` in the folder of checkpoints."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = ".records"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file when it was last verified."""

    sha256: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path, sha256: str) -> FileRecord:
        """Of a file as it lies now."""
        state = path.stat()
        return cls(sha256, state.st_size, state.st_mtime_ns)

    def is_as_it_was(self, path: Path) -> bool:
        """Whether size and time of change are the recorded ones; a look, no proof."""
        try:
            state = path.stat()
        except OSError:
            return False
        return (state.st_size, state.st_mtime_ns) == (self.size, self.mtime_ns)


@dataclass(frozen=True, slots=True)
class Record:
    """A checkpoint's files, by their path below `root`; an empty root is the folder of checkpoints itself."""

    name: str
    root: str
    files: dict[str, FileRecord]
    source: str = ""
    revision: str | None = None
    kind: str = "base"
    licence: str = ""
    verified_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def base(self, folder: Path) -> Path:
        """What the files' paths are below."""
        return folder / self.root


def read_record(folder: Path, name: str) -> Record | None:
    """What is recorded of a checkpoint; None where there is nothing that can be read."""
    try:
        data = json.loads((folder / FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        files = {path: FileRecord(**values) for path, values in data.pop("files").items()}
        return Record(files=files, **data)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def write_record(folder: Path, record: Record) -> None:
    """Put a record in its place, whole or not at all."""
    path = folder / FOLDER / f"{record.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    with new.open("w", encoding="utf-8") as file:
        json.dump(asdict(record), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def record_names(folder: Path) -> list[str]:
    """Names of the checkpoints that something is recorded of."""
    return sorted(path.stem for path in (folder / FOLDER).glob("*.json"))
