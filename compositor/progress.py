"""Progress of a frame's run: the numbers come from rows, Redis carries them to whoever watches.

Messages on `igen:frame:<id>` have `seq`, a pair of an epoch and a counter. The epoch is new when Redis has lost its
memory; a watcher then takes a snapshot again.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import select

from compositor.chunkrows import RUN_STANDING
from compositor.runs import FINISHED, read_counts
from models.db import utc_now
from models.logs import get_logger
from models.tables import Run, RunState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.engine import Connection

    from compositor.runs import Counts
    from models.db import Database

LEAST_INTERVAL_MS = 200
"""Five messages a second and run, whatever the number of workers."""
KEPT_S = 7 * 86_400
REDIS_TIMEOUT_S = 1.0
SILENT_AFTER_FAULT_S = 5.0
POLL_S = 1.0

log = get_logger(__name__)


def channel(frame_id: int) -> str:
    """The channel of a frame's messages."""
    return f"igen:frame:{frame_id}"


def connect(redis_url: str) -> Redis:
    """An asyncio client that waits for no answer longer than a second."""
    return Redis.from_url(redis_url, socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S)


class Reporter:
    """Publishes the progress of runs. Without Redis it says nothing, and work goes on."""

    def __init__(self, db: Database, redis: Redis) -> None:
        self._db = db
        self._redis = redis
        self._silent_until = 0.0
        self._not_due_until: dict[int, float] = {}

    async def report(self, frame_id: int, run_id: int, product_id: str | None, *, force: bool = False) -> None:
        """Publish where a run stands, unless that was done within the last fifth of a second; `force`: anyway."""
        if time.monotonic() < self._silent_until:
            return
        try:
            if not await self._due(run_id) and not force:
                return
            message = await describe(self._db, run_id)
            if message is not None:
                message |= {"product_id": product_id, "seq": await _next_seq(self._redis, frame_id)}
                await self._redis.publish(channel(frame_id), json.dumps(message))
        except RedisError as problem:
            self._silent_until = time.monotonic() + SILENT_AFTER_FAULT_S
            log.warning("progress_not_published", reason=str(problem) or type(problem).__name__)

    async def _due(self, run_id: int) -> bool:
        """Whether nobody has published within the interval; a process asks no oftener than that itself."""
        now = time.monotonic()
        if now < self._not_due_until.get(run_id, 0):
            return False
        self._not_due_until[run_id] = now + LEAST_INTERVAL_MS / 1000
        return bool(await self._redis.set(f"igen:tick:{run_id}", 1, px=LEAST_INTERVAL_MS, nx=True))


async def snapshot(db: Database, frame_id: int, redis: Redis | None = None) -> dict[str, Any]:
    """Where a frame's latest run stands; `state` is `idle` when it never had one.

    `seq` is that of the last message published, when `redis` is given and answers; None otherwise.
    """
    seq = None if redis is None else await _last_seq(redis, frame_id)
    async with db.read() as session:
        run_id = await session.scalar(select(Run.id).where(Run.frame_id == frame_id).order_by(Run.id.desc()).limit(1))
    message = None if run_id is None else await describe(db, run_id)
    return {**(message or _idle()), "product_id": None, "seq": seq}


async def describe(db: Database, run_id: int) -> dict[str, Any] | None:
    """A run's numbers, without `seq` and `product_id`; None when there is no such run.

    `rate` is in products a second since the run began, `eta` in seconds, None while nothing can be said.
    """

    def look(connection: Connection) -> dict[str, Any] | None:
        run = connection.execute(RUN_STANDING, {"of_run": run_id}).first()
        return None if run is None else _message(run, read_counts(connection, [run_id])[run_id])

    return await db.read_at_once(look)


async def subscribe(redis: Redis, frame_id: int) -> AsyncIterator[dict[str, Any]]:
    """A frame's messages from now on, for ever. RedisError when the connection ends."""
    async with redis.pubsub(ignore_subscribe_messages=True) as listening:
        await listening.subscribe(channel(frame_id))
        while True:
            found = await listening.get_message(timeout=POLL_S)
            if found is not None:
                yield json.loads(found["data"])


