"""What a folder of pictures knows of itself: each request, its key, and what became of it.

A request's Idempotency-Key is on the disk before the request leaves, so that a process killed anywhere sends it again
under the same key, and the gateway answers with the picture that was drawn. A SQLite file whose every commit is
synced.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Self

from scripts.calling.working import Transaction

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from scripts.generating.prompts import Prompt

PAGE = 200
_SCHEMA = """
CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY, request TEXT NOT NULL, occurrence INTEGER NOT NULL, input TEXT NOT NULL,
    key TEXT NOT NULL UNIQUE, state TEXT NOT NULL, position INTEGER, generation_id TEXT,
    files TEXT NOT NULL DEFAULT '[]', seeds TEXT NOT NULL DEFAULT '[]', code TEXT, reason TEXT,
    UNIQUE (request, occurrence)
);
CREATE INDEX IF NOT EXISTS jobs_state ON jobs (state, position);
"""
_ADD = """
INSERT INTO jobs (request, occurrence, input, key, state, position) VALUES (?, ?, ?, ?, 'waiting', ?)
ON CONFLICT (request, occurrence) DO UPDATE SET position = excluded.position
"""


@dataclass(frozen=True, slots=True)
class Job:
    """One request. `number` stays whatever happens to the file of prompts, and names the picture's file."""

    number: int
    input: dict[str, Any]
    key: str


@dataclass(frozen=True, slots=True)
class Ended:
    """How a request ended: names of its files and their seeds, or a code and a reason."""

    number: int
    generation_id: str | None = None
    files: tuple[str, ...] = ()
    seeds: tuple[int | None, ...] = ()
    code: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests by state."""

    done: int
    failed: int
    open: int

    @property
    def total(self) -> int:
        """All of this file's."""
        return self.done + self.failed + self.open


class Manifest:
    """One folder's manifest. Every method leaves the file as it should be found after a kill."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.executescript(_SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def list_prompts(self, prompts: Iterable[Prompt]) -> None:
        """Take a whole file's requests in. One that is known (the same fields, as often) keeps its key and its end;
        one that the file has no longer is left out of everything that follows. If reading fails, nothing changed.
        """
        seen: Counter[str] = Counter()
        with self._transaction():
            self._database.execute("UPDATE jobs SET position = NULL")
            for prompt in prompts:
                request = _request(prompt)
                self._add(prompt, request, seen[request])
                seen[request] += 1

    def list_one(self, prompt: Prompt) -> None:
        """Take one request in: goes on with the same one where it has not ended, else it is a new one."""
        request = _request(prompt)
        with self._transaction():
            self._database.execute("UPDATE jobs SET position = NULL")
            query = "SELECT COUNT(*) FROM jobs WHERE request = ? AND state IN ('done', 'failed')"
            ((ended,),) = self._database.execute(query, (request,)).fetchall()
            self._add(prompt, request, ended)

    def take_up(self, there: set[str]) -> int:
        """Requests whose files are gone wait again, under their old keys; how many."""
        query = "SELECT number, files FROM jobs WHERE state = 'done' AND position IS NOT NULL"
        gone = [
            (number,) for number, files in self._database.execute(query) if not there.issuperset(json.loads(files))
        ]
        with self._transaction():
            self._database.executemany("UPDATE jobs SET state = 'sent' WHERE number = ?", gone)
        return len(gone)

    def retry_failed(self) -> int:
        """Failed requests wait again under new keys, since their old ones stand for the failure; how many."""
        query = "SELECT number FROM jobs WHERE state = 'failed' AND position IS NOT NULL"
        with self._transaction():
            failed = [(_new_key(), number) for (number,) in self._database.execute(query).fetchall()]
            self._database.executemany(
                "UPDATE jobs SET state = 'waiting', key = ?, code = NULL, reason = NULL WHERE number = ?", failed
            )
        return len(failed)

    def sent_elsewhere(self, identity: str) -> int:
        """How many requests without an end were sent to another gateway or under another key."""
        if self._get("identity") in (None, identity):
            return 0
        query = "SELECT COUNT(*) FROM jobs WHERE state = 'sent' AND position IS NOT NULL"
        return int(self._database.execute(query).fetchone()[0])

    def keep_identity(self, identity: str) -> None:
        """Say to which gateway requests go from now on."""
        self._database.execute("INSERT OR REPLACE INTO state VALUES ('identity', ?)", (identity,))

    def open_jobs(self) -> Iterator[Job]:
        """Requests without an end, those that were sent first, then in the file's order; safe against changes."""
        for state in ("sent", "waiting"):
            query = f"SELECT number, input, key, position FROM jobs WHERE state = '{state}' AND position > ?"  # noqa: S608 - constants
            last = 0
            while rows := self._database.execute(f"{query} ORDER BY position LIMIT {PAGE}", (last,)).fetchall():
                for number, text, key, _ in rows:
                    yield Job(number, json.loads(text), key)
                last = rows[-1][3]

    def mark_sent(self, number: int) -> None:
        """To be called, and so be on the disk, before the request leaves."""
        self._database.execute("UPDATE jobs SET state = 'sent' WHERE number = ?", (number,))

    def settle(self, ended: Ended) -> None:
        """Write down how a request ended; its files are on the disk."""
        self._database.execute(
            "UPDATE jobs SET state = ?, generation_id = ?, files = ?, seeds = ?, code = ?, reason = ? "
            "WHERE number = ?",
            (
                "failed" if ended.code else "done",
                ended.generation_id,
                json.dumps(ended.files),
                json.dumps(ended.seeds),
                ended.code,
                ended.reason,
                ended.number,
            ),
        )

    def counts(self) -> Counts:
        """How many of this file's requests are in which state."""
        query = "SELECT state, COUNT(*) FROM jobs WHERE position IS NOT NULL GROUP BY state"
        found = dict(self._database.execute(query).fetchall())
        return Counts(found.get("done", 0), found.get("failed", 0), found.get("sent", 0) + found.get("waiting", 0))

    def failures(self) -> Iterator[tuple[int, int, str, str | None, str, str]]:
        """Row, number, prompt, generation, code and reason of each failed request, in the file's order."""
        query = (
            "SELECT position, number, json_extract(input, '$.prompt'), generation_id, code, reason FROM jobs "
            "WHERE state = 'failed' AND position IS NOT NULL ORDER BY position"
        )
        yield from self._database.execute(query)

    def pictures(self) -> Iterator[tuple[int, int, str, str, str, int | None]]:
        """Row, number, file, prompt, generation and seed of each picture, in the file's order."""
        query = (
            "SELECT position, number, json_extract(input, '$.prompt'), generation_id, files, seeds FROM jobs "
            "WHERE state = 'done' AND position IS NOT NULL ORDER BY position"
        )
        for position, number, prompt, generation, files, seeds in self._database.execute(query):
            for name, seed in zip(json.loads(files), json.loads(seeds), strict=True):
                yield position, number, name, prompt, generation, seed

    def _add(self, prompt: Prompt, request: str, occurrence: int) -> None:
        row = (request, occurrence, prompt.canonical, _new_key(), prompt.position)
        self._database.execute(_ADD, row)

    def _transaction(self) -> Transaction:
        return Transaction(self._database)

    def _get(self, name: str) -> str | None:
        row = self._database.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])


def _request(prompt: Prompt) -> str:
    return sha256(prompt.canonical.encode()).hexdigest()


def _new_key() -> str:
    return f"generate-{secrets.token_hex(16)}"
