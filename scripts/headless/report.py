"""What a run leaves beside the pictures: the feed that points to them, and two tables for people."""

from __future__ import annotations

import csv
from contextlib import contextmanager
from typing import TYPE_CHECKING

from compositor.feed.writer import feed_as_csv, inert, rewrite_feed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from compositor.feed.edit import Mode
    from scripts.headless.manifest import Manifest

FAILURES = "failures.csv"
PICTURES = "pictures.csv"


def write_failures(manifest: Manifest, folder: Path) -> Path:
    """Each product without a picture, with its code and reason; only a header when there is none."""
    header = ("position", "id", "image_link", "state", "code", "reason")
    return _write_table(folder / FAILURES, header, manifest.unframed())


def write_pictures(manifest: Manifest, folder: Path, sizes: list[str]) -> Path:
    """Each product's picture files, a column for each size."""
    header = ("position", "id", "image_link", *sizes)
    rows = ((position, product_id, url, *files) for position, product_id, url, files in manifest.framed())
    return _write_table(folder / PICTURES, header, rows)


def write_feeds(manifest: Manifest, source: Path, folder: Path, *, base: str, mode: Mode) -> list[Path]:
    """The feed as XML and as CSV with links to the pictures, which lie under `base`; other products are kept as is.

    Raises:
        FeedError: the feed can no longer be read.

    """

    def links(position: int) -> list[str] | None:
        return [base + name for name in manifest.files(position)] or None

    xml, table = folder / "feed.xml", folder / "feed.csv"
    rewrite_feed(source, xml, links, mode)
    feed_as_csv(source, table, links, mode)
    return [xml, table]


def _write_table(target: Path, header: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> Path:
    with _whole(target) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([inert(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return target


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A file that takes its name only when it is whole."""
    part = target.with_name(f".{target.name}.part")
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
