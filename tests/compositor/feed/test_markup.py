from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree  # type: ignore[import-untyped] # it ships no types

from compositor.feed.elements import elements
from compositor.feed.markup import Scanner, escape, unescape

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXTS = st.one_of(
    st.text(alphabet="ab &<>'\"]é\u20ac\n", max_size=12).map(escape),
    st.text(alphabet="ab &<>'\"/!-?", max_size=12).map(lambda text: f"<![CDATA[{text}]]>"),
    st.sampled_from(["<!-- <item> </item> -->", "<?pi </item> ?>", "&#65;", "&#x20AC;", "<b>in</b>", "<item/>"]),
)
ATTRIBUTES = st.sampled_from(["", " ", ' a="x > y"', " a='</item>'".replace("<", "&lt;"), ' q:a="1"'])
CHILDREN = st.builds(
    lambda name, attributes, texts: f"<{name}{attributes}>{''.join(texts)}</{name}>",
    st.sampled_from(["id", "g:id", "g:image_link", "title", "item_group", "g:item", "Size"]),
    ATTRIBUTES,
    st.lists(TEXTS, max_size=4),
)
ITEMS = st.builds(
    lambda attributes, parts: f"<item{attributes}>{''.join(parts)}</item>",
    ATTRIBUTES,
    st.lists(st.one_of(CHILDREN, st.sampled_from(["\n ", "<g:x/>", "<!-- c -->"])), max_size=6),
)
BETWEEN = st.lists(st.sampled_from(["\n", "<!-- <item> -->", "<other>x</other>", "<?x <item> ?>"]), max_size=2).map(
    "".join
)
DOCUMENTS = st.lists(st.tuples(BETWEEN, ITEMS), max_size=5).map(
    lambda pairs: '<rss xmlns:g="u" xmlns:q="v"><channel>' + "".join(a + b for a, b in pairs) + "</channel></rss>"
)


def in_chunks(text: str, size: int) -> Iterator[str]:
    return (text[at : at + size] for at in range(0, len(text), size))


@given(DOCUMENTS, st.integers(1, 60))
@settings(max_examples=150, deadline=None)
def test_pieces_make_up_the_document_and_agree_with_lxml(document: str, size: int) -> None:
    scanner = Scanner("item", "rss")
    pieces = [piece for chunk in in_chunks(document, size) for piece in scanner.feed(chunk)]
    assert "".join(map("".join, pieces)) + scanner.rest == document
    parser = etree.XMLParser(remove_comments=True, remove_pis=True)
    items = etree.fromstring(document.encode(), parser)[0].findall("item")
    assert len(pieces) == len(items)
    for piece, item in zip(pieces, items, strict=True):
        children = [element for element in elements(piece.inner) if element.depth == 1]
        assert [element.name.rpartition(":")[2] for element in children] == [
            etree.QName(one).localname for one in item
        ]
        for element, one in zip(children, item, strict=True):
            if not len(one):
                assert element.text == (one.text or "").strip()


@given(st.text(max_size=40))
def test_escaping_survives_a_parser(text: str) -> None:
    parsed = etree.fromstring(f"<a>{escape(text)}</a>".encode()).text or ""
    assert unescape(escape(text)).replace("\r\n", "\n").replace("\r", "\n") == parsed


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a&amp;lt;b", "a&lt;b"),
        ("&lt;&gt;&quot;&apos;", "<>\"'"),
        ("&#228;&#xE4;&#XE4;", "äää"),
        ("&nbsp;&euro;", "\xa0€"),
        ("a & b &copy=2 &unknown; &", "a & b &copy=2 &unknown; &"),
        ("&#0;&#xD800;&#x110000;&#9999999;", ""),
    ],
)
def test_references(text: str, plain: str) -> None:
    assert unescape(text) == plain
