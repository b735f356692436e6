"""One job from its acceptance to its end: pictures fetched, drawn, delivered, written into its record."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from inference.answers import encode, full_answer
from inference.errors import DEADLINE_MISSED, GenerationFailedError, QueueFullError, ResultTooLargeError
from inference.observer import RecordObserver
from models.errors import IgenError
from models.logs import get_logger
from models.wire import JobState

if TYPE_CHECKING:
    from inference.drawing import Drawing
    from inference.handler import PictureHandler
    from inference.jobs import JobBook, JobRecord
    from inference.metrics import Metrics
    from inference.plan import Plan
    from inference.settings import InferenceSettings
    from inference.uploads import Deliveries
    from inference.webhooks import Webhooks
    from models.wire import JobOutput, VerifyOutput

log = get_logger(__name__)

ROOM_EVERY_S = 0.25  # how often a job whose pictures are there asks the full engine again


@dataclass(slots=True, eq=False)
class Run:
    """One attempt at a job: what the engine draws, None while pictures are fetched, and the task that follows it."""

    drawing: Drawing | None
    task: asyncio.Task[None]


class Follower:
    """Follows jobs in the background, one task each, and ends each exactly once."""

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
        self._handler = handler
        self._book = book
        self._deliveries = deliveries
        self._webhooks = webhooks
        self._metrics = metrics
        self._settings = settings
        self._worker_id = worker_id
        self._runs: dict[str, Run] = {}

    @property
    def busy(self) -> bool:
        """Whether any job is unfinished or its webhook pending."""
        return bool(self._runs or self._webhooks.pending)

    @property
    def fetching(self) -> int:
        """Jobs whose pictures are not in the engine yet."""
        return sum(1 for run in self._runs.values() if run.drawing is None)

    def follow(self, record: JobRecord, plan: Plan, drawing: Drawing | None) -> None:
        """Take a job over; `drawing` is None where its pictures are still to be fetched."""
        run = Run(drawing, asyncio.create_task(self._follow(record, plan)))
        self._runs[record.id] = run
        run.task.add_done_callback(lambda _: self._forget(record.id, run))

    def enter(self, record: JobRecord, plan: Plan, *, prefix: tuple[str, ...] = ()) -> Drawing:
        """Hand a job to the engine.

        Raises:
            TooManyRequestsError: admission refused.
            InvalidInputError, GenerationFailedError: as the handler's `submit`.

        """
        left_s = self.deadline_s(record) - (self._book.clock() - record.created_at)
        return self._handler.submit(plan, attempt=record.attempt, prefix=prefix, start_within_s=max(0.0, left_s))

    def deadline_s(self, record: JobRecord) -> float:
        """Seconds from its acceptance within which drawing must begin."""
        wanted = record.plan.job.start_within_s if record.plan else None
        ttl_s = record.policy.ttl / 1000
        return ttl_s if wanted is None else min(wanted, ttl_s)

    def end(
        self, record: JobRecord, state: JobState, *, output: bytes | None = None, error: str | None = None
    ) -> None:
        """Make a job terminal, where it is not yet: record, metrics, log, engine, webhook."""
        if not self._book.end(record, state, output=output, error=error):
            return
        self._metrics.job_ended(record)
        level = log.warning if state in (JobState.FAILED, JobState.TIMED_OUT) else log.info
        level("job_ended", job_id=record.id, request_id=record.correlation_id, state=state.value, error=error)
        self.stop(record)
        if record.webhook is not None:
            body = lambda: full_answer(record, self._worker_id)  # noqa: E731 - the closure is the point
            self._webhooks.send(record.id, record.webhook, body, lambda: self._book.mark_fetched(record))

    def stop(self, record: JobRecord) -> None:
        """Stop drawing. The engine is told here too: a task cancelled before its first step never gets to do it."""
        run = self._runs.get(record.id)
        if run is not None and run.task is not asyncio.current_task():
            if run.drawing is not None:
                self._handler.engine.cancel(run.drawing.engine_id)
            run.task.cancel()

    async def wait_all(self) -> None:
        """Until every task is over."""
        await asyncio.gather(*(run.task for run in list(self._runs.values())), return_exceptions=True)

    def _forget(self, job_id: str, run: Run) -> None:
        if self._runs.get(job_id) is run:  # else a retry has taken its place
            del self._runs[job_id]

    async def _follow(self, record: JobRecord, plan: Plan) -> None:
        """The edge of a job: whatever happens in it ends here, in its state and in the log."""
        structlog.contextvars.bind_contextvars(job_id=record.id, request_id=record.correlation_id)
        log.info("job_accepted", attempt=record.attempt, pictures=len(plan.job.pictures))
        run = self._runs[record.id]
        observer = RecordObserver(self._book, record, self._metrics, self._settings.stream_chunk_bytes)
        try:
            drawing = run.drawing = run.drawing or await self._fetch_and_enter(record, plan)
            output = await self._handler.finish(drawing, observer, self._deliveries.choose(record.s3))
            encoded = await self._handler.encoder.run(self._encode, output)
            for bucket in output.receipt.buckets:
                self._metrics.batch.observe(bucket)
            self.end(record, JobState.COMPLETED, output=encoded)
        except IgenError as problem:
            self.end(record, JobState.FAILED, error=problem.as_plain_string())
        except Exception:
            log.exception("job_broke")
            self.end(record, JobState.FAILED, error=IgenError().as_plain_string())

    async def _fetch_and_enter(self, record: JobRecord, plan: Plan) -> Drawing:
        """What is fetched stays with the record, so that a retry of the job need not fetch it again.

        Raises:
            InvalidInputError: the pictures cannot be had or used.
            GenerationFailedError: the engine cannot begin before the deadline.

        """
        if plan.prepare is not None:
            record.plan = plan = await plan.prepare()
        while True:
            try:
                return self.enter(record, plan)
            except QueueFullError:
                await asyncio.sleep(ROOM_EVERY_S)
            except IgenError as problem:
                if problem.code == "deadline_unreachable":
                    raise GenerationFailedError(DEADLINE_MISSED, problem.message) from None
                raise

    def _encode(self, output: JobOutput | VerifyOutput) -> bytes:
        encoded = encode(output.model_dump(mode="json"))
        if len(encoded) > self._book.max_bytes:
            raise ResultTooLargeError(
                f"The result has {len(encoded)} bytes; IGEN_MAX_RESULTS_MB is too small for it."
            )
        return encoded
