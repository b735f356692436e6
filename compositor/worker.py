"""One worker: RQ's forking worker, with its imports loaded and its composing process started before it forks."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from typing import TYPE_CHECKING, Any

from PIL import features
from redis.exceptions import RedisError
from rq import Worker
from rq.serializers import JSONSerializer

from compositor import jobs
from compositor.chunks import Chunks
from compositor.compose.process import ComposeProcess
from compositor.kit import socket_folder, sweep_work_folder
from compositor.queue import QUEUES, Queues, connect
from compositor.ready import write_ready
from compositor.runlease import RunLeases, process_name
from models.db import Database, DatabaseError
from models.logs import get_logger

if TYPE_CHECKING:
    from pathlib import Path

    from compositor.settings import CompositorSettings

WORKER_TTL_S = 60
MONITOR_S = 10
REDIS_PAUSE_S = 1.0

log = get_logger(__name__)


class CompositorWorker(Worker):
    """RQ's worker, which also gives back at once what a killed job held, and ends a job early when it is to stop."""

    max_connection_wait_time = 5.0
    log_result_lifespan = False
    asked_to_stop = False
    settings: CompositorSettings

    def request_stop(self, signum: Any, frame: Any) -> None:
        """SIGTERM or Ctrl-C: stop after the chunk in hand."""
        self.asked_to_stop = True
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]

    def handle_warm_shutdown_request(self) -> None:
        """Tell the job under way that it is enough."""
        if self.horse_pid:
            try:
                os.kill(self.horse_pid, jobs.ENOUGH)
            except ProcessLookupError:
                log.info("job_has_ended", pid=self.horse_pid)

    def handle_work_horse_killed(self, job: Any, retpid: Any, ret_val: Any, rusage: Any) -> None:
        """A job's process died: what it held is free again now, not when its lease runs out."""
        super().handle_work_horse_killed(job, retpid, ret_val, rusage)  # type: ignore[no-untyped-call]
        try:
            freed = asyncio.run(_release(self.settings, process_name(retpid)))
        except DatabaseError:
            return  # the lease runs out by itself
        kind, _, rest = job.id.partition("-")
        log.warning("job_killed", job=kind, pid=retpid, leases=freed)
        if freed and rest.partition("-")[0].isdigit():
            Queues(self.connection).again(kind, int(rest.partition("-")[0]))


def run_worker(settings: CompositorSettings, ready: Path | None = None) -> None:
    """Work until SIGTERM. Without Redis it waits for Redis; `ready` is written when it listens for the first time."""
    redis_url = settings.redis
    for noisy in ("rq.worker", "rq.queue", "rq.job"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    signal.signal(jobs.ENOUGH, signal.SIG_IGN)  # until a job listens for it
    settings.work_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    asyncio.run(sweep_work_folder(settings.work_folder))
    if not features.check("raqm"):
        log.warning("no_complex_text", reason="FriBiDi is missing: Arabic, Hebrew and Indic texts come out broken")
    with socket_folder() as folder, ComposeProcess(folder) as process:
        jobs.Hands.settings, jobs.Hands.process = settings, process
        if ready is not None:
            write_ready(ready)
        while not _work(settings, redis_url):
            time.sleep(REDIS_PAUSE_S)


def _work(settings: CompositorSettings, redis_url: str) -> bool:
    """Work until it is to stop, which is True, or until Redis is gone."""
    connection = connect(redis_url, timeout_s=WORKER_TTL_S)
    worker = None
    try:
        connection.ping()
        worker = CompositorWorker(
            list(QUEUES),
            connection=connection,
            serializer=JSONSerializer,
            worker_ttl=WORKER_TTL_S,
            job_monitoring_interval=MONITOR_S,
            maintenance_interval=WORKER_TTL_S,
        )
        worker.settings = settings
        log.info("worker_listens", worker=worker.name)
        worker.work(logging_level="WARNING")
    except RedisError as problem:
        log.warning("redis_gone", reason=str(problem) or type(problem).__name__)
    finally:
        connection.close()
    return worker is not None and worker.asked_to_stop


async def _release(settings: CompositorSettings, process: str) -> int:
    db = Database(settings.database)
    try:
        chunks = Chunks(db, lease_seconds=settings.chunk_lease_seconds)
        leases = RunLeases(db, lease_seconds=settings.chunk_lease_seconds)
        return await chunks.release_all_of(process) + await leases.release_all_of(process)
    finally:
        await db.close()
