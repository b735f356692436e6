"""The verdict is lxml's, though lxml is not shown everything: whole feeds are judged both ways."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lxml import etree  # type: ignore[import-untyped] # it ships no types

from compositor.feed import products, source
from compositor.feed.errors import FeedError, FeedLimits
from compositor.feed.judge import Judge
from compositor.feed.products import ProductDocument

HEAD = '<rss xmlns:g="http://base.google.com/ns/1.0"><channel>'
ENTRY = "<item><g:id>1</g:id><title>{}</title><g:price>5</g:price></item>\n"
ODD_TEXTS = [
    *(
        "plain",
        "",
        " \t\r\n",
        "a &amp; b",
        "&lt;&gt;&quot;&apos;",
        "&#65;",
        "&#x41;",
        "&#xFFFD;",
        "&#1114111;",
        "]]",
        "]>",
    ),
    *("a & b", "&", "&;", "&amp", "&nbsp;", "&Amp;", "&#0;", "&#8;", "&#31;", "&#xD800;", "&#xFFFE;", "&#x110000;"),
    *(
        "&#X41;",
        "&#;",
        "&#x;",
        "&# 65;",
        "&#9;",
        "&#00009;",
        "&#55295;",
        "&#55296;",
        "&#49999;",
        "&#50000;",
        "]]>",
        "a]]>b",
    ),
    *("\x01", "\x7f", "\x85", "\xa0", "\ufffd", "\ufffe", "\uffff", "\U0001f600", "\x0b", "\x1f", ">", "\"'"),
    *(
        "<![CDATA[]]>",
        "<![CDATA[a & b]]>",
        "<![CDATA[]]]]>",
        "<![CDATA[\x02]]>",
        "<![CDATA[x]]>]]>",
        "x<![CDATA[y]]>&bad;",
    ),
    *(
        "<![CDATA[<![CDATA[]]>",
        "<![CDATA[<!-- ]]>",
        "<!-- c -->",
        "<!-- a -- b -->",
        "<!-- <![CDATA[ -->",
        "<!-- ]]> -->",
    ),
    *(
        "<?p <![CDATA[ ?>",
        "<?p ]]>?>",
        "<?xml a?>",
        "<b>x</b>",
        "<b>x",
        "</b>",
        "<b a='<![CDATA['/>",
        "<b a=']]>'/>",
        "<1/>",
    ),
    *("</title><title>", "<item/>", "<", "< a>", "<!x>", "<![CDATA[", "<!--", "<?p"),
]
TEXTS = st.one_of(
    st.sampled_from(["plain", "a &amp; b", "<![CDATA[a & b]]>"]),
    st.sampled_from(ODD_TEXTS),
    st.text(alphabet="ab&;#x19<>]![C -?\x01\n\xe9\ufffe", max_size=8),
)
BETWEEN = st.sampled_from(
    ["", "", "\n", "<x/>", "<!-- <![CDATA[ -->", "<!-- ]]> -->", "&bad;", "<a b='<![CDATA['>", "\xa0"]
)


def well_formed(document: str) -> bool:
    parser = etree.XMLParser(no_network=True, resolve_entities=False)
    try:
        etree.fromstring(document.encode(), parser)
    except etree.XMLSyntaxError:
        return False
    return True


def partial(document: str, *, pieces: bool = False) -> bool:
    """Whether the feed was found ill-formed; one that is cut short is."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "feed"
        path.write_bytes(document.encode())
        read = ProductDocument(path, FeedLimits())
        try:
            _ = list(read.pieces() if pieces else read.fields())
        except FeedError:
            return True
    return read.partial


@given(st.lists(st.tuples(BETWEEN, TEXTS), min_size=1, max_size=12), st.integers(20, 400))
@example([("", "plain"), ("", "a & b")], 65536)
@example([("", "plain"), ("<!-- <![CDATA[ -->", "a & b"), ("<!-- ]]> -->", "")], 65536)
@example([("", "<![CDATA[x]]>"), ("", "<![CDATA[<![CDATA[]]>"), ("", "]]>")], 65536)
@settings(max_examples=400, deadline=None)
def test_the_verdict_is_lxmls_whatever_stands_where(parts: list[tuple[str, str]], chunk: int) -> None:
    document = HEAD + ENTRY.format("first") + "".join(a + ENTRY.format(b) for a, b in parts) + "</channel></rss>"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "CHUNK_BYTES", chunk)
        patch.setattr(products, "CHUNK_BYTES", chunk)
        assert partial(document) == (not well_formed(document))
        assert partial(document, pieces=True) == (not well_formed(document))


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_every_odd_text_among_many_good_entries(text: str) -> None:
    """After enough entries for a pattern, and with enough behind it for no chunk's end to be near."""
    good = ENTRY.format("good") * 40
    document = HEAD + ENTRY.format("<![CDATA[x]]>") + good + ENTRY.format(text) + good + "</channel></rss>"
    assert partial(document) == (not well_formed(document))


@pytest.mark.parametrize("text", ["plain &amp; good", "<![CDATA[plain & good]]>", "\xe9\u20ac\U0001f600 ] ! ?"])
def test_usual_entries_are_vouched_for_without_the_parser(text: str) -> None:
    judge, buffer = Judge(), ENTRY.format(text) * 3 + "<item>&cut"
    judge.hear(buffer.encode(), buffer)
    assert judge.vouched(buffer, "item") == (0, buffer.rindex("\n"))


@pytest.mark.parametrize(
    "text", ["a & b", "\x01", "\ufffe", "]]>", "<!-- -->", "<?p?>", "&nbsp;", "&#0;", "<![CDATA["]
)
def test_doubtful_ones_are_not(text: str) -> None:
    judge, buffer = Judge(), ENTRY.format(text) * 3
    judge.hear(buffer.encode(), buffer)
    assert judge.vouched(buffer, "item") == (0, 0)


def test_an_entry_that_reaches_back_into_a_bad_chunk_is_doubtful() -> None:
    judge, first, second = Judge(), "<item><id>\x01", "</id></item>"
    judge.hear(first.encode(), first)
    judge.hear(second.encode(), second)
    assert judge.vouched(first + second, "item") == (0, 0)
    judge.hear(second.encode(), second)
    assert judge.vouched(second * 2, "item") == (0, 2 * len(second))


def test_the_objection_comes_with_the_entry() -> None:
    """Not with what follows: a parser that is fed piecemeal holds an ampersand back until it sees a semicolon."""
    judge = Judge()
    assert judge.approves(HEAD, 0, len(HEAD))
    entry = ENTRY.format("a & b")
    assert not judge.approves(HEAD + entry, len(HEAD), len(HEAD + entry))
