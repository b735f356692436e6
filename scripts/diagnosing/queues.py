"""Redis: does it answer, does it keep what it is told through a restart and a full memory, do workers listen."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from redis.exceptions import AuthenticationError, RedisError
from rq import Worker
from rq.serializers import JSONSerializer

from compositor.queue import COMPOSE, connect
from compositor.worker import WORKER_TTL_S
from scripts.diagnosing.finding import clock, fault, good, program, skipped, warning

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from redis import Redis

    from scripts.diagnosing.finding import Finding

PART = "redis"
OWN_SOCKET = "redis/redis.sock"
NEARLY_FULL = 0.9


def redis_address(configured: str | None, home: Path) -> str | None:
    """The configured Redis, else the one that scripts/up runs for this home; None where there is neither."""
    own = home.absolute() / OWN_SOCKET
    return configured or (f"unix://{own}?db=0" if own.exists() else None)


def check_redis(address: str | None, *, runs: bool) -> Iterator[Finding]:
    """One finding after the other, as far as it goes."""
    if address is None:
        if runs:
            mend = "set IGEN_REDIS_URL for gateway, workers and reconciler; generation works without"
            yield fault(PART, "IGEN_REDIS_URL is not set: no feed can be framed", mend)
        else:
            yield skipped(PART, "IGEN_REDIS_URL is not set: scripts/up starts one of its own")
        return
    connection = connect(address)
    try:
        yield from _looked_at(connection, runs=runs)
    except AuthenticationError as problem:
        yield fault(PART, f"it refuses the password: {problem}", "correct user and password in IGEN_REDIS_URL")
    except (RedisError, ValueError, OSError) as problem:
        mend = "see that Redis runs and that IGEN_REDIS_URL is its address as this machine reaches it"
        yield fault(PART, f"it does not answer: {problem}", mend)
    finally:
        connection.close()


def _looked_at(connection: Redis, *, runs: bool) -> Iterator[Finding]:
    began = time.time()
    seconds, micros = connection.time()
    persistence: dict[str, Any] = connection.info("persistence")
    memory: dict[str, Any] = connection.info("memory")
    yield good(PART, "it answers")
    yield from _check_persistence(persistence)
    yield from _check_memory(memory)
    yield clock("redis's clock", seconds + micros / 1e6 - (began + time.time()) / 2)
    yield _check_workers(connection, runs=runs)


def _check_persistence(told: dict[str, Any]) -> Iterator[Finding]:
    if not int(told.get("aof_enabled", 0)):
        mend = "set `appendonly yes` in redis.conf (CONFIG SET appendonly yes, then CONFIG REWRITE)"
        said = "it keeps no append-only file: a restart forgets queues and progress until the reconciler finds them"
        yield fault(PART, said, mend)
    elif told.get("aof_last_write_status", "ok") != "ok":
        yield fault(PART, "its last write to the append-only file failed", "see Redis's log: is its disk full?")
    else:
        yield good(PART, "it keeps an append-only file")


def _check_memory(told: dict[str, Any]) -> Iterator[Finding]:
    policy = str(told.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        mend = "set `maxmemory-policy noeviction` in redis.conf (CONFIG SET maxmemory-policy noeviction)"
        yield fault(PART, f"its policy is {policy}: with its memory full it drops jobs without a word", mend)
    else:
        yield good(PART, "it evicts nothing")
    most = int(told.get("maxmemory", 0))
    if most and int(told["used_memory"]) > NEARLY_FULL * most:
        used = int(told["used_memory"]) / 2**20
        yield warning(PART, f"its memory is nearly full: {used:.0f} of {most / 2**20:.0f} MiB", "raise `maxmemory`")


def _check_workers(connection: Redis, *, runs: bool) -> Finding:
    alive, silent = 0, 0
    for worker in Worker.all(connection=connection, serializer=JSONSerializer):
        if COMPOSE not in worker.queue_names():
            continue
        beat = worker.last_heartbeat
        age = None if beat is None else (datetime.now(UTC) - beat.replace(tzinfo=beat.tzinfo or UTC)).total_seconds()
        alive, silent = (alive + 1, silent) if age is not None and age < 2 * WORKER_TTL_S else (alive, silent + 1)
    told = f"{alive} alive" + (f", {silent} silent for minutes" if silent else "")
    if alive:
        return good("workers", told)
    if not runs:
        return skipped("workers", "none; nothing of IGen runs here")
    mend = f"start `{program('compositor worker')}`, one for each core to give"
    return fault("workers", f"{told}: feeds wait", mend)
