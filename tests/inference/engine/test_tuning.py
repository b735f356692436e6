from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from inference.engine.tuning import Tuned, choose_buckets, fastest, median_s, read_table, write_table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class FakeTimer:
    """Calls nothing that takes time: each candidate is a function that returns how long it would take."""

    @staticmethod
    def time_of(call: Callable[[], object]) -> float:
        seconds = call()
        assert isinstance(seconds, float)
        return seconds


def refuse() -> object:
    raise RuntimeError("no kernel for this device")


def test_the_fastest_wins() -> None:
    runs: dict[str, Callable[[], object]] = {"plain": lambda: 1.0, "second": lambda: 0.5, "third": lambda: 0.7}
    assert fastest(runs, FakeTimer.time_of) == "second"


def test_what_is_hardly_faster_than_the_plain_one_is_not_worth_it() -> None:
    assert fastest({"plain": lambda: 1.0, "other": lambda: 0.99}, FakeTimer.time_of) == "plain"
    assert fastest({"plain": lambda: 1.0, "other": lambda: 0.97}, FakeTimer.time_of) == "other"


def test_what_does_not_run_is_passed_over_but_the_plain_one_must() -> None:
    assert fastest({"plain": lambda: 1.0, "broken": refuse}, FakeTimer.time_of) == "plain"
    with pytest.raises(RuntimeError, match="no kernel"):
        fastest({"plain": refuse, "other": lambda: 1.0}, FakeTimer.time_of)


def test_the_first_call_is_not_counted() -> None:
    calls: list[int] = []
    seconds = iter([3.0, 1.0, 2.0])

    def clock(call: Callable[[], object]) -> float:
        call()
        return next(seconds)

    assert median_s(lambda: calls.append(1), clock) == 2.0
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("step_ms", "expected"),
    [
        ({2: 50.0, 4: 95.0, 8: 180.0}, (2, 4, 8)),
        ({1: 49.0, 2: 50.0, 4: 95.0}, (2, 4)),  # one row takes as long as two
        ({2: 50.0, 4: 51.0, 8: 52.0}, (8,)),
        ({}, ()),
    ],
)
def test_buckets_are_the_sizes_that_gain_something(step_ms: dict[int, float], expected: tuple[int, ...]) -> None:
    assert choose_buckets(step_ms) == expected


def test_a_table_answers_for_its_device_and_torch_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tuning.json"
    tuned = Tuned("H100", "2.11", "2026-11-22", {"attention": "cudnn", "fused_qkv": True}, (2, 4))
    write_table(path, Tuned("A100", "2.11", levers={"attention": "flash"}))
    write_table(path, Tuned("H100", "2.11", levers={"attention": "flash"}))
    write_table(path, tuned)
    assert read_table(path, "H100", "2.11") == tuned
    assert read_table(path, "A100", "2.11") == Tuned("A100", "2.11", levers={"attention": "flash"})
    assert read_table(path, "H100", "2.12") is None
    assert len(json.loads(path.read_text())["entries"]) == 2
    assert read_table(None, "H100", "2.11") is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"entries": 3}', '{"entries": [3]}', "\udcff"])
def test_a_damaged_table_is_as_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert read_table(path, "H100", "2.11") is None


def test_senseless_values_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    levers = {"attention": "magic", "fused_qkv": 1, "cuda_graphs": True, "colour": "red", "compile": ["off"]}
    entry = {"device": "H100", "torch": "2.11", "levers": levers, "buckets": [0, 4]}
    path.write_text(json.dumps({"entries": [entry]}))
    assert read_table(path, "H100", "2.11") == Tuned("H100", "2.11", levers={"cuda_graphs": True})
