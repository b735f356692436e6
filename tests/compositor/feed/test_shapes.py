from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compositor.feed.errors import FeedLimits
from compositor.feed.fields import Names, read_fields
from compositor.feed.markup import escape
from compositor.feed.products import ProductDocument
from compositor.feed.shapes import Child, Shape, Shapes, merged_order

HEAD = '<rss xmlns:g="http://base.google.com/ns/1.0" xmlns:media="m"><channel>'
TEXTS = st.one_of(
    st.text(alphabet="ab &<>'\"]é€\n", max_size=12).map(escape),
    st.text(alphabet="ab &<>'\"/!-?", max_size=12).map(lambda text: f"\n<![CDATA[{text}]]>"),
    st.sampled_from(
        ["", "<![CDATA[</item><item>]]>", "<!-- </item> -->", "a<![CDATA[b]]>&amp;", "<b>in</b>", "<item/>"]
    ),
)
NAMES = ["g:id", "title", "g:title", "g:price", "link", "g:image_link", "g:size"]
ODD = st.sampled_from(
    [
        "<link href='x'/>",
        '<link rel="alternate" href="https://x.test/"/>',
        '<link href="y">text</link>',
        "<g:shipping> <g:country>DE</g:country><g:price>5</g:price>\n</g:shipping>",
        "<g:shipping><g:price>6</g:price></g:shipping>",
        "<g:shipping>plain</g:shipping>",
        "<g:shipping>mixed<g:price>6</g:price></g:shipping>",
        "<g:shipping><g:price><g:deep>6</g:deep></g:price></g:shipping>",
        "<g:more>1</g:more><g:more>2</g:more>",
        "<g:more> </g:more><g:more>2</g:more>",
        "<g:more/>",
        "<g:more/><g:more>1</g:more><g:more>2</g:more>",
        "<g:image_link/>",
        '<media:content url="https://x.test/m" medium="image"/>',
        '<enclosure type="image/png" url="https://x.test/e"></enclosure>',
    ]
)
CHILD = st.builds(lambda name, text: f"<{name}>{text}</{name}>", st.sampled_from(NAMES), TEXTS)
ITEM = st.builds(
    lambda children, before: f"{before}<item>{''.join(children)}</item>",
    st.lists(st.one_of(CHILD, CHILD, st.just("\n "), ODD), max_size=7),
    st.sampled_from(["", "\n", "<!-- <item> -->", "<other>x</other>"]),
)


@given(st.lists(ITEM, min_size=1, max_size=12))
@settings(max_examples=400, deadline=None)
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


@given(st.lists(ITEM, min_size=1, max_size=12))
@example(["<item><g:more/><g:more>1</g:more><g:more>2</g:more></item>"])
@settings(max_examples=200, deadline=None)
def test_wanted_fields_are_what_they_are_among_all(items: list[str]) -> None:
    wanted = {"id", "image_link", "title", "more"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "feed"
        path.write_text(f"{HEAD}{''.join(items * 2)}</channel></rss>", encoding="utf-8")
        some = list(ProductDocument(path, FeedLimits(), wanted.__contains__).fields())
        document = ProductDocument(path, FeedLimits())
        slow = [read_fields(piece, Names(HEAD + "".join(NAMES)), tolerant=False) for piece in document.pieces()]
    assert [{k: v for k, v in one.items() if v and k in wanted} for one in some] == [
        {k: v for k, v in one.items() if v and k in wanted} for one in slow
    ]


def test_a_shape_leaves_what_it_does_not_know_to_others() -> None:
    shape = Shape("item", {"g:id": Child("id"), "title": Child("title")})
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
        "\xa0<item></item>",
        "<item><title>x</title\xa0></item>",
    ):
        assert shape.match(other, 0) is None


def test_orders_merge_where_they_agree() -> None:
    assert merged_order("ac", "abcd") == ["a", "b", "c", "d"]
    assert merged_order("ac", "xc") == ["x", "a", "c"]
    assert merged_order("ac", "ca") is None


