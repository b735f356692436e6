from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scripts.bench_ingest import kind_of
from scripts.ingesting import parsing
from scripts.ingesting.feeds import KINDS, write_feed
from scripts.ingesting.memory import GOAL_MB, Memory
from scripts.ingesting.steps import INGEST, PARSE, PUBLISH, measured

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("kind", KINDS)
def test_every_reader_finds_every_entry(tmp_path: Path, kind: str) -> None:
    write_feed(tmp_path / "feed.xml", 120, kind)
    seconds = parsing.compare(tmp_path / "feed.xml", 120, 1)
    assert list(seconds) == list(parsing.CONTESTANTS)


def test_a_reader_that_finds_another_number_is_not_compared(tmp_path: Path) -> None:
    write_feed(tmp_path / "feed.xml", 12, "plain")
    with pytest.raises(RuntimeError):
        parsing.compare(tmp_path / "feed.xml", 13, 1)


def test_memory_counts_from_now_on() -> None:
    block = bytearray(64 << 20)
    memory = Memory()
    assert memory.idle_mb > 64
    assert memory.above_mb < 32
    block += bytes(48 << 20)
    assert memory.above_mb > 32


def test_a_whole_run_is_measured_step_by_step(tmp_path: Path) -> None:
    write_feed(tmp_path / "feed.xml", 2500, "mixed")
    steps = {one.step: one for one in measured(tmp_path / "feed.xml", None, publish=True)}
    assert list(steps) == [PARSE, INGEST, PUBLISH]
    assert {one.entries for one in steps.values()} == {2500}
    assert all(one.seconds > 0 and one.cpu_s > 0 for one in steps.values())
    assert steps[INGEST].longest_s > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_entries_become_rows_in_little_memory(tmp_path: Path) -> None:
    """By the code of the jobs."""
    write_feed(tmp_path / "feed.xml", 1_000_000, "mixed")
    for one in measured(tmp_path / "feed.xml", None):
        assert one.entries == 1_000_000
        assert one.above_mb <= GOAL_MB, one


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_publishing_needs_no_more_for_more_entries(tmp_path: Path) -> None:
    """A million would take minutes. Fewer show as much when they may hold less: no 100 bytes for each entry."""
    write_feed(tmp_path / "feed.xml", 200_000, "mixed")
    published = measured(tmp_path / "feed.xml", None, publish=True)[-1]
    assert (published.step, published.entries) == (PUBLISH, 200_000)
    assert published.above_mb <= 48, published  # buffers and caches take 30


def test_databases_are_told_apart() -> None:
    assert kind_of(None) == "sqlite"
    assert kind_of("postgresql://igen:secret@/x") == "postgresql"
