from __future__ import annotations

from typing import Any

import pytest

from inference.errors import BookFullError
from inference.jobs import EVICTED, JobBook, JobRecord
from models.wire import JobState, Policy, Progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make_book(clock: Clock, max_jobs: int = 100, max_bytes: int = 10_000) -> JobBook:
    return JobBook(max_jobs=max_jobs, max_bytes=max_bytes, clock=clock)


def add(book: JobBook, job_id: str, *, keyed: bool = False, ttl_s: float = 60.0) -> JobRecord:
    book.make_room()
    record = JobRecord(job_id, False, keyed, "f", "c", Policy(), book.clock(), ttl_s)
    book.add(record)
    return record


def finish(book: JobBook, job_id: str, size: int = 100, **kwargs: Any) -> JobRecord:
    record = add(book, job_id, **kwargs)
    book.start(record)
    book.end(record, JobState.COMPLETED, output=b"x" * size)
    return record


def test_a_result_is_forgotten_after_its_time(clock: Clock) -> None:
    book = make_book(clock)
    finish(book, "a", ttl_s=60)
    clock.now = 59.9
    assert book.find("a") is not None
    clock.now = 60
    assert book.find("a") is None
    assert (len(book), book.bytes_held) == (0, 0)


def test_the_sweep_forgets_without_being_asked_for_the_job(clock: Clock) -> None:
    book = make_book(clock)
    finish(book, "short", ttl_s=1)
    finish(book, "long", ttl_s=100)
    clock.now = 50
    book.drop_expired()
    assert len(book) == 1


def test_an_unfinished_job_never_expires_here(clock: Clock) -> None:
    book = make_book(clock)
    add(book, "a", ttl_s=1)
    clock.now = 1e6
    book.drop_expired()
    assert book.find("a") is not None


def test_bytes_are_bounded_and_what_was_fetched_goes_first(clock: Clock) -> None:
    book = make_book(clock, max_bytes=1000)
    old = finish(book, "old", 400, keyed=True)
    fetched = finish(book, "fetched", 400, keyed=True)
    book.mark_fetched(fetched)
    newest = finish(book, "newest", 400)
    assert book.bytes_held == 800
    assert (fetched.output, fetched.error) == (None, EVICTED)
    assert old.output is not None
    assert newest.output is not None
    another = finish(book, "another", 900)
    assert old.error == newest.error == EVICTED
    assert another.output is not None
    assert book.bytes_held == 900
    assert book.find("old") is old, "the id of an evicted result must stay known, or it would be drawn again"


def test_thousands_of_results_stay_within_the_bound(clock: Clock) -> None:
    book = make_book(clock, max_jobs=50, max_bytes=5000)
    for number in range(3000):
        finish(book, f"job{number}", 300)
        assert book.bytes_held <= 5000
        assert len(book) <= 50
    assert sum(record.result_bytes for record in (book.find(f"job{n}") for n in range(2950, 3000))) == book.bytes_held


def test_unread_stream_pieces_count_as_bytes(clock: Clock) -> None:
    book = make_book(clock)
    record = add(book, "a")
    book.add_chunk(record, b"12345")
    assert book.bytes_held == 5
    assert book.take_chunks(record) == [b"12345"]
    assert book.take_chunks(record) == []
    assert book.bytes_held == 0


def test_jobs_with_a_key_are_not_forgotten_early_so_new_ones_are_refused(clock: Clock) -> None:
    book = make_book(clock, max_jobs=3)
    finish(book, "free", ttl_s=500)
    finish(book, "keyed", keyed=True, ttl_s=500)
    add(book, "running")
    finish(book, "next", keyed=True, ttl_s=900)
    assert book.find("free") is None
    clock.now = 100
    with pytest.raises(BookFullError) as caught:
        add(book, "refused")
    assert caught.value.retry_after_s == 400
    assert book.find("keyed") is not None
    clock.now = 500
    add(book, "accepted")


def test_asking_for_ever_new_times_does_not_grow_memory(clock: Clock) -> None:
    book = make_book(clock)
    record = finish(book, "a")
    for number in range(10_000):
        book.keep_for(record, 100 + number % 977)
    assert len(book._expiries) < 2000
    clock.now = record.expires_at
    book.drop_expired()
    assert len(book) == 0


def test_the_end_is_the_end(clock: Clock) -> None:
    book = make_book(clock)
    record = finish(book, "a")
    assert not book.end(record, JobState.FAILED, error="late")
    book.show_progress(record, Progress(step=1))
    book.add_chunk(record, b"late")
    book.start(record)
    assert (record.state, record.error, record.progress.step, record.chunks) == (JobState.COMPLETED, None, 0, [])


def test_a_retried_job_starts_anew(clock: Clock) -> None:
    book = make_book(clock)
    record = add(book, "a")
    book.start(record)
    book.end(record, JobState.FAILED, error="x: y")
    clock.now = 30
    book.reopen(record)
    assert (record.state, record.error, record.created_at, record.attempt) == (JobState.IN_QUEUE, None, 30, 2)
    clock.now = 200
    book.drop_expired()
    assert book.find("a") is record, "the first attempt's time to live must not end the second"
    assert book.retried == 1