def test_only_wanted_fields_are_taken_and_sections_only_where_they_were_met() -> None:
    shapes = Shapes(wanted={"id", "text"}.__contains__)
    shapes.learn("item", {"g:id": Child("id"), "link": Child("link"), "text": Child("text", cdata=True)})
    shape = shapes.latest
    assert shape is not None
    entry = "<item><g:id>1</g:id><link>a&amp;b</link><text> <![CDATA[ <b>&amp;</b> ]]>\n</text></item>"
    assert shape.match(entry, 0) == ({"id": "1", "text": "<b>&amp;</b>"}, len(entry))
    assert shape.match(entry.replace("1<", "<![CDATA[1]]><"), 0) is None


PICTURE = "<image_link>https://x.test/1</image_link>"
KINDS = {
    "image_link": Child("image_link"),
    "more": Child("more", repeats=True),
    "ship": Child("ship", cdata=True, repeats=True, inside=("to", "cost")),
    "media": Child("media", empty=True, attributes=("url", "type")),
}


@pytest.mark.parametrize(
    ("inner", "fields"),
    [
        ("<more>1</more> <more>2</more><more/>", None),
        ("<more>1</more> <more>2</more>\n", {"more": "1"}),
        ("<more> </more><more>2</more>", None),
        ("<ship> <to>DE</to>\n<cost>5 &amp; 6</cost></ship><ship>x</ship>", {"ship": "DE:5 & 6"}),
        ("<ship><cost><![CDATA[5 & 6]]></cost></ship>", {"ship": "5 & 6"}),
        ("<ship><![CDATA[<to>5</to>]]></ship>", {"ship": "<to>5</to>"}),
        ("<ship><![CDATA[a]]>b</ship>", {"ship": "ab"}),
        ("<ship><to>DE</cost></ship>", None),
        ("<ship>x<to>DE</to></ship>", None),
        ("<ship><to>DE</to>x</ship>", None),
        ("<ship><to a='b'>DE</to></ship>", None),
        ('<media url="a" type="b"/>', {}),
        ('<media type="b">x</media >', {"media": "x"}),
        ('<media type="b" url="a"/>', None),
        ('<media url="a" url="b"/>', None),
        ('<media url="<"/>', None),
        ('<media url="a"type="b"/>', None),
        ("<media url='a'/>", None),
        ("<media / >", None),
    ],
)
def test_kinds_of_children(inner: str, fields: dict[str, str] | None) -> None:
    entry = f"<item>{PICTURE}{inner}</item>"
    found = Shape("item", KINDS).match(entry, 0)
    assert found == (None if fields is None else ({"image_link": "https://x.test/1", **fields}, len(entry)))


def test_where_an_attribute_may_have_the_picture_the_long_way_looks() -> None:
    assert Shape("item", KINDS).match("<item><media url='a'/></item>", 0) is None
    assert Shape("item", KINDS).match("<item><more>1</more></item>", 0) is None
    linked = Shape(
        "item", {"image_link": Child("image_link"), "link": Child("link", empty=True, attributes=("href",))}
    )
    for inner, matches in (('<link href="a">b</link>', True), ('<link href="a"/>', False), ("", False)):
        assert (linked.match(f"<item>{PICTURE}{inner}</item>", 0) is not None) == matches


@pytest.mark.parametrize("name", ["1a", "a:b:c", "a\xa0", "-a", ":a", "a:", "\xd7"])
def test_names_that_may_not_be_xmls_are_not_learned(name: str) -> None:
    shapes = Shapes()
    shapes.learn("item", {"id": Child("id"), name: Child("x")})
    shapes.learn(name, {"id": Child("id")})
    shapes.learn("item", {"id": Child("id", inside=(name,))})
    shapes.learn("item", {"id": Child("id", attributes=(name,))})
    assert shapes.latest is None
