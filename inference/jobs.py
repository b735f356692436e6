"""The job book: every job that this process remembers, bounded in count and in bytes.

It lives on the event loop and in memory alone; after a restart every id is unknown. What is kept:

- a finished job until its time is over (30 minutes for `/run` and for every job with a caller's key, 1 minute for
  other `/runsync` jobs), and an unfinished one until its `policy.ttl`;
- results up to `max_bytes` in all. Over that, results that somebody has fetched go first, then the oldest. The job
  itself stays, so its id is never drawn twice; its answer then says `result_evicted`;
- at most `max_jobs` jobs. Over that, finished jobs without a caller's key are forgotten, oldest first; when only
  jobs with keys and unfinished ones are left, new jobs are refused.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from inference.errors import BookFullError
from models.wire import JobState, Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inference.plan import Plan
    from models.wire import Policy, S3Config

EVICTED = "result_evicted: the pictures were drawn, but memory for results ran out before they were fetched"
STALE_EXPIRIES = 1000  # outdated entries of the heap of expiries that are put up with before it is rebuilt


class Pulse:
    """Wakes everybody who waits for a job to change."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def beat(self) -> None:
        """Wake all who wait now."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self) -> None:
        """Until the next beat."""
        await self._event.wait()


@dataclass(slots=True, eq=False)
class JobRecord:
    """One job. Times are the book's clock in seconds; `output`, `chunks` and `previews` hold JSON, encoded once.

    `previews` are the newest of each picture that nobody has read; `held` are the bytes of a failed job's input
    pictures, which are kept for a retry.
    """

    id: str
    sync: bool
    keyed: bool
    fingerprint: str
    correlation_id: str
    policy: Policy
    created_at: float
    ttl_s: float
    webhook: str | None = None
    s3: S3Config | None = None
    plan: Plan | None = None
    state: JobState = JobState.IN_QUEUE
    attempt: int = 1
    started_at: float | None = None
    ended_at: float | None = None
    expires_at: float | None = None
    progress: Progress = field(default_factory=Progress)
    output: bytes | None = None
    error: str | None = None
    removed: bool = False
    cancel_told: bool = False
    progress_unread: bool = False
    chunks: list[bytes] = field(default_factory=list)
    previews: dict[int, bytes] = field(default_factory=dict)
    held: int = 0
    pulse: Pulse = field(default_factory=Pulse)

    @property
    def result_bytes(self) -> int:
        """Memory that its result, its unread pictures and a failed one's input pictures take."""
        unread = sum(map(len, self.chunks)) + sum(map(len, self.previews.values()))
        return len(self.output or b"") + unread + self.held

    def clear_result(self) -> None:
        """Let go of what takes memory; a job whose input pictures go with it cannot be retried."""
        self.output = None
        self.chunks.clear()
        self.previews.clear()
        if self.held:
            self.plan, self.held = None, 0