async def follow(db: Database, redis: Redis | None, frame_id: int) -> AsyncIterator[dict[str, Any]]:
    """A snapshot, then every change, for ever: what a WebSocket or an event stream sends.

    It listens before it looks, so nothing falls between; messages older than the snapshot are left out; a new epoch
    or a fault of Redis brings a snapshot again, and without Redis the rows are looked at every second.
    """
    last: dict[str, Any] | None = None
    while True:
        try:
            if redis is None:
                raise RedisError("there is none")  # noqa: TRY301 - the same way on as for one that is gone
            async for message in _followed(db, redis, frame_id):
                last = message
                yield message
        except RedisError:
            now = await snapshot(db, frame_id)
            if last is None or {**now, "seq": 0, "rate": 0, "eta": 0} != {**last, "seq": 0, "rate": 0, "eta": 0}:
                last = now
                yield now
            await asyncio.sleep(POLL_S)


async def _followed(db: Database, redis: Redis, frame_id: int) -> AsyncIterator[dict[str, Any]]:
    async with redis.pubsub(ignore_subscribe_messages=True) as listening:
        await listening.subscribe(channel(frame_id))
        await listening.get_message(timeout=POLL_S)  # Redis's word that it listens, which comes out as None
        current = await snapshot(db, frame_id, redis)
        yield current
        while True:
            found = await listening.get_message(timeout=POLL_S)
            if found is None:
                fresh = await snapshot(db, frame_id, redis)
                if fresh["seq"] != current["seq"] or fresh["state"] != current["state"]:  # a message was lost
                    current = fresh
                    yield current
                continue
            message = json.loads(found["data"])
            if _epoch(message) != _epoch(current):
                current = {**await snapshot(db, frame_id, redis), "product_id": message["product_id"]}
                yield current
            elif message["seq"][1] > (current["seq"] or [0, 0])[1] and not is_stale(message, current):
                current = message
                yield current


def is_stale(message: dict[str, Any], last: dict[str, Any]) -> bool:
    """Whether a message's numbers are older than those of one that came before it.

    Two workers may read the rows in one order and get their `seq` in the other. Within a run numbers only grow, but
    when it has ended and is tried again.
    """
    if message.get("run_id") != last.get("run_id") or last.get("state") in FINISHED:
        return False
    return bool(message.get("processed", 0) < last.get("processed", 0))


def _epoch(message: dict[str, Any]) -> int | None:
    return message["seq"][0] if message["seq"] else None


async def _next_seq(redis: Redis, frame_id: int) -> list[int]:
    key = f"igen:seq:{frame_id}"
    async with redis.pipeline(transaction=True) as together:
        together.hsetnx(key, "epoch", str(time.time_ns() // 1_000_000))
        together.hincrby(key, "n", 1)
        together.hget(key, "epoch")
        together.expire(key, KEPT_S)
        _, number, epoch, _ = await together.execute()
    return [int(epoch), int(number)]


async def _last_seq(redis: Redis, frame_id: int) -> list[int] | None:
    try:
        epoch, number = await redis.hmget(f"igen:seq:{frame_id}", ["epoch", "n"])
    except RedisError:
        return None
    return None if epoch is None or number is None else [int(epoch), int(number)]


def _message(run: Any, found: Counts) -> dict[str, Any]:
    total = found.total if run.total is None else run.total
    rate, eta = _pace(run, found, total)
    return {
        "run_id": run.id,
        "state": run.state,
        "processed": found.processed,
        "total": total,
        "completed": found.completed,
        "failed": found.failed,
        "skipped": found.skipped,
        "reused": found.reused,
        "rate": rate,
        "eta": eta,
        "error": run.error_code,
    }


def _pace(run: Any, found: Counts, total: int) -> tuple[float | None, float | None]:
    if run.started_at is None:
        return None, None
    seconds = ((run.finished_at or utc_now()) - run.started_at).total_seconds()
    done = found.completed + found.failed
    if done == 0 or seconds <= 0:
        return None, None
    rate = done / seconds
    over = RunState(run.state).terminal
    return round(rate, 2), 0.0 if over else round((total - found.processed) / rate, 1)


def _idle() -> dict[str, Any]:
    numbers = dict.fromkeys(("processed", "total", "completed", "failed", "skipped", "reused"), 0)
    return {"run_id": None, "state": "idle", **numbers, "rate": None, "eta": None, "error": None}
