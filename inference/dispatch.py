"""The queue itself: accepts jobs, and answers for everything that callers and time may do to them."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING

from inference.answers import full_answer, progress_chunk, stream_answer
from inference.errors import DEADLINE_MISSED, NotRetryableError, QueueFullError
from inference.following import Follower
from inference.idempotency import agree_on_key, fingerprint_of, same_job
from inference.jobs import JobRecord
from inference.verify import PREFIX as VERIFY_PREFIX
from models.errors import NotFoundError, TooManyRequestsError
from models.logs import get_logger
from models.wire import JobState, Policy, Progress

if TYPE_CHECKING:
    from inference.handler import PictureHandler
    from inference.jobs import JobBook
    from inference.metrics import Metrics
    from inference.plan import Plan
    from inference.preparing import Preparer
    from inference.settings import InferenceSettings
    from inference.uploads import Deliveries
    from inference.webhooks import Webhooks
    from models.wire import JobRequest, VerifyRequest

log = get_logger(__name__)

STOPPED = "shutting_down: the server stopped before the job was done"
INPUT_PREFIX = ("input",)
KEYED_TTL_S = 1800.0  # a caller with a key may come back this late and must find its job
SYNC_TTL_MAX_S = 300.0  # RunPod's longest for a result of /runsync


class Dispatcher:
    """Ties the book, the handler and those who follow jobs together. Lives on the event loop."""

    def __init__(
        self,
        *,
        handler: PictureHandler,
        preparer: Preparer,
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
        self._preparer = preparer
        self._deliveries = deliveries
        self._metrics = metrics
        self._settings = settings
        self._follower = Follower(
            handler=handler,
            book=book,
            deliveries=deliveries,
            webhooks=webhooks,
            metrics=metrics,
            settings=settings,
            worker_id=worker_id,
        )

    # ---- what callers do

    async def submit(self, request: JobRequest, *, key: str | None, sync: bool, correlation_id: str) -> JobRecord:
        """Accept a job, or answer with the one that this key already names.

        It waits only to read pictures that stand in the request. After that nothing waits until the job is in the
        book, so nothing slips between.

        Args:
            request: what to draw, valid in itself.
            key: the caller's `Idempotency-Key`, if it sent one; `input.request_id` means the same.
            sync: whether it came by `/runsync`.
            correlation_id: bound into every log line of the job.

        Raises:
            InvalidInputError: out of this server's bounds, or the key names a job with another input.
            QueueFullError: admission refused. Nothing is remembered, so a retry starts anew.
            DeadlineUnreachableError: the same, for a job that would begin too late.
            BookFullError: no room to remember one more job.

        """
        key = agree_on_key(key, request.input.request_id)
        fingerprint = fingerprint_of(request)
        if key is not None and (known := self.book.find(key)) is not None:
            return same_job(known, fingerprint)
        job_id = key or f"{'sync-' if sync else ''}{uuid.uuid4()}-u1"
        plan = await self._preparer.draft(job_id, request.input, INPUT_PREFIX, self._deliveries.problems(request))
        if key is not None and (known := self.book.find(key)) is not None:  # it came in while pictures were read
            return same_job(known, fingerprint)
        record = self._record(
            plan, fingerprint, correlation_id, sync=sync, keyed=key is not None, policy=request.policy
        )
        record.webhook, record.s3 = request.webhook, request.s3Config
        return self._accept(record, plan, INPUT_PREFIX)

    async def verify(self, request: VerifyRequest, *, correlation_id: str) -> JobRecord:
        """Accept a job that draws a receipt's pictures again.

        Raises:
            InvalidInputError: the receipt cannot be drawn here.
            QueueFullError, BookFullError: as `submit`.

        """
        job_id = f"verify-{uuid.uuid4()}-u1"
        plan = await self._preparer.draft_check(job_id, request)
        return self._accept(self._record(plan, "", correlation_id), plan, VERIFY_PREFIX)

    def get(self, job_id: str) -> JobRecord:
        """A job that is known.

        Raises:
            NotFoundError: never known, or its time is over.

        """
        record = self.book.find(job_id)
        if record is None:
            raise NotFoundError("No job has this id, or its time to live is over.")
        return record

    def cancel(self, job_id: str) -> JobRecord:
        """Cancel a job; one that is over already stays as it is."""
        record = self.get(job_id)
        self._follower.end(record, JobState.CANCELLED)
        return record

    def retry(self, job_id: str) -> JobRecord:
        """Put a failed job back into the queue under its id, with the same seeds.

        Raises:
            NotFoundError: unknown id.
            NotRetryableError: it did not fail.
            QueueFullError: admission refused; the job stays as it is.

        """
        record = self.get(job_id)
        if record.state not in (JobState.FAILED, JobState.TIMED_OUT):
            raise NotRetryableError(
                f"Only FAILED and TIMED_OUT jobs can be retried; this one is {record.state.value}."
            )
        plan = record.plan
        if plan is None:
            raise NotRetryableError("Memory for results ran out, and the job's input pictures are no longer kept.")
        drawing = None
        if plan.prepare is None:
            drawing = self.handler.submit(
                plan,
                attempt=record.attempt + 1,
                prefix=INPUT_PREFIX,
                start_within_s=self._follower.deadline_s(record),
            )
        self.book.reopen(record)
        self._follower.follow(record, plan, drawing)
        return record

    def purge(self) -> int:
        """Cancel every job that waits; the number of them. Jobs in progress go on."""
        waiting = [record for record in self.book.active() if record.state is JobState.IN_QUEUE]
        for record in waiting:
            self._follower.end(record, JobState.CANCELLED, error="cancelled: the queue was purged")
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
            waited = now - record.created_at
            if waited >= record.policy.ttl / 1000:
                self._expire(record)
            elif record.state is JobState.IN_QUEUE and waited >= (deadline_s := self._follower.deadline_s(record)):
                message = f"{DEADLINE_MISSED}: drawing did not begin within {deadline_s:g} s"
                self._follower.end(record, JobState.FAILED, error=message)
            elif record.started_at is not None and now - record.started_at >= record.policy.executionTimeout / 1000:
                message = f"timed_out: the job ran longer than {record.policy.executionTimeout} ms"
                self._follower.end(record, JobState.TIMED_OUT, error=message)
        self.book.drop_expired()

    async def wait_idle(self, seconds: float) -> bool:
        """Until no job is unfinished and no webhook pending; False when `seconds` were not enough."""
        deadline = asyncio.get_running_loop().time() + seconds
        while self._follower.busy:
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(0.05)
        return True

    async def close(self, reason: str = STOPPED) -> None:
        """Give up every unfinished job for `reason`, and say which are lost."""
        for record in self.book.active():
            log.error("job_lost", job_id=record.id, state=record.state.value, request_id=record.correlation_id)
            self._follower.end(record, JobState.FAILED, error=reason)
        await self._follower.wait_all()

    # ---- one job

    def _record(
        self,
        plan: Plan,
        fingerprint: str,
        correlation_id: str,
        *,
        sync: bool = False,
        keyed: bool = False,
        policy: Policy | None = None,
    ) -> JobRecord:
        return JobRecord(
            id=plan.job.id,
            sync=sync,
            keyed=keyed,
            fingerprint=fingerprint,
            correlation_id=correlation_id,
            policy=policy or Policy(),
            created_at=self.book.clock(),
            ttl_s=self._ttl(sync=sync, keyed=keyed),
            plan=plan,
            progress=Progress(steps=plan.steps, queue_position=self._ahead()),
        )

    def _accept(self, record: JobRecord, plan: Plan, prefix: tuple[str, ...] = ()) -> JobRecord:
        """Into the engine, or into the queue for pictures to be fetched, and into the book; never waits."""
        try:
            self.book.make_room()
            drawing = None
            if plan.prepare is None:
                drawing = self._follower.enter(record, plan, prefix=prefix)
            else:
                self._check_room(plan)
        except TooManyRequestsError as full:
            self._metrics.refused.labels(full.code).inc()
            raise
        self.book.add(record)
        self._metrics.accepted.inc()
        self._follower.follow(record, plan, drawing)
        return record

    def _check_room(self, plan: Plan) -> None:
        """The engine is asked when the pictures are there; a queue that is full already is said at once.

        Raises:
            QueueFullError: as many pictures wait as may.

        """
        waiting = self.handler.engine.stats().waiting + self._follower.fetching
        if waiting + len(plan.job.pictures) > self._settings.max_waiting:
            raise QueueFullError(f"The queue is full: {waiting} pictures are waiting already.", retry_after_s=1)

    def _ttl(self, *, sync: bool, keyed: bool) -> float:
        if keyed:
            return max(KEYED_TTL_S, self._settings.result_ttl_s)
        return self._settings.sync_result_ttl_s if sync else self._settings.result_ttl_s

    def _ahead(self) -> int:
        return sum(1 for _ in self.book.active())

    def _expire(self, record: JobRecord) -> None:
        """RunPod deletes a job whose `policy.ttl` is over: its status is 404 from then on."""
        log.warning("job_expired", job_id=record.id, request_id=record.correlation_id, state=record.state.value)
        self._metrics.ended.labels("EXPIRED").inc()
        self.book.remove(record)
        self._follower.stop(record)
