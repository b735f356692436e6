"""Brings one leased row to its end: submit (or resume), follow, keep the pictures, close the row.

It runs in a task of its own, so a caller who goes away changes nothing.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from gateway.backend import AnswerLostError, BackendFaultError, NotSentError, UnknownJobError
from gateway.failures import (
    BackendAnswerError,
    BackendFullError,
    BackendLostError,
    BackendUnavailableError,
    DeadlineMissedError,
    GenerationError,
    GenerationTimeoutError,
    InternalGenerationError,
    SubmissionUnknownError,
)
from gateway.inputs import inline_fields
from gateway.ledger import Lease, LeaseLostError
from gateway.outcome import failure_of
from gateway.settings import BackendKind
from models.db import DatabaseError, utc_now
from models.logs import get_logger
from models.tables import GenerationState
from models.wire import JobInput, JobRequest, Policy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.backend import Backend
    from gateway.breaker import Breaker
    from gateway.inputs import InputKeeper
    from gateway.ledger import Ledger
    from gateway.metrics import Metrics
    from gateway.pictures import Kept, PictureKeeper
    from models.tables import Generation
    from models.wire import JobAnswer

WAIT_S = 20.0
"""How long a self-hosted backend is asked to hold one answer back; a silent one is noticed soon after."""
LONG_WAIT_S = 1.0
"""The same for a submission with pictures in it, which stays in memory meanwhile; the least that a backend takes."""
LONG_SUBMISSIONS = 4
SUBMIT_PAUSES_S = (0.3, 1.0)
"""Before a lost submission is sent again with the same id, to a self-hosted backend alone."""
FIRST_POLL_S = 0.25
LONGEST_POLL_S = 3.0
MISSES = {BackendKind.SELFHOSTED: 4, BackendKind.RUNPOD: 10}
"""Status questions in a row without an answer, after which the job is lost: about 4 s, and 25 s over the internet."""
RESUME_GRACE_S = 5.0
"""A row found past its time gets this long to say that it had finished."""
CANCEL_S = 3.0
CLOSE_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Before a row's end is written again while the database does not answer."""

log = get_logger(__name__)


