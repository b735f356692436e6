from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from inference.engine.grouping import choose_bucket, choose_members, group_size, rows_waiting_for
from inference.engine.slots import GroupKey, Ticket
from inference.engine.types import EngineJob, PictureSpec


@dataclass
class StandIn:
    """As much of a slot as grouping reads."""

    serial: int
    key: GroupKey
    rows: int = 2
    last_tick: int = 0


def key(side: int = 128, alone: int = 0, bucket: int = 0) -> GroupKey:
    return GroupKey(side, side, alone, bucket)


def ticket(*guidances: float, side: int = 128, strict: bool = False) -> Ticket:
    specs = tuple(PictureSpec("p", "", side, side, 4, guidance, 0, "euler") for guidance in guidances)
    return Ticket(EngineJob("j", specs, strict), lambda _event: None)


def members(slots: list[StandIn], max_batch: int = 8, max_rows: int = 16) -> list[int]:
    chosen: Any = choose_members(slots, max_batch, max_rows)  # type: ignore[arg-type]
    return [slot.serial for slot in chosen]


def test_the_group_that_waited_longest_comes_next() -> None:
    slots = [StandIn(1, key(128), last_tick=5), StandIn(2, key(64), last_tick=3), StandIn(3, key(64), last_tick=9)]
    assert members(slots) == [2, 3]


def test_groups_never_mix() -> None:
    slots = [
        StandIn(1, key()),
        StandIn(2, key(alone=2)),
        StandIn(3, key(bucket=4)),
        StandIn(4, key(96)),
        StandIn(5, key()),
    ]
    assert members(slots) == [1, 5]


def test_rows_and_pictures_are_bounded_and_the_longest_waiting_go_first() -> None:
    slots = [StandIn(i, key(), last_tick=10 - i) for i in range(6)]
    assert members(slots, max_batch=2) == [4, 5]
    assert members(slots, max_rows=6) == [3, 4, 5]
    assert members([StandIn(1, key(bucket=4)), StandIn(2, key(bucket=4)), StandIn(3, key(bucket=4))]) == [1, 2]


def test_a_guided_picture_runs_even_where_one_row_is_allowed() -> None:
    assert members([StandIn(1, key(), rows=2)], max_rows=1) == [1]


def test_a_bucket_never_holds_more_than_it_is_for() -> None:
    """Two pictures without guidance, each in a bucket of one row: together they would be drawn in another."""
    slots = [StandIn(1, key(bucket=1), rows=1), StandIn(2, key(bucket=1), rows=1)]
    assert members(slots) == [1]
    assert members([StandIn(1, key(), rows=1), StandIn(2, key(), rows=1)], max_rows=1) == [1]


def test_group_size_counts_the_competitors() -> None:
    slots: Any = [StandIn(1, key()), StandIn(2, key(96)), StandIn(3, key(alone=3)), StandIn(4, key(bucket=4))]
    assert group_size(slots, ticket(3.0), 0) == 2
    assert group_size(slots, ticket(3.0, strict=True), 0) == 1


@pytest.mark.parametrize(
    ("rows", "waiting", "expected"), [(2, 0, 2), (2, 3, 8), (1, 0, 1), (2, 100, 16), (2, 14, 16), (1, 1, 2)]
)
def test_a_new_bucket_holds_what_waits(rows: int, waiting: int, expected: int) -> None:
    assert choose_bucket(key(), rows, [], waiting, buckets=(1, 2, 4, 8, 16), max_rows=16) == expected


def test_a_bucket_under_way_with_room_is_joined() -> None:
    running: Any = [StandIn(1, key(bucket=8)), StandIn(2, key(bucket=8))]
    assert choose_bucket(key(), 2, running, 0, buckets=(2, 4, 8), max_rows=8) == 8
    full: Any = [StandIn(i, key(bucket=4)) for i in range(2)]
    assert choose_bucket(key(), 2, full, 0, buckets=(2, 4, 8), max_rows=8) == 2


def test_no_buckets_and_strict() -> None:
    assert choose_bucket(key(), 2, [], 9, buckets=(), max_rows=16) == 0
    assert choose_bucket(key(alone=4), 2, [], 9, buckets=(4, 8), max_rows=16) == 2


def test_rows_waiting() -> None:
    both = ticket(3.0, 1.0)
    waiting = [(both, 0), (both, 1), (ticket(3.0, side=96), 0), (ticket(3.0, strict=True), 0)]
    assert rows_waiting_for(key(), waiting) == 3
