from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import pytest

from compositor.feed.reader import FeedError, FeedLimits, open_feed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Writer = Callable[[str | bytes], Path]


def code_of(path: Path, **limits: int) -> str:
    with pytest.raises(FeedError) as failure:
        list(open_feed(path, FeedLimits(**limits)))
    return failure.value.code


@pytest.mark.parametrize(("mark", "kind"), [(",", "csv"), ("\t", "tsv"), (";", "csv"), ("|", "csv")])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_delimiters_and_line_ends(feed_file: Writer, mark: str, kind: str, end: str) -> None:
    rows = [
        ["g:ID", "Title", '"image link"', "price"],
        ["1", f'"a{mark}b ""c""{end}d"', "https://x.test/1", "5"],
        [],
        ["2", "", "https://x.test/2", ""],
    ]
    reader = open_feed(feed_file(end.join(mark.join(row) for row in rows) + end))
    entries = list(reader)
    assert (reader.kind, reader.partial) == (kind, False)
    assert entries[0].fields == {
        "id": "1",
        "title": f'a{mark}b "c"{end}d',
        "image_link": "https://x.test/1",
        "price": "5",
    }
    assert [(one.position, one.product_id, one.code) for one in entries] == [(0, "1", None), (1, "2", None)]


def test_bad_rows_are_their_own_outcome(feed_file: Writer) -> None:
    text = "id,image_link,title\n,https://x.test/1,a\n2,,b\n3,/3.jpg,c\n4\n5,https://x.test/5,d,more,cells\n"
    assert [one.code for one in open_feed(feed_file(text))] == [
        "missing_id",
        "missing_image",
        "relative_url",
        "missing_image",
        None,
    ]


def test_several_pictures_in_a_cell(feed_file: Writer) -> None:
    text = 'id,image_link,additional_image_link\n1,https://x.test/1,"https://x.test/a, https://x.test/b"\n'
    assert next(iter(open_feed(feed_file(text)))).fields["additional_image_link"] == "https://x.test/a"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(feed_file: Writer, encoding: str) -> None:
    text = "id,title,image_link\n" + "1,Größe €,https://x.test/1\n" * 5000
    for data in (text.encode(encoding), gzip.compress(text.encode(encoding))):
        reader = open_feed(feed_file(data))
        assert {one.fields["title"] for one in reader} == {"Größe €"}
        assert (reader.count, reader.partial) == (5000, False)


def test_windows_1252_is_partial(feed_file: Writer) -> None:
    reader = open_feed(feed_file("id,title,image_link\n1,Größe €,https://x.test/1\n".encode("cp1252")))
    assert [one.fields["title"] for one in reader] == ["Größe €"]
    assert reader.partial


def test_nul_characters_are_dropped(feed_file: Writer) -> None:
    assert next(iter(open_feed(feed_file("id,image_link\n1\0,https://x.test/1\n")))).product_id == "1"


@pytest.mark.parametrize(
    "tail", ['2,"https://x.test', "2", "2,https://x.test/2"], ids=["in-quotes", "in-row", "in-last-but-one"]
)
def test_a_cut_table_is_an_error(feed_file: Writer, tail: str) -> None:
    assert code_of(feed_file(f"id,image_link,title\n1,https://x.test/1,a\n{tail}")) == "feed_truncated"


def test_a_last_row_without_line_end_counts(feed_file: Writer) -> None:
    text = "id,image_link\n1,https://x.test/1\n2,https://x.test/2"
    assert [one.product_id for one in open_feed(feed_file(text))] == ["1", "2"]


def test_limits(feed_file: Writer) -> None:
    path = feed_file("id,image_link\n" + "1,https://x.test/1\n" * 10)
    assert code_of(path, max_items=9) == "feed_too_many_items"
    assert code_of(path, max_bytes=100) == "feed_too_large"
    assert code_of(feed_file("id,image_link\n1," + "a" * 3_000_000)) == "feed_entry_too_large"
    assert code_of(feed_file('id,image_link\n1,"' + "a\n" * 200_000)) == "feed_bad_table"
    assert code_of(feed_file("id" + ",a" * 2000 + "\n")) == "feed_bad_table"