class Forwarder:
    """Carries rows. It holds no state of its own beside its collaborators."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        backend: Backend,
        breaker: Breaker,
        inputs: InputKeeper,
        keeper: PictureKeeper,
        metrics: Metrics,
        timeout_s: float,
    ) -> None:
        self._ledger = ledger
        self._backend = backend
        self._breaker = breaker
        self._inputs = inputs
        self._keeper = keeper
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._long = asyncio.Semaphore(LONG_SUBMISSIONS)

    async def carry(self, row: Generation) -> None:
        """Bring a row to its end. Returns when it is completed, failed, or another process's.

        Cancelled, it gives the row back unfinished.
        """
        lease = Lease(row.id, row.fence)
        with structlog.contextvars.bound_contextvars(request_id=row.request_id, generation_id=row.id):
            began = time.monotonic()
            try:
                code = await self._carry(row, lease)
            except LeaseLostError:
                log.warning("lease_lost", fence=lease.fence)
                return
            except DatabaseError:
                log.exception("row_left_open")  # its lease runs out, and recovery asks the backend again
                return
            except asyncio.CancelledError:
                await self._give_back(lease)
                raise
            self._metrics.generations.labels(code).inc()
            log.info("generation_ended", outcome=code, seconds=round(time.monotonic() - began, 3))

    async def _carry(self, row: Generation, lease: Lease) -> str:
        try:
            kept = await self._draw(row, lease)
            seen = partial(self._keeper.see_to, kept=kept)
            await _insist(lambda: self._ledger.complete(lease, kept.output, kept.pictures, seen))
        except GenerationError as problem:
            error = problem
        except (LeaseLostError, DatabaseError):
            raise
        except Exception:  # the edge of a job: whatever it was, the row must end and the log must tell
            log.exception("generation_crashed")
            error = InternalGenerationError()
        else:
            return "success"
        if error.report:
            log.error("generation_failed", code=error.code, reason=error.message, exc_info=error)
        await _insist(lambda: self._ledger.fail(lease, error))
        await self._inputs.forget(row.id, row.input)
        return error.code

    async def _draw(self, row: Generation, lease: Lease) -> Kept:
        try:
            async with asyncio.timeout(self._time_left(row)):
                answer = await self._obtain(row, lease)
                if (failure := failure_of(answer)) is not None:
                    raise failure
                kept = await self._keeper.keep(row, answer.output)
        except TimeoutError:
            self._breaker.failed()
            await self._cancel(row)
            raise GenerationTimeoutError from None
        except (BackendAnswerError, BackendFaultError):
            self._breaker.failed()
            raise
        self._breaker.succeeded()
        return kept

    async def _obtain(self, row: Generation, lease: Lease) -> JobAnswer:
        """The job's last answer."""
        if row.state == GenerationState.ACCEPTED:
            answer = await self._submit(row, lease)
        elif row.backend != self._backend.url:
            raise BackendLostError("The job was sent to a backend that is no longer configured.")
        elif self._backend.kind is BackendKind.RUNPOD and row.backend_job_id is None:
            raise SubmissionUnknownError
        else:
            answer = await self._ask(row, wait_s=0)
        pause = FIRST_POLL_S
        while not answer.status.terminal:
            answer, pause = await self._follow(row, pause)
        return answer

    async def _submit(self, row: Generation, lease: Lease) -> JobAnswer:
        """Pictures of the request are in memory only while it leaves, and those of few requests at once."""
        await self._breaker.admit()
        if not inline_fields(row.input):
            return await self._send(row, lease, row.input, wait_s=WAIT_S)
        async with self._long:
            return await self._send(row, lease, await self._inputs.whole(row), wait_s=LONG_WAIT_S)

    async def _send(self, row: Generation, lease: Lease, fields: dict[str, Any], *, wait_s: float) -> JobAnswer:
        job = JobRequest(input=JobInput(**{**fields, **_time_for(row), "request_id": row.id}), policy=self._policy())
        await self._ledger.mark_submitted(lease)
        if self._backend.kind is BackendKind.SELFHOSTED:
            return await self._submit_surely(row, job, wait_s)
        answer = await self._submit_once(row, job)
        row.backend_job_id = answer.id
        await self._ledger.keep_backend_job(lease, answer.id)
        return answer

    async def _submit_once(self, row: Generation, job: JobRequest) -> JobAnswer:
        """RunPod makes the job's id, so a submission that may have arrived must never be repeated."""
        try:
            return await self._backend.run(job, correlation=row.request_id)
        except NotSentError as problem:
            raise self._unavailable() from problem
        except (AnswerLostError, BackendFaultError) as problem:
            self._breaker.failed()
            raise SubmissionUnknownError from problem

    async def _submit_surely(self, row: Generation, job: JobRequest, wait_s: float) -> JobAnswer:
        """Our own server joins a repeat to the running job, so a lost answer is asked for again."""
        lost = False
        for pause in (*SUBMIT_PAUSES_S, None):
            try:
                answer = await self._backend.runsync(job, wait_s=wait_s, correlation=row.request_id)
                if answer.id != row.id:
                    raise BackendAnswerError("The backend did not take the gateway's job id for its own.")
            except (NotSentError, AnswerLostError, BackendFullError) as problem:
                lost = lost or isinstance(problem, AnswerLostError)
                if not lost:
                    raise problem if isinstance(problem, BackendFullError) else self._unavailable() from problem
                log.warning("submission_lost", reason=str(problem), again=pause is not None)
                self._breaker.failed()
                if pause is None:
                    raise BackendLostError from problem
                await asyncio.sleep(pause)
            else:
                return answer
        raise AssertionError("the last pause is None")

    async def _follow(self, row: Generation, pause: float) -> tuple[JobAnswer, float]:
        """The next answer, and how long to wait before the one after it. RunPod does not hold answers back."""
        if self._backend.kind is BackendKind.RUNPOD:
            await asyncio.sleep(pause)
            return await self._ask(row, wait_s=0), min(pause * 1.5, LONGEST_POLL_S)
        asked = time.monotonic()
        answer = await self._ask(row, wait_s=WAIT_S)
        if not answer.status.terminal and time.monotonic() - asked < pause:
            await asyncio.sleep(pause)  # a backend that does not hold answers back is not asked in a tight loop
        return answer, pause

    async def _ask(self, row: Generation, *, wait_s: float) -> JobAnswer:
        """Status of the job, asked again while the connection fails, a bounded number of times."""
        pause = FIRST_POLL_S
        for _ in range(MISSES[self._backend.kind]):
            try:
                return await self._backend.status(row.backend_job_id or row.id, wait_s=wait_s)
            except UnknownJobError:
                raise BackendLostError from None
            except (NotSentError, AnswerLostError, BackendFaultError, BackendFullError) as problem:
                log.warning("status_missed", reason=str(problem))
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_POLL_S)
        self._breaker.failed()
        raise BackendLostError

    async def _cancel(self, row: Generation) -> None:
        job_id = row.backend_job_id or (row.id if self._backend.kind is BackendKind.SELFHOSTED else None)
        if job_id is None:
            return
        try:
            async with asyncio.timeout(CANCEL_S):
                await self._backend.cancel(job_id)
        except (NotSentError, AnswerLostError, BackendAnswerError, TimeoutError) as problem:
            log.warning("cancel_failed", reason=str(problem))

    async def _give_back(self, lease: Lease) -> None:
        try:
            await self._ledger.release(lease)
        except (LeaseLostError, DatabaseError) as problem:
            log.warning("lease_not_released", reason=str(problem))  # it will expire

    def _unavailable(self) -> BackendUnavailableError:
        self._breaker.failed()
        return BackendUnavailableError(retry_after_s=2)

    def _time_left(self, row: Generation) -> float:
        left = self._timeout_s - (utc_now() - row.created_at).total_seconds()
        return left if row.state == GenerationState.ACCEPTED else max(left, RESUME_GRACE_S)

    def _policy(self) -> Policy:
        """The backend ends the job by itself, should this process not live to cancel it."""
        milliseconds = int(self._timeout_s * 1000)
        return Policy(executionTimeout=max(milliseconds, 5_000), ttl=max(2 * milliseconds, 60_000))


def _time_for(row: Generation) -> dict[str, Any]:
    """What is left of the request's `deadline_s`, where a row was taken over and has waited before.

    Raises:
        DeadlineMissedError: nothing.

    """
    if (asked := row.input.get("deadline_s")) is None or row.fence == 1:
        return {}
    left = float(asked) - (utc_now() - row.created_at).total_seconds()
    if left <= 0:
        raise DeadlineMissedError
    return {"deadline_s": left}


async def _insist(write: Callable[[], Awaitable[None]]) -> None:
    """Write a row's end, again while the database does not answer; then leave the row to recovery."""
    for pause in CLOSE_PAUSES_S:
        try:
            return await write()
        except DatabaseError:
            log.warning("row_not_closed", again_s=pause)
            await asyncio.sleep(pause)
    return await write()
