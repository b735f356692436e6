from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from inference.engine.desk import Desk
from inference.engine.types import (
    Cancelled,
    CannotStartInTimeError,
    DeadlineMissedError,
    EngineError,
    EngineFullError,
    EngineJob,
    Failed,
    PictureSpec,
    Predicted,
    Progressed,
)

if TYPE_CHECKING:
    from inference.engine.slots import Ticket
    from inference.engine.types import EngineEvent


def job(name: str, count: int = 1, within_s: float | None = None) -> EngineJob:
    spec = PictureSpec("p", "", 128, 128, 4, 3.0, 0, "euler")
    return EngineJob(name, (spec,) * count, start_within_s=within_s)


class Caller:
    """Hears what becomes of its jobs."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.events: list[EngineEvent] = []

    def ask(self, what: EngineJob, *, free: int = 0, wait_s: float | None = None) -> Ticket:
        return self.desk.accept(
            what, self.events.append, free=free, predict=lambda: Predicted(wait_s, None if wait_s is None else 2.0)
        )


@pytest.fixture
def caller() -> Caller:
    return Caller(Desk(max_waiting=2))


def test_no_more_wait_than_allowed_and_free_slots_need_no_waiting(caller: Caller) -> None:
    caller.ask(job("a", 2))
    with pytest.raises(EngineFullError) as refused:
        caller.ask(job("b"), wait_s=12.5)
    assert refused.value.retry_after_s == 12.5
    caller.ask(job("c"), free=1)
    assert caller.desk.waiting_count == 3
    assert caller.desk.find("b") is None


def test_a_job_that_could_not_begin_in_time_is_refused_at_once(caller: Caller) -> None:
    with pytest.raises(CannotStartInTimeError) as refused:
        caller.ask(job("late", within_s=5), wait_s=30)
    assert refused.value.retry_after_s == 25
    assert caller.desk.waiting_count == 0
    caller.ask(job("early", within_s=60), wait_s=30)


def test_a_job_that_has_not_begun_in_time_ends(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    ticket = caller.ask(job("late", within_s=5))
    other = caller.ask(job("patient"))
    for each in (ticket, other):
        caller.desk.queue(each)
    left = caller.desk.until_next_deadline()
    assert left is not None
    assert 4 < left <= 5
    caller.desk.end_late()
    assert caller.events == []
    ticket.submitted_at -= 6
    assert caller.desk.until_next_deadline() == 0
    caller.desk.end_late()
    (event,) = caller.events
    assert isinstance(event, Failed)
    assert isinstance(event.error, DeadlineMissedError)
    assert [waiting.job.id for waiting, _ in caller.desk.waiting] == ["patient"]
    assert caller.desk.waiting_count == 1
    assert caller.desk.until_next_deadline() is None


def test_one_id_is_under_way_once(caller: Caller) -> None:
    ticket = caller.ask(job("a"))
    with pytest.raises(EngineError, match="under way already"):
        caller.ask(job("a"))
    caller.desk.cancel(ticket)
    caller.ask(job("a"))


def test_an_end_is_told_once_and_takes_what_waits(caller: Caller) -> None:
    ended: list[str] = []
    caller.desk.watch_ends(lambda ticket: ended.append(ticket.job.id))
    ticket = caller.ask(job("a", 2))
    caller.desk.queue(ticket)
    caller.desk.cancel(ticket)
    caller.desk.fail(ticket, EngineError("late"))
    assert caller.events == [Cancelled("a", 0)]
    assert ended == ["a"]
    assert (len(caller.desk.waiting), caller.desk.waiting_count) == (0, 0)


def test_places_in_the_line_are_told_when_they_change(caller: Caller) -> None:
    first, second = caller.ask(job("a"), wait_s=1), caller.ask(job("b"), wait_s=3)
    for ticket in (first, second):
        caller.desk.queue(ticket)
    caller.desk.report_positions(ahead=1)
    caller.desk.report_positions(ahead=1)
    told: list[Any] = [
        (event.job_id, event.queue_position, event.eta_s) for event in caller.events if isinstance(event, Progressed)
    ]
    assert told == [("a", 1, 3), ("b", 2, 5)]
    caller.desk.report_positions(ahead=0)
    assert len(caller.events) == 3


def test_after_closing_nothing_is_accepted(caller: Caller) -> None:
    ticket = caller.ask(job("a"))
    caller.desk.close()
    with pytest.raises(EngineError, match="shutting down"):
        caller.ask(job("b"))
    caller.desk.fail_all(EngineError("the server is shutting down"))
    assert ticket.over
    assert isinstance(caller.events[-1], Failed)
