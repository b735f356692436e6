"""The queues. Jobs carry ids alone, as JSON; a job that is lost or comes twice changes nothing, since rows decide."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue
from rq.serializers import JSONSerializer
from rq.worker_registration import REDIS_WORKER_KEYS

from models.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

LIGHT, INGEST, COMPOSE = "igen-light", "igen-ingest", "igen-compose"
QUEUES = (LIGHT, INGEST, COMPOSE)
"""In the order in which workers look: a run that is about to end, one that is about to begin, then the many."""

JOB_TIMEOUT_S = {INGEST: 3600, LIGHT: 1800, COMPOSE: 900}
REDIS_TIMEOUT_S = 2.0
FAILED_KEPT_S = 3600
MOST_TICKETS = 64

log = get_logger(__name__)


def connect(redis_url: str, *, timeout_s: float = REDIS_TIMEOUT_S) -> Redis:
    """A client whose every command ends within `timeout_s`."""
    return Redis.from_url(redis_url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)


async def enqueue_ingest(redis_url: str, run_id: int) -> bool:
    """Ask for a run's feed to be read. False: Redis does not answer; the reconciler asks again from the rows."""
    return await _enqueue(redis_url, lambda queues: queues.ingest(run_id))


async def enqueue_compose(redis_url: str, run_id: int, claimable: int) -> bool:
    """Ask for a run's waiting chunks to be worked on; see `enqueue_ingest`."""
    return await _enqueue(redis_url, lambda queues: queues.compose(run_id, claimable))


async def enqueue_publish(redis_url: str, run_id: int) -> bool:
    """Ask for a run's end; see `enqueue_ingest`."""
    return await _enqueue(redis_url, lambda queues: queues.publish(run_id))


async def enqueue_webhook(redis_url: str, run_id: int) -> bool:
    """Ask for the word of a run's end to be sent; see `enqueue_ingest`."""
    return await _enqueue(redis_url, lambda queues: queues.webhook(run_id))


class Queues:
    """What can be asked of workers. Every method may raise RedisError."""

    def __init__(self, connection: Redis) -> None:
        self.connection = connection
        self._queues = {name: Queue(name, connection=connection, serializer=JSONSerializer) for name in QUEUES}

    def ingest(self, run_id: int) -> None:
        """Read a run's feed."""
        self._put(INGEST, "ingest", run_id)

    def publish(self, run_id: int) -> None:
        """End a run."""
        self._put(LIGHT, "publish", run_id)

    def webhook(self, run_id: int) -> None:
        """Tell of a run's end."""
        self._put(LIGHT, "webhook", run_id)

    def again(self, kind: str, run_id: int) -> None:
        """Ask once more for a job of one of the four kinds; others are not known."""
        asks = {"ingest": self.ingest, "publish": self.publish, "webhook": self.webhook}
        if kind == "compose":
            self.compose(run_id, 1)
        elif kind in asks:
            asks[kind](run_id)

    def compose(self, run_id: int, claimable: int) -> None:
        """Let workers work on a run of which `claimable` chunks wait: as many tickets as there are workers at most.

        A ticket names no chunk: its worker takes one after the other for a few seconds, so that runs take turns in
        the queue and the queue stays short however long the feed.
        """
        wanted = min(claimable, max(1, self.workers()), MOST_TICKETS)
        for _ in range(wanted - self.asked().get(("compose", run_id), 0)):
            self._put(COMPOSE, "compose", run_id)

    def workers(self) -> int:
        """How many workers have said that they live."""
        return int(self.connection.scard(REDIS_WORKER_KEYS))

    def asked(self) -> dict[tuple[str, int], int]:
        """How many jobs of each kind and run are in the queues."""
        found: dict[tuple[str, int], int] = {}
        for queue in self._queues.values():
            for job_id in queue.get_job_ids():
                kind, _, rest = job_id.partition("-")
                run_id = rest.partition("-")[0]
                if run_id.isdigit():
                    key = kind, int(run_id)
                    found[key] = found.get(key, 0) + 1
        return found

    def _put(self, queue: str, kind: str, run_id: int) -> None:
        self._queues[queue].enqueue_call(
            f"compositor.jobs.{kind}",
            args=(run_id,),
            timeout=JOB_TIMEOUT_S[queue],
            result_ttl=0,
            failure_ttl=FAILED_KEPT_S,
            description=f"{kind} run {run_id}",
            job_id=f"{kind}-{run_id}-{secrets.token_hex(6)}",
        )


async def _enqueue(redis_url: str, ask: Callable[[Queues], None]) -> bool:
    return await asyncio.to_thread(_enqueue_all, redis_url, [ask])


def _enqueue_all(redis_url: str, asks: Iterable[Callable[[Queues], None]]) -> bool:
    connection = connect(redis_url)
    try:
        queues = Queues(connection)
        for ask in asks:
            ask(queues)
    except RedisError as problem:
        log.warning("enqueue_failed", reason=str(problem) or type(problem).__name__)
        return False
    finally:
        connection.close()
    return True
