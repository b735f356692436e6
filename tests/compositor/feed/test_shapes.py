from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from compositor.feed.errors import FeedLimits
from compositor.feed.fields import Names, read_fields
from compositor.feed.markup import escape
from compositor.feed.products import ProductDocument
from compositor.feed.shapes import Shape

HEAD = '<rss xmlns:g="http://base.google.com/ns/1.0"><channel>'
TEXTS = st.one_of(
    st.text(alphabet="ab &<>'\"]é€\n", max_size=12).map(escape),
    st.text(alphabet="ab &<>'\"/!-?", max_size=12).map(lambda text: f"\n<![CDATA[{text}]]>"),
    st.sampled_from(
        ["", "<![CDATA[</item><item>]]>", "<!-- </item> -->", "a<![CDATA[b]]>&amp;", "<b>in</b>", "<item/>"]
    ),
)
NAMES = ["g:id", "title", "g:title", "g:price", "link", "g:image_link", "g:size"]
CHILD = st.builds(lambda name, text: f"<{name}>{text}</{name}>", st.sampled_from(NAMES), TEXTS)
ITEM = st.builds(
    lambda children, before: f"{before}<item>{''.join(children)}</item>",
    st.lists(st.one_of(CHILD, CHILD, st.sampled_from(["\n ", "<link href='x'/>"])), max_size=7),
    st.sampled_from(["", "\n", "<!-- <item> -->", "<other>x</other>"]),
)


@given(st.lists(ITEM, min_size=1, max_size=12))
@settings(max_examples=250, deadline=None)
def test_the_quick_way_reads_what_the_long_way_reads(items: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "feed"
        path.write_text(f"{HEAD}{''.join(items)}</channel></rss>", encoding="utf-8")
        document = ProductDocument(path, FeedLimits())
        quick = list(document.fields())
        slow = [read_fields(piece, Names(HEAD + "".join(NAMES)), tolerant=False) for piece in document.pieces()]
    assert not document.partial
    assert [{k: v for k, v in one.items() if v} for one in quick] == [
        {k: v for k, v in one.items() if v} for one in slow
    ]


def test_a_shape_leaves_what_it_does_not_know_to_others() -> None:
    shape = Shape("item", ("g:id", "title"), ["id", "title"], sections=False)
    entry = "\n <item> <g:id> 1&amp;2</g:id ><title>x</title>\n</item>"
    assert shape.match(f"ab{entry}cd", 2) == ({"id": "1&2", "title": "x"}, 2 + len(entry))
    assert shape.match("<item><title>x</title></item>", 0) == ({"title": "x"}, 29)
    for other in (
        "<item><title>x</title><g:id>1</g:id></item>",
        "<item><title>x</title><title>y</title></item>",
        "<item><title a='b'>x</title></item>",
        "<item><title><![CDATA[x]]></title></item>",
        "<item><title>x</title>",
        "<item>x</item>",
        "<item a='b'></item>",
        "x<item></item>",
    ):
        assert shape.match(other, 0) is None


def test_shapes_merge_where_their_orders_agree() -> None:
    shape = Shape("item", ("a", "c"), ["a", "c"], sections=False)
    assert shape.merged(("a", "b", "c", "d")) == ("a", "b", "c", "d")
    assert shape.merged(("x", "c")) == ("x", "a", "c")
    assert shape.merged(("c", "a")) is None
