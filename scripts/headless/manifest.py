"""What a folder of outputs knows of itself: the run under way, each product's state, each picture's validators.

A SQLite file, so that the process can be killed anywhere and memory does not grow with the feed. A run that was not
finished goes on where it stopped; after one that was, every picture is asked for again, on condition that it changed.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from compositor.sources import Known
from scripts.calling.working import Transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from compositor.feed.entries import FeedEntry
    from compositor.sources import SourcePicture

PAGE = 500
_SCHEMA = """
CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sources (
    url TEXT PRIMARY KEY, sha256 TEXT NOT NULL, etag TEXT, last_modified TEXT, bytes INTEGER NOT NULL,
    run INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS items (
    position INTEGER PRIMARY KEY, product_id TEXT, image_url TEXT, fields TEXT NOT NULL, state TEXT NOT NULL,
    code TEXT, reason TEXT, files TEXT NOT NULL DEFAULT '[]', reused INTEGER NOT NULL DEFAULT 0,
    unusable INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS items_product ON items (product_id, position);
CREATE INDEX IF NOT EXISTS items_state ON items (state, position);
"""
_COLUMNS = "position, product_id, image_url, fields, state, code, reason, unusable"
_DUPLICATES = """
UPDATE items SET state = 'skipped', code = 'duplicate_id', reason = 'An earlier entry has the same id.'
WHERE state = 'waiting' AND EXISTS (
    SELECT 1 FROM items AS earlier WHERE earlier.product_id = items.product_id AND earlier.position < items.position
)
"""


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of the feed: what composing it needs."""

    position: int
    product_id: str
    image_url: str
    fields: dict[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one product ended: names of its picture files, or a code and a reason."""

    position: int
    files: tuple[str, ...] = ()
    reused: bool = False
    code: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """Products by outcome; they add up to `total`."""

    composed: int = 0
    reused: int = 0
    failed: int = 0
    skipped: int = 0
    waiting: int = 0

    @property
    def total(self) -> int:
        """Entries of the feed."""
        return self.composed + self.reused + self.failed + self.skipped + self.waiting

    @property
    def done(self) -> int:
        """Entries with an outcome."""
        return self.total - self.waiting


class Manifest:
    """One folder's manifest. Every method leaves the file as it should be found after a kill."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.executescript(_SCHEMA)
        self._run = int(self._get("run") or 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def goes_on(self, inputs: str) -> bool:
        """Whether the last run had the same inputs and was interrupted after it had read the feed."""
        return self._get("inputs") == inputs and self._get("stage") == "framing"

    def take_up(self, picture_files: set[str]) -> None:
        """Go on with the interrupted run: failures are tried again, and products whose files are gone."""
        gone = [
            (position,)
            for position, files in self._database.execute("SELECT position, files FROM items WHERE files != '[]'")
            if not picture_files.issuperset(json.loads(files))
        ]
        again = "UPDATE items SET state = 'waiting', code = NULL, reason = NULL, files = '[]', reused = 0 WHERE "
        with self._transaction():
            self._database.executemany(again + "position = ?", gone)
            self._database.execute(again + "state = 'failed' AND NOT unusable")

    def begin(self, inputs: str, entries: Iterable[FeedEntry], is_partial: Callable[[], bool]) -> None:
        """Start a new run with a feed's entries; what is known of pictures stays.

        `is_partial` is asked once all entries are read. If reading fails, everything stays as it was.
        """
        insert = f"INSERT INTO items ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?)"  # noqa: S608 - a constant
        with self._transaction():
            self._database.execute("DELETE FROM items")
            self._database.executemany(insert, map(_row, entries))
            self._database.execute(_DUPLICATES)
            values = {"inputs": inputs, "stage": "framing", "run": self._run + 1, "partial": int(is_partial())}
            self._database.executemany("INSERT OR REPLACE INTO state VALUES (?,?)", values.items())
        self._run += 1

    @property
    def partial(self) -> bool:
        """Whether the feed was damaged and was read as well as it can be."""
        return self._get("partial") == "1"

    def waiting(self) -> Iterator[Item]:
        """Products without an outcome, in the feed's order; safe against changes on the way."""
        query = "SELECT position, product_id, image_url, fields FROM items WHERE state = 'waiting' AND position > ?"
        last = -1
        while rows := self._database.execute(f"{query} ORDER BY position LIMIT {PAGE}", (last,)).fetchall():
            for position, product_id, url, fields in rows:
                yield Item(position, product_id, url, json.loads(fields))
            last = rows[-1][0]

    def settle(self, outcome: Outcome) -> None:
        """Write down how a product ended."""
        state = "failed" if outcome.code else "completed"
        self._database.execute(
            "UPDATE items SET state = ?, code = ?, reason = ?, files = ?, reused = ? WHERE position = ?",
            (state, outcome.code, outcome.reason, json.dumps(outcome.files), outcome.reused, outcome.position),
        )

    def known(self, url: str) -> tuple[Known | None, bool]:
        """What is known of a picture's address, and whether this run learned it."""
        query = "SELECT sha256, etag, last_modified, bytes, run FROM sources WHERE url = ?"
        row = self._database.execute(query, (url,)).fetchone()
        return (None, False) if row is None else (Known(*row[:4]), row[4] == self._run)

    def remember(self, url: str, picture: SourcePicture) -> None:
        """Keep what a fetch told of a picture."""
        row = (url, picture.sha256, picture.etag, picture.last_modified, picture.bytes, self._run)
        self._database.execute("INSERT OR REPLACE INTO sources VALUES (?,?,?,?,?,?)", row)

    def counts(self) -> Counts:
        """How many products ended how."""
        query = "SELECT CASE WHEN reused THEN 'reused' ELSE state END, COUNT(*) FROM items GROUP BY 1"
        found = dict(self._database.execute(query).fetchall())
        return Counts(*(found.get(name, 0) for name in ("completed", "reused", "failed", "skipped", "waiting")))

    def files(self, position: int) -> list[str]:
        """Names of one product's picture files; none when it has no outcome or failed."""
        row = self._database.execute("SELECT files FROM items WHERE position = ?", (position,)).fetchone()
        return list(json.loads(row[0])) if row else []

    def unframed(self) -> Iterator[tuple[int, str | None, str | None, str, str, str]]:
        """Position, id, picture's address, state, code and reason of failed and skipped products, in order."""
        query = "SELECT position, product_id, image_url, state, code, reason FROM items WHERE code IS NOT NULL"
        yield from self._database.execute(f"{query} ORDER BY position")

    def reasons(self) -> list[tuple[int, str, str]]:
        """How many products failed, with which code and for which reason; the commonest first."""
        query = (
            "SELECT COUNT(*), code, reason FROM items WHERE state = 'failed' "
            "GROUP BY code, reason ORDER BY COUNT(*) DESC, code, reason"
        )
        return list(self._database.execute(query))

    def framed(self) -> Iterator[tuple[int, str, str, list[str]]]:
        """Position, id, picture's address and names of the picture files of completed products, in order."""
        query = "SELECT position, product_id, image_url, files FROM items WHERE state = 'completed' ORDER BY position"
        for position, product_id, url, files in self._database.execute(query):
            yield position, product_id, url, json.loads(files)

    def finish(self) -> None:
        """The run is over; the next one starts anew."""
        self._database.execute("UPDATE state SET value = 'finished' WHERE name = 'stage'")

    def _transaction(self) -> Transaction:
        return Transaction(self._database)

    def _get(self, name: str) -> str | None:
        row = self._database.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])


def _row(entry: FeedEntry) -> tuple[object, ...]:
    state = "failed" if entry.code else "waiting"
    fields = json.dumps(entry.fields, ensure_ascii=False)
    return (
        entry.position,
        entry.product_id,
        entry.image_url,
        fields,
        state,
        entry.code,
        entry.reason,
        bool(entry.code),
    )
