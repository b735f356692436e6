"""The queue itself: accepts jobs, follows each to its end, and everything that may happen to it on the way."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from inference.answers import encode, full_answer, progress_chunk, stream_answer
from inference.errors import NotRetryableError, ResultTooLargeError
from inference.idempotency import agree_on_key, fingerprint_of, same_job
from inference.jobs import JobRecord
from inference.observer import RecordObserver
from models.errors import IgenError, InvalidInputError, NotFoundError, TooManyRequestsError
from models.logs import get_logger
from models.wire import JobState, Progress

if TYPE_CHECKING:
    from inference.handler import Drawing, PictureHandler
    from inference.jobs import JobBook
    from inference.metrics import Metrics
    from inference.plan import Plan
    from inference.settings import InferenceSettings
    from inference.uploads import Deliveries
    from inference.webhooks import Webhooks
    from models.wire import JobOutput, JobRequest

log = get_logger(__name__)

STOPPED = "shutting_down: the server stopped before the job was done"
INPUT_PREFIX = ("input",)
KEYED_TTL_S = 1800.0  # a caller with a key may come back this late and must find its job
SYNC_TTL_MAX_S = 300.0  # RunPod's longest for a result of /runsync
CHANGE_EVERY_S = 0.2  # a long poll answers a mere change of progress at most this often


class Dispatcher:
    """Ties the book, the handler and the webhooks together. Lives on the event loop; only waits are coroutines."""

    def __init__(
        self,
        *,
        handler: PictureHandler,
        book: JobBook,
        deliveries: Deliveries,
        webhooks: Webhooks,
        metrics: Metrics,
        settings: InferenceSettings,
        worker_id: str,
    ) -> None:
        self.handler = handler
        self.book = book
        self.worker_id = worker_id
        self._deliveries = deliveries
        self._webhooks = webhooks
        self._metrics = metrics
        self._settings = settings
        self._runs: dict[str, _Run] = {}

    # ---- what callers do

    def submit(self, request: JobRequest, *, key: str | None, sync: bool, correlation_id: str) -> JobRecord:
        """Accept a job, or answer with the one that this key already names. Never waits, so nothing slips between.

        Args:
            request: what to draw, valid in itself.
            key: the caller's `Idempotency-Key`, if it sent one; `input.request_id` means the same.
            sync: whether it came by `/runsync`.
            correlation_id: bound into every log line of the job.

        Raises:
            InvalidInputError: out of this server's bounds, or the key names a job with another input.
            QueueFullError: admission refused. Nothing is remembered, so a retry starts anew.
            BookFullError: no room to remember one more job.

        """
        key = agree_on_key(key, request.input.request_id)
        fingerprint = fingerprint_of(request)
        if key is not None and (known := self.book.find(key)) is not None:
            return same_job(known, fingerprint)
        job_id = key or f"{'sync-' if sync else ''}{uuid.uuid4()}-u1"
        plan = self._plan(job_id, request)
        try:
            self.book.make_room()
            drawing = self.handler.submit(plan, prefix=INPUT_PREFIX)
        except TooManyRequestsError as full:
            self._metrics.refused.labels(full.code).inc()
            raise
        record = JobRecord(
            id=job_id,
            sync=sync,
            keyed=key is not None,
            fingerprint=fingerprint,
            correlation_id=correlation_id,
            policy=request.policy,
            created_at=self.book.clock(),
            ttl_s=self._ttl(sync=sync, keyed=key is not None),
            webhook=request.webhook,
            s3=request.s3Config,
            plan=plan,
            progress=Progress(steps=sum(spec.steps for spec in plan.job.pictures), queue_position=self._ahead()),
        )
        self.book.add(record)
        self._metrics.accepted.inc()
        self._follow_in_background(record, drawing)
        return record

    def get(self, job_id: str) -> JobRecord:
        """A job that is known.

        Raises:
            NotFoundError: never known, or its time is over.

        """
        record = self.book.find(job_id)
        if record is None:
            raise NotFoundError("No job has this id, or its time to live is over.")
        return record

    async def wait_end(self, record: JobRecord, seconds: float) -> None:
        """Until the job is terminal or forgotten, at most `seconds`."""
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(deadline):
                while not (record.state.terminal or record.removed):
                    await record.pulse.wait()
        except TimeoutError:
            return

    async def wait_change(self, record: JobRecord, seconds: float) -> None:
        """Until the job is terminal, or something of it changed after `CHANGE_EVERY_S`, at most `seconds`."""
        pulse = asyncio.create_task(record.pulse.wait())
        try:
            await self.wait_end(record, min(seconds, CHANGE_EVERY_S))
            if not record.state.terminal and not record.removed:
                await asyncio.wait([pulse], timeout=max(0.0, seconds - CHANGE_EVERY_S))
        finally:
            pulse.cancel()

    def cancel(self, job_id: str) -> JobRecord:
        """Cancel a job; one that is over already stays as it is."""
        record = self.get(job_id)
        self._end(record, JobState.CANCELLED)
        return record

    def retry(self, job_id: str) -> JobRecord:
        """Put a failed job back into the queue under its id, with the same seeds.

        Raises:
            NotFoundError: unknown id.
            NotRetryableError: it did not fail.
            QueueFullError: admission refused; the job stays as it is.

        """
        record = self.get(job_id)
        if record.state not in (JobState.FAILED, JobState.TIMED_OUT) or record.plan is None:
            raise NotRetryableError(
                f"Only FAILED and TIMED_OUT jobs can be retried; this one is {record.state.value}."
            )
        drawing = self.handler.submit(record.plan, attempt=record.attempt + 1, prefix=INPUT_PREFIX)
        self.book.reopen(record)
        self._follow_in_background(record, drawing)
        return record

    def purge(self) -> int:
        """Cancel every job that waits; the number of them. Jobs in progress go on."""
        waiting = [record for record in self.book.active() if record.state is JobState.IN_QUEUE]
        for record in waiting:
            self._end(record, JobState.CANCELLED, error="cancelled: the queue was purged")
        return len(waiting)

    def answer(self, record: JobRecord) -> bytes:
        """The job for `/status` and `/runsync`; its result counts as fetched.

        Raises:
            NotFoundError: the job was forgotten while the caller waited.

        """
        if record.removed:
            raise NotFoundError("The job's time to live is over.")
        self.book.mark_fetched(record)
        return full_answer(record, self.worker_id)

    def stream(self, record: JobRecord) -> bytes:
        """What `/stream` has not handed out yet."""
        chunks = self.book.take_chunks(record)
        if record.progress_unread:
            record.progress_unread = False
            chunks.insert(0, progress_chunk(record.progress))
        body = stream_answer(record, chunks)
        record.cancel_told = record.state is JobState.CANCELLED
        return body

    def keep_for(self, record: JobRecord, seconds: float) -> None:
        """Set how long a result is kept, within RunPod's limits; a caller with a key keeps its half hour."""
        if not record.keyed:
            longest = SYNC_TTL_MAX_S if record.sync else self._settings.result_ttl_s
            self.book.keep_for(record, min(seconds, max(longest, record.ttl_s)))

    # ---- what time does

    def sweep(self) -> None:
        """End what is over its time: unfinished jobs by their policy, finished ones by theirs."""
        now = self.book.clock()
        for record in self.book.active():
            if now - record.created_at >= record.policy.ttl / 1000:
                self._expire(record)
            elif record.started_at is not None and now - record.started_at >= record.policy.executionTimeout / 1000:
                message = f"timed_out: the job ran longer than {record.policy.executionTimeout} ms"
                self._end(record, JobState.TIMED_OUT, error=message)
        self.book.drop_expired()

    async def wait_idle(self, seconds: float) -> bool:
        """Until no job is unfinished and no webhook pending; False when `seconds` were not enough."""
        deadline = asyncio.get_running_loop().time() + seconds
        while self._runs or self._webhooks.pending:
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(0.05)
        return True

    async def close(self, reason: str = STOPPED) -> None:
        """Give up every unfinished job for `reason`, and say which are lost."""
        for record in self.book.active():
            log.error("job_lost", job_id=record.id, state=record.state.value, request_id=record.correlation_id)
            self._end(record, JobState.FAILED, error=reason)
        await asyncio.gather(*(run.task for run in list(self._runs.values())), return_exceptions=True)

    # ---- one job

    def _ttl(self, *, sync: bool, keyed: bool) -> float:
        if keyed:
            return max(KEYED_TTL_S, self._settings.result_ttl_s)
        return self._settings.sync_result_ttl_s if sync else self._settings.result_ttl_s

    def _ahead(self) -> int:
        return sum(1 for _ in self.book.active())

    def _plan(self, job_id: str, request: JobRequest) -> Plan:
        problems = self._deliveries.problems(request)
        try:
            plan = self.handler.plan(job_id, request.input, INPUT_PREFIX)
        except InvalidInputError as wrong:
            problems = [*wrong.details, *problems]
        if problems:
            message = "; ".join(f"{problem.field}: {problem.reason}" for problem in problems)
            raise InvalidInputError(message, details=problems)
        return plan

    def _follow_in_background(self, record: JobRecord, drawing: Drawing) -> None:
        run = _Run(drawing, asyncio.create_task(self._follow(record, drawing)))
        self._runs[record.id] = run
        run.task.add_done_callback(lambda _: self._forget_run(record.id, run))

    def _forget_run(self, job_id: str, run: _Run) -> None:
        if self._runs.get(job_id) is run:  # else a retry has taken its place
            del self._runs[job_id]

    async def _follow(self, record: JobRecord, drawing: Drawing) -> None:
        """The edge of a job: whatever happens in it ends here, in its state and in the log."""
        structlog.contextvars.bind_contextvars(job_id=record.id, request_id=record.correlation_id)
        log.info("job_accepted", attempt=record.attempt, pictures=len(drawing.plan.job.pictures))
        observer = RecordObserver(self.book, record, self._metrics, self._settings.stream_chunk_bytes)
        try:
            output = await self.handler.finish(drawing, observer, self._deliveries.choose(record.s3))
            encoded = await self.handler.encoder.run(self._encode, output)
            for bucket in output.receipt.buckets:
                self._metrics.batch.observe(bucket)
            self._end(record, JobState.COMPLETED, output=encoded)
        except IgenError as problem:
            self._end(record, JobState.FAILED, error=problem.as_plain_string())
        except Exception:
            log.exception("job_broke")
            self._end(record, JobState.FAILED, error=IgenError().as_plain_string())

    def _encode(self, output: JobOutput) -> bytes:
        encoded = encode(output.model_dump(mode="json"))
        if len(encoded) > self.book.max_bytes:
            raise ResultTooLargeError(
                f"The result has {len(encoded)} bytes; IGEN_MAX_RESULTS_MB is too small for it."
            )
        return encoded

    def _end(
        self, record: JobRecord, state: JobState, *, output: bytes | None = None, error: str | None = None
    ) -> None:
        if not self.book.end(record, state, output=output, error=error):
            return
        if state in (JobState.COMPLETED, JobState.CANCELLED):
            record.plan = record.s3 = None  # only a failed job can be retried
        self._metrics.job_ended(record)
        level = log.warning if state in (JobState.FAILED, JobState.TIMED_OUT) else log.info
        level("job_ended", job_id=record.id, request_id=record.correlation_id, state=state.value, error=error)
        self._stop(record)
        if record.webhook is not None:
            body = lambda: full_answer(record, self.worker_id)  # noqa: E731 - the closure is the point
            self._webhooks.send(record.id, record.webhook, body, lambda: self.book.mark_fetched(record))

    def _expire(self, record: JobRecord) -> None:
        """RunPod deletes a job whose `policy.ttl` is over: its status is 404 from then on."""
        log.warning("job_expired", job_id=record.id, request_id=record.correlation_id, state=record.state.value)
        self._metrics.ended.labels("EXPIRED").inc()
        self.book.remove(record)
        self._stop(record)

    def _stop(self, record: JobRecord) -> None:
        """Stop drawing. The engine is told here too: a task cancelled before its first step never gets to do it."""
        run = self._runs.get(record.id)
        if run is not None and run.task is not asyncio.current_task():
            self.handler.engine.cancel(run.drawing.engine_id)
            run.task.cancel()


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """One attempt at a job: what the engine draws and the task that follows it."""

    drawing: Drawing
    task: asyncio.Task[None]
