"""Who has asked for what: jobs accepted, pictures waiting, events sent. Callers' threads meet the engine's here."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from inference.engine.counting import count_steps
from inference.engine.slots import Ticket
from inference.engine.types import (
    Cancelled,
    CannotStartInTimeError,
    DeadlineMissedError,
    EngineError,
    EngineFullError,
    Failed,
    Progressed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from inference.engine.types import EngineEvent, EngineJob, Predicted

log = logging.getLogger(__name__)


class Desk:
    """Only what says so may be called from any thread; the rest belongs to the engine's."""

    def __init__(self, max_waiting: int) -> None:
        self.waiting: deque[tuple[Ticket, int]] = deque()
        self.waiting_count = 0
        self._max_waiting = max_waiting
        self._lock = threading.Lock()  # guards the count and the next three
        self._tickets: dict[str, Ticket] = {}
        self._arriving: list[Ticket] = []
        self._closing = False
        self._on_end: Callable[[Ticket], None] = lambda _ticket: None

    # ---- any thread

    @property
    def closing(self) -> bool:
        """Whether no more jobs are accepted."""
        return self._closing

    def accept(
        self,
        job: EngineJob,
        listener: Callable[[EngineEvent], None],
        *,
        free: int,
        predict: Callable[[], Predicted],
    ) -> Ticket:
        """A ticket for a job, if there is room. Any thread.

        Args:
            job: what to draw.
            listener: hears of it.
            free: slots that are free now, which need not be waited for.
            predict: the reckoning for this job behind all others.

        Raises:
            EngineFullError: too many pictures wait, or (CannotStartInTimeError) too many for its deadline.
            EngineError: closed, or the job's id is under way.

        """
        ticket = Ticket(job, listener, steps_total=sum(sum(count_steps(spec)) for spec in job.pictures))
        with self._lock:
            if self._closing:
                raise EngineError("the engine is shutting down")
            if job.id in self._tickets:
                raise EngineError(f"job {job.id} is under way already")
            ticket.predicted = predict()
            wait_s = ticket.predicted.queue_s or 0.0
            if self.waiting_count and self.waiting_count + len(job.pictures) > self._max_waiting + max(0, free):
                raise EngineFullError(self.waiting_count, max(1.0, wait_s))
            if job.start_within_s is not None and wait_s > job.start_within_s:
                raise CannotStartInTimeError(self.waiting_count, wait_s, job.start_within_s)
            self.waiting_count += len(job.pictures)
            self._tickets[job.id] = ticket
            self._arriving.append(ticket)
        return ticket

    def in_line(self) -> list[tuple[Ticket, int]]:
        """Pictures that wait, in order, those included of which the engine's thread has not heard. From `predict`."""
        arriving = [(ticket, index) for ticket in self._arriving for index in range(len(ticket.job.pictures))]
        return [*self.waiting, *arriving]

    def find(self, job_id: str) -> Ticket | None:
        """A job under way. Any thread."""
        with self._lock:
            return self._tickets.get(job_id)

    def close(self) -> None:
        """Accept no more. Any thread."""
        with self._lock:
            self._closing = True

    # ---- the engine's thread

    def watch_ends(self, on_end: Callable[[Ticket], None]) -> None:
        """Call `on_end` for each ticket that is over, before its last event is sent."""
        self._on_end = on_end

    def queue(self, ticket: Ticket) -> None:
        """Put a job's pictures at the end of the line."""
        with self._lock:
            self._arriving.remove(ticket)
            self.waiting.extend((ticket, index) for index in range(len(ticket.job.pictures)))

    def taken(self) -> None:
        """One picture less waits."""
        with self._lock:
            self.waiting_count -= 1

    def report_positions(self, ahead: int) -> None:
        """Tell each job that has not started how many jobs are ahead of it, when that has changed."""
        for position, ticket in enumerate(dict.fromkeys(ticket for ticket, _ in self.waiting)):
            place = max(1, position + ahead)
            if ticket.started_at is None and ticket.reported_position != place:
                ticket.reported_position = place
                self.emit(ticket, Progressed(ticket.job.id, 0, ticket.steps_total, _eta(ticket.predicted), place))

    def end_late(self) -> None:
        """End the jobs that should have begun by now and have not."""
        now = time.monotonic()
        for ticket in dict.fromkeys(ticket for ticket, _ in self.waiting):
            limit = ticket.job.start_within_s
            if limit is not None and ticket.started_at is None and now - ticket.submitted_at > limit:
                self.fail(ticket, DeadlineMissedError(f"drawing did not begin within {limit:.4g} s"))

    def until_next_deadline(self) -> float | None:
        """Seconds until `end_late` has something to do; None for never."""
        now = time.monotonic()
        left = [
            ticket.submitted_at + ticket.job.start_within_s - now
            for ticket, _ in self.waiting
            if ticket.job.start_within_s is not None and ticket.started_at is None
        ]
        return max(0.0, min(left)) if left else None

    def cancel(self, ticket: Ticket) -> None:
        """End a job for its caller."""
        self.end(ticket, Cancelled(ticket.job.id, ticket.pictures_done))

    def fail(self, ticket: Ticket, problem: EngineError) -> None:
        """End a job without its pictures."""
        self.end(ticket, Failed(ticket.job.id, problem))

    def fail_all(self, problem: EngineError) -> None:
        """End every job."""
        with self._lock:
            tickets = list(self._tickets.values())
        for ticket in tickets:
            self.fail(ticket, problem)

    def end(self, ticket: Ticket, event: EngineEvent) -> None:
        """Take a job out of everything and send its last event, once."""
        if ticket.over:
            return
        ticket.over = True
        dropped = sum(1 for waiting, _ in self.waiting if waiting is ticket)
        self.waiting = deque(item for item in self.waiting if item[0] is not ticket)
        with self._lock:
            self.waiting_count -= dropped
            self._tickets.pop(ticket.job.id, None)
        self._on_end(ticket)
        self.emit(ticket, event)

    def emit(self, ticket: Ticket, event: EngineEvent) -> None:
        """Send an event; a listener that fails is its own caller's trouble."""
        try:
            ticket.listener(event)
        except Exception:
            log.exception("the listener of job %s failed", ticket.job.id)

    def set_aside(self, items: Collection[tuple[Ticket, int]]) -> None:
        """Put pictures that could not get a slot back to the head of the line, in order."""
        self.waiting.extendleft(reversed(list(items)))


def _eta(predicted: Predicted) -> float | None:
    """Seconds from now to the end of a job that waits."""
    if predicted.queue_s is None or predicted.run_s is None:
        return None
    return predicted.queue_s + predicted.run_s
