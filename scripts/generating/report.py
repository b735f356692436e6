"""What a run leaves beside the pictures: tables for people and for programs."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING

from compositor.feed.writer import inert
from scripts.calling.folder import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from scripts.generating.manifest import Manifest

PICTURES = ("row", "number", "file", "prompt", "generation_id", "seed")
FAILURES = ("row", "number", "prompt", "generation_id", "code", "reason")


def write_reports(manifest: Manifest, folder: Path) -> list[Path]:
    """`pictures.csv`, `failures.csv` and `failures.json`; the failures' are there, and empty, without any.

    Raises:
        OSError: a file cannot be written.

    """
    failures = list(manifest.failures())
    as_json = [dict(zip(FAILURES, row, strict=True)) for row in failures]
    written = {
        folder / "pictures.csv": _table(PICTURES, manifest.pictures()),
        folder / "failures.csv": _table(FAILURES, failures),
        folder / "failures.json": json.dumps(as_json, ensure_ascii=False, indent=1).encode() + b"\n",
    }
    for path, data in written.items():
        write_whole(path, data)
    return list(written)


def _table(header: Sequence[str], rows: Iterable[tuple[object, ...]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows([inert(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return text.getvalue().encode()