class JobBook:
    """All jobs by id. Every method runs on the event loop and none waits."""

    def __init__(self, *, max_jobs: int, max_bytes: int, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.max_bytes = max_bytes
        self._max_jobs = max_jobs
        self._jobs: dict[str, JobRecord] = {}
        self._active: dict[str, JobRecord] = {}
        self._forgettable: OrderedDict[str, None] = OrderedDict()  # finished, without a key; oldest end first
        self._fresh: OrderedDict[str, None] = OrderedDict()  # results that nobody has fetched, oldest first
        self._fetched: OrderedDict[str, None] = OrderedDict()
        self._expiries: list[tuple[float, str]] = []
        self._bytes = 0
        self.ended: Counter[JobState] = Counter()
        self.retried = 0

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def bytes_held(self) -> int:
        """Memory of results now."""
        return self._bytes

    def count(self, state: JobState) -> int:
        """Unfinished jobs in one state."""
        return sum(1 for record in self._active.values() if record.state is state)

    def active(self) -> Iterator[JobRecord]:
        """Unfinished jobs, oldest first; safe against changes while iterating."""
        return iter(list(self._active.values()))

    def find(self, job_id: str) -> JobRecord | None:
        """A job that is known and not over its time."""
        record = self._jobs.get(job_id)
        if record is not None and record.expires_at is not None and self.clock() >= record.expires_at:
            self.remove(record)
            return None
        return record

    def make_room(self) -> None:
        """Make sure that one more job may be added.

        Raises:
            BookFullError: nothing may be forgotten yet; Retry-After is when the first may.

        """
        self.drop_expired()
        while len(self._jobs) >= self._max_jobs and self._forgettable:
            self.remove(self._jobs[next(iter(self._forgettable))])
        if len(self._jobs) >= self._max_jobs:
            soonest = self._expiries[0][0] - self.clock() if self._expiries else 1.0
            raise BookFullError(retry_after_s=max(1, int(soonest)))

    def add(self, record: JobRecord) -> None:
        """Remember a new, unfinished job."""
        self._jobs[record.id] = self._active[record.id] = record

    def start(self, record: JobRecord) -> None:
        """Its first picture is being drawn."""
        if record.state is JobState.IN_QUEUE:
            record.state, record.started_at = JobState.IN_PROGRESS, self.clock()
            record.pulse.beat()

    def show_progress(self, record: JobRecord, progress: Progress) -> None:
        """Keep the newest progress, for `/status` and once for `/stream`."""
        if not record.state.terminal:
            record.progress, record.progress_unread = progress, True
            record.pulse.beat()

    def add_chunk(self, record: JobRecord, chunk: bytes) -> None:
        """Keep a piece of `/stream` until it is read."""
        if not record.state.terminal:
            record.chunks.append(chunk)
            self._bytes += len(chunk)
            record.pulse.beat()

    def show_preview(self, record: JobRecord, index: int, chunk: bytes) -> None:
        """Keep a picture's newest preview until it is read."""
        if not record.state.terminal:
            self._bytes += len(chunk) - len(record.previews.pop(index, b""))
            record.previews[index] = chunk
            record.pulse.beat()

    def take_chunks(self, record: JobRecord) -> list[bytes]:
        """What `/stream` has not handed out yet; it is gone from here afterwards. Previews stand before pictures."""
        chunks = [*record.previews.values(), *record.chunks]
        record.previews, record.chunks = {}, []
        self._bytes -= sum(map(len, chunks))
        return chunks

    def end(
        self, record: JobRecord, state: JobState, *, output: bytes | None = None, error: str | None = None
    ) -> bool:
        """Make a job terminal. False when it is already, and nothing changes."""
        if record.state.terminal or record.removed:
            return False
        record.state, record.output, record.error = state, output, error
        record.ended_at = self.clock()
        self._active.pop(record.id, None)
        if state in (JobState.COMPLETED, JobState.CANCELLED):
            record.plan = record.s3 = None  # only a failed job can be retried
        record.held = record.plan.nbytes if record.plan else 0
        self._bytes += len(output or b"") + record.held
        self.ended[state] += 1
        if not record.keyed:
            self._forgettable[record.id] = None
        if record.result_bytes:
            self._fresh[record.id] = None
        self.keep_for(record, record.ttl_s)
        self._fit_bytes(record)
        record.pulse.beat()
        return True

    def keep_for(self, record: JobRecord, seconds: float) -> None:
        """Keep a job this long from its end, whether that has come or not."""
        record.ttl_s = seconds
        if record.ended_at is None or record.expires_at == record.ended_at + seconds:
            return
        record.expires_at = record.ended_at + seconds
        heapq.heappush(self._expiries, (record.expires_at, record.id))
        if len(self._expiries) > 2 * len(self._jobs) + STALE_EXPIRIES:
            kept = ((job.expires_at, job.id) for job in self._jobs.values() if job.expires_at is not None)
            self._expiries = sorted(kept)  # a sorted list is a heap

    def mark_fetched(self, record: JobRecord) -> None:
        """Somebody has its result, so it may go first when memory is short."""
        if record.id in self._fresh:
            del self._fresh[record.id]
            self._fetched[record.id] = None

    def unfetched(self, since: float) -> list[JobRecord]:
        """Jobs that ended after `since` and whose result nobody has yet."""
        records = (self._jobs[job_id] for job_id in self._fresh)
        return [
            record
            for record in records
            if record.ended_at is not None and record.ended_at >= since and record.result_bytes > record.held
        ]

    def reopen(self, record: JobRecord) -> None:
        """Back to the queue for another attempt; times start anew, as RunPod's do."""
        self._forget_order(record)
        self._bytes -= record.result_bytes
        record.held = 0  # its pictures are in use again
        record.clear_result()
        record.state, record.attempt = JobState.IN_QUEUE, record.attempt + 1
        record.created_at, record.started_at, record.ended_at, record.expires_at = self.clock(), None, None, None
        record.error, record.progress = None, Progress()
        self._active[record.id] = record
        self.retried += 1
        record.pulse.beat()

    def remove(self, record: JobRecord) -> None:
        """Forget a job; its id is unknown from now on."""
        self._forget_order(record)
        self._bytes -= record.result_bytes
        record.clear_result()
        self._jobs.pop(record.id, None)
        self._active.pop(record.id, None)
        record.removed = True
        record.pulse.beat()

    def drop_expired(self) -> None:
        """Forget finished jobs whose time is over."""
        now = self.clock()
        while self._expiries and self._expiries[0][0] <= now:
            when, job_id = heapq.heappop(self._expiries)
            record = self._jobs.get(job_id)
            if record is not None and record.expires_at == when:  # else it was kept longer, or retried
                self.remove(record)

    def _fit_bytes(self, newest: JobRecord) -> None:
        for order in (self._fetched, self._fresh):
            while self._bytes > self.max_bytes and order:
                record = self._jobs[next(iter(order))]
                if record is newest:
                    break
                self._evict_result(record)

    def _evict_result(self, record: JobRecord) -> None:
        self._bytes -= record.result_bytes
        had_output = record.output is not None
        record.clear_result()
        self._fresh.pop(record.id, None)
        self._fetched.pop(record.id, None)
        if had_output:
            record.error = EVICTED

    def _forget_order(self, record: JobRecord) -> None:
        for order in (self._forgettable, self._fresh, self._fetched):
            order.pop(record.id, None)
