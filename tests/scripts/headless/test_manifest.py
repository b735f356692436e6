from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from compositor.feed.entries import FeedEntry
from compositor.sources import Known, SourcePicture
from scripts.headless.manifest import Counts, Manifest, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def entries(*ids: str | None) -> Iterator[FeedEntry]:
    for position, name in enumerate(ids):
        code = None if name else "missing_id"
        yield FeedEntry(position, name, f"http://shop.test/{position}", {"title": "x"}, code, code and "No id.")


def begin(manifest: Manifest, *ids: str | None, inputs: str = "one") -> None:
    manifest.begin(inputs, entries(*ids), lambda: True)


@pytest.fixture
def manifest(tmp_path: Path) -> Iterator[Manifest]:
    with Manifest(tmp_path / "manifest.db") as opened:
        yield opened


def test_later_uses_of_an_id_are_skipped(manifest: Manifest) -> None:
    begin(manifest, "a", "b", "a", None, "a", None)
    assert [item.position for item in manifest.waiting()] == [0, 1]
    assert [(row[0], row[3], row[4]) for row in manifest.unframed()] == [
        (2, "skipped", "duplicate_id"),
        (3, "failed", "missing_id"),
        (4, "skipped", "duplicate_id"),
        (5, "failed", "missing_id"),
    ]


def test_counts_add_up_at_every_moment(manifest: Manifest) -> None:
    begin(manifest, "a", "b", "c", "d", "a", None)
    assert manifest.counts() == Counts(failed=1, skipped=1, waiting=4)
    manifest.settle(Outcome(0, ("x.jpg",)))
    manifest.settle(Outcome(1, ("y.jpg",), reused=True))
    manifest.settle(Outcome(2, code="source_not_found", reason="Gone."))
    counts = manifest.counts()
    assert counts == Counts(composed=1, reused=1, failed=2, skipped=1, waiting=1)
    assert (counts.total, counts.done) == (6, 5)
    assert [manifest.files(position) for position in (0, 2, 9)] == [["x.jpg"], [], []]
    assert list(manifest.framed())[1] == (1, "b", "http://shop.test/1", ["y.jpg"])


def test_what_is_taken_up_again(tmp_path: Path) -> None:
    with Manifest(tmp_path / "m.db") as first:
        assert not first.goes_on("one")
        begin(first, "a", "b", "c", "d", None)
        first.settle(Outcome(0, ("there.jpg",)))
        first.settle(Outcome(1, ("gone.jpg",), reused=True))
        first.settle(Outcome(2, code="source_timeout", reason="Slow."))
    with Manifest(tmp_path / "m.db") as second:
        assert second.goes_on("one")
        assert not second.goes_on("two")
        assert second.partial
        second.take_up({"there.jpg"})
        assert [item.position for item in second.waiting()] == [1, 2, 3]
        assert second.counts() == Counts(composed=1, failed=1, waiting=3)
        second.finish()
        assert not second.goes_on("one")


def test_a_feed_that_breaks_off_leaves_everything_as_it_was(manifest: Manifest) -> None:
    begin(manifest, "a", "b")
    manifest.settle(Outcome(0, ("x.jpg",)))

    def broken() -> Iterator[FeedEntry]:
        yield from entries("c")
        raise ValueError("cut off")

    with pytest.raises(ValueError, match="cut off"):
        manifest.begin("two", broken(), lambda: False)
    assert manifest.goes_on("one")
    assert [item.product_id for item in manifest.waiting()] == ["b"]
    assert manifest.files(0) == ["x.jpg"]


def test_pictures_are_known_across_runs_and_fresh_in_one(manifest: Manifest) -> None:
    url = "http://shop.test/0"
    begin(manifest, "a")
    assert manifest.known(url) == (None, False)
    manifest.remember(url, SourcePicture(None, "5" * 64, '"1"', None, 7, unchanged=False))
    known = Known("5" * 64, '"1"', None, 7)
    assert manifest.known(url) == (known, True)
    begin(manifest, "a", inputs="two")
    assert manifest.known(url) == (known, False)


def test_many_entries_are_paged_while_they_change(manifest: Manifest) -> None:
    begin(manifest, *(str(number) for number in range(1203)))
    seen = []
    for item in manifest.waiting():
        seen.append(item.position)
        manifest.settle(Outcome(item.position, ("x",)))
    assert seen == list(range(1203))


def test_reasons_of_failures_are_counted_the_commonest_first(manifest: Manifest) -> None:
    begin(manifest, "a", "b", "c", None, "a")
    for position, reason in enumerate(("Gone.", "Too large.", "Gone.")):
        manifest.settle(Outcome(position, code="source", reason=reason))
    assert manifest.reasons() == [(2, "source", "Gone."), (1, "missing_id", "No id."), (1, "source", "Too large.")]
