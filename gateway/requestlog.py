"""The request log: a record for each request, written to the database in batches by one task.

A request waits only when the queue is full. What a killed process had not yet written (at most `FLUSH_S` of it) is
still in the structured log, as is every record that the database would not take.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, or_, update
from sqlalchemy.exc import SQLAlchemyError

from gateway.redact import redact, redact_text
from models.db import DatabaseError, utc_now
from models.logs import get_logger
from models.tables import ApiKey, RequestLog

if TYPE_CHECKING:
    from datetime import datetime

    from starlette.types import Scope

    from gateway.metrics import Metrics
    from models.db import Database

FLUSH_S = 0.05
BATCH = 200
QUEUE = 2000
FULL_WAIT_S = 5.0
RETRY_S = 1.0
STOP_S = 5.0
USED_EVERY_S = 60
"""How fine `last_used_at` of a key is."""

log = get_logger(__name__)


@dataclass(slots=True)
class RequestRecord:
    """What is known of one request; handlers fill it in as they learn more."""

    request_id: str
    method: str
    path: str
    query: str
    client: str
    at: datetime = field(default_factory=utc_now)
    began: float = field(default_factory=time.perf_counter)
    status: int = 0
    duration_ms: float = 0.0
    owner_id: str | None = None
    key_id: str | None = None
    generation_id: str | None = None
    error_code: str | None = None
    request_body: Any = None
    response_body: Any = None

    @classmethod
    def of(cls, scope: Scope, request_id: str) -> RequestRecord:
        """The record of a request that has just come in."""
        client = scope.get("client")
        return cls(
            request_id=request_id,
            method=redact_text(scope.get("method", "WEBSOCKET"), 16)[:16],
            path=redact_text(scope["path"], 400),
            query=redact_text(_plain_query(scope), 400),
            client=str(client[0])[:64] if client else "",
        )

    def line(self) -> dict[str, Any]:
        """The record's facts, without bodies."""
        names = ("method", "path", "status", "duration_ms", "owner_id", "key_id", "generation_id", "error_code")
        return {name: value for name in names if (value := getattr(self, name)) is not None} | {"client": self.client}

    def row(self) -> dict[str, Any]:
        """The record as the database keeps it."""
        return {
            **self.line(),
            "owner_id": self.owner_id,
            "key_id": self.key_id,
            "generation_id": self.generation_id,
            "error_code": self.error_code,
            "at": self.at,
            "request_id": self.request_id,
            "query": self.query,
            "request_body": _document(self.request_body),
            "response_body": _document(self.response_body),
        }


def record_of(scope: Scope) -> RequestRecord:
    """The record that the middleware attached to a request."""
    record: RequestRecord = scope["igen.record"]
    return record


class RequestLogWriter:
    """One task that empties a bounded queue into `request_log`."""

    def __init__(self, db: Database, metrics: Metrics) -> None:
        self._db = db
        self._metrics = metrics
        self._queue: asyncio.Queue[RequestRecord] = asyncio.Queue(QUEUE)
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start writing."""
        self._task = asyncio.create_task(self._work(), name="request-log")

    async def put(self, record: RequestRecord) -> None:
        """Queue a record. Waits while the queue is full; after `FULL_WAIT_S` the record goes to the log alone."""
        try:
            async with asyncio.timeout(FULL_WAIT_S):
                await self._queue.put(record)
        except TimeoutError:
            self._lose([record], "the queue is full")
        self._metrics.log_waiting.set(self._queue.qsize())

    async def stop(self) -> None:
        """Write what is queued, within `STOP_S`, and end."""
        if self._task is None:
            return
        try:
            async with asyncio.timeout(STOP_S):
                await self._queue.join()
        except TimeoutError:
            self._lose([self._queue.get_nowait() for _ in range(self._queue.qsize())], "stopping")
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            batch = [await self._queue.get()]
            await asyncio.sleep(FLUSH_S)
            while len(batch) < BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            await self._flush(batch)
            for _ in batch:
                self._queue.task_done()
            self._metrics.log_waiting.set(self._queue.qsize())

    async def _flush(self, batch: list[RequestRecord]) -> None:
        while True:
            try:
                return await self._write(batch)
            except DatabaseError:
                await asyncio.sleep(RETRY_S)
            except Exception:  # the edge of the writer's task: one bad record must not end the log
                log.exception("request_log_batch_refused", count=len(batch))
                return await self._one_by_one(batch)

    async def _one_by_one(self, batch: list[RequestRecord]) -> None:
        for record in batch:
            try:
                await self._write([record])
            except (SQLAlchemyError, DatabaseError, ValueError, TypeError) as problem:
                self._lose([record], type(problem).__name__)

    async def _write(self, batch: list[RequestRecord]) -> None:
        rows = [record.row() for record in batch]  # redacted before the write lock is taken
        async with self._db.write() as session:
            await session.execute(insert(RequestLog), rows)
            for key_id, at in {record.key_id: record.at for record in batch if record.key_id}.items():
                stale = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < _before(at))
                await session.execute(update(ApiKey).where(ApiKey.id == key_id, stale).values(last_used_at=at))

    def _lose(self, records: list[RequestRecord], reason: str) -> None:
        self._metrics.log_lost.inc(len(records))
        for record in records:
            log.error("request_log_lost", reason=reason, **record.line())


def _document(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    safe = redact(value)
    return safe if isinstance(safe, dict) else {"body": safe}


def _before(at: datetime) -> datetime:
    return at - timedelta(seconds=USED_EVERY_S)


def _plain_query(scope: Scope) -> str:
    return bytes(scope.get("query_string", b"")).decode("latin-1")
