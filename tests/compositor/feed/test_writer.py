from __future__ import annotations

import csv
import gzip
import io
from typing import TYPE_CHECKING

import pytest
from lxml import etree  # type: ignore[import-untyped] # it ships no types

from compositor.feed.errors import FeedError
from compositor.feed.reader import open_feed
from compositor.feed.writer import feed_as_csv, inert, rewrite_feed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from compositor.feed.edit import Mode

    Writer = Callable[[str | bytes], Path]

G = "http://base.google.com/ns/1.0"
FEED = f"""<?xml version="1.0" encoding="UTF-8"?>
<?xml-stylesheet href="a.xsl"?>
<!-- made by a shop -->
<feed xmlns="http://www.w3.org/2005/Atom" xmlns:g='{G}' a="b > c">
  <title>Shop &amp; Co</title>
  <entry xml:lang="de" >
    <g:id>1</g:id>
    <title><![CDATA[<b>Schön</b> & gut]]></title>
    <!-- <g:image_link>no</g:image_link> -->
    <g:image_link kind="x"><![CDATA[https://x.test/1.jpg?a=1&b=2]]></g:image_link>
    <g:additional_image_link>https://x.test/1b.jpg</g:additional_image_link>
    <g:shipping><g:price>5 EUR</g:price></g:shipping>
  </entry>
  <!-- between -->
  <entry><g:id>2</g:id><g:image_link>https://x.test/2.jpg</g:image_link></entry>
  <entry><g:id>3</g:id></entry>
  <entry/>
</feed>
<!-- end -->
"""


def links_of(**of: Sequence[str]) -> Callable[[int], Sequence[str] | None]:
    return lambda position: of.get(f"n{position}")


def rewritten(source: Path, mode: Mode = "replace", **of: Sequence[str]) -> str:
    target = source.with_name("out.xml")
    rewrite_feed(source, target, links_of(**of), mode)
    assert [one.name for one in source.parent.glob("*.part")] == []
    text = target.read_bytes().decode()
    etree.fromstring(text.encode())
    return text


def test_without_links_every_character_is_kept(feed_file: Writer) -> None:
    assert rewritten(feed_file(FEED)) == FEED


def test_only_the_links_change(feed_file: Writer) -> None:
    text = rewritten(feed_file(FEED), n0=["https://i.test/a?x=1&y=2"], n1=["https://i.test/b"])
    expected = FEED.replace("<![CDATA[https://x.test/1.jpg?a=1&b=2]]>", "https://i.test/a?x=1&amp;y=2").replace(
        "https://x.test/2.jpg", "https://i.test/b"
    )
    assert text == expected


def test_further_sizes_become_additional_pictures(feed_file: Writer) -> None:
    text = rewritten(feed_file(FEED), n0=["https://i.test/a", "https://i.test/b"])
    assert '<g:image_link kind="x">https://i.test/a</g:image_link>' in text
    added = "\n    <g:additional_image_link>https://i.test/b</g:additional_image_link>"
    assert f"</g:image_link>{added}\n    <g:additional_image_link>https://x.test/1b.jpg" in text


def test_additional_mode_keeps_the_picture(feed_file: Writer) -> None:
    text = rewritten(feed_file(FEED), "additional", n1=["https://i.test/a"])
    assert text == FEED.replace(
        "https://x.test/2.jpg</g:image_link>",
        "https://x.test/2.jpg</g:image_link><g:additional_image_link>https://i.test/a</g:additional_image_link>",
    )


def test_an_entry_without_the_element_gets_one(feed_file: Writer) -> None:
    text = rewritten(feed_file(FEED), n2=["https://i.test/a"], n3=["https://i.test/b"])
    assert "<g:id>3</g:id><g:image_link>https://i.test/a</g:image_link></entry>" in text
    assert "<entry><g:image_link>https://i.test/b</g:image_link></entry>" in text


@pytest.mark.parametrize("form", ["bare", "atom-prefix", "own-declaration"])
def test_names_are_written_as_the_entry_has_them(feed_file: Writer, form: str) -> None:
    head, before, space = {
        "bare": (f'<feed xmlns:g="{G}" xmlns="http://www.w3.org/2005/Atom"><entry>', "", ""),
        "atom-prefix": ('<a:feed xmlns:a="http://www.w3.org/2005/Atom"><a:entry>', "a:", ""),
        "own-declaration": ("<feed><entry>", "q:", f' xmlns:q="{G}"'),
    }[form]
    end = "</a:entry></a:feed>" if form == "atom-prefix" else "</entry></feed>"
    source = f"{head}<{before}id{space}>1</{before}id><{before}image_link{space}>https://x.test/1</{before}image_link>{end}"
    text = rewritten(feed_file(source), n0=["https://i.test/a", "https://i.test/b"])
    assert [one.image_url for one in open_feed(feed_file(text))] == ["https://i.test/a"]
    assert f"<{before}additional_image_link{space}>https://i.test/b</{before}additional_image_link>" in text


def test_other_encodings_come_out_as_utf_8(feed_file: Writer) -> None:
    source = FEED.replace("UTF-8", "windows-1252")
    assert rewritten(feed_file(source.encode("cp1252"))) == FEED
    assert rewritten(feed_file(source.replace("windows-1252", "UTF-16").encode("utf-16"))) == FEED
    assert rewritten(feed_file(gzip.compress(b"\xef\xbb\xbf" + FEED.encode()))) == FEED


BROKEN = [
    "<title>Tom & Jerry</title>",
    "<title>Tom&nbsp;&auml;&amp;<![CDATA[a & b]]></title>",
    "<title>Tom\x01</title>",
    "<title>Tom",
    "</b><title>x</titel>",
    '<title a="1" a="2">Tom</title>',
    "<a&b>x</a&b>",
]


@pytest.mark.parametrize("inner", BROKEN)
@pytest.mark.parametrize("junk", ["", "<br>Warning: & <b>\n"])
def test_a_broken_feed_comes_out_well_formed_and_complete(feed_file: Writer, inner: str, junk: str) -> None:
    entry = "<item><g:id>{}</g:id>{}<g:image_link>https://x.test/1?a=1&b=2</g:image_link><g:size>9</g:size></item>"
    items = entry.format(1, inner) + entry.format(2, "<!-- kept -->") + entry.format(3, "")
    source = f'{junk}<?xml version="1.0"?><rss version="2.0"><channel><title>A & B</title>{items}</channel></rss>'
    text = rewritten(feed_file(source), n0=["https://i.test/a"], n1=["https://i.test/b"])
    reader = open_feed(feed_file(text))
    assert [(one.product_id, one.image_url, one.fields["size"]) for one in reader] == [
        ("1", "https://i.test/a", "9"),
        ("2", "https://i.test/b", "9"),
        ("3", "https://x.test/1?a=1&b=2", "9"),
    ]
    assert not reader.partial
    assert "<!-- kept -->" in text
    assert f'xmlns:g="{G}"' in text


def test_an_undeclared_prefix_alone_is_declared(feed_file: Writer) -> None:
    source = "<rss><channel><title>A</title><item><g:id>1</g:id><c:x>y</c:x></item></channel></rss>"
    text = rewritten(feed_file(source), n0=["https://i.test/a"])
    assert [one.image_url for one in open_feed(feed_file(text))] == ["https://i.test/a"]
    assert "<title>A</title>" in text


@pytest.mark.parametrize("content", [FEED[:-60], "<feed></feed>", "<!DOCTYPE feed><feed/>", 'id,image_link\n1,"x'])
@pytest.mark.parametrize("write", [rewrite_feed, feed_as_csv])
def test_a_feed_that_cannot_be_used_leaves_the_old_file(
    feed_file: Writer, content: str, write: Callable[..., None]
) -> None:
    source = feed_file(content)
    target = source.with_name("out.xml")
    target.write_text("old")
    with pytest.raises(FeedError):
        write(source, target, links_of(), "replace")
    assert target.read_text() == "old"
    assert sorted(one.name for one in source.parent.iterdir()) == ["feed", "out.xml"]


def test_a_fault_of_the_caller_leaves_nothing(feed_file: Writer) -> None:
    source = feed_file(FEED)

    def fail(_position: int) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        rewrite_feed(source, source.with_name("out.xml"), fail, "replace")
    assert [one.name for one in source.parent.iterdir()] == ["feed"]


def as_table(source: Path, mode: Mode = "replace", **of: Sequence[str]) -> list[dict[str, str]]:
    target = source.with_name("out.csv")
    feed_as_csv(source, target, links_of(**of), mode)
    return list(csv.DictReader(io.StringIO(target.read_bytes().decode(), newline="")))


def test_xml_as_a_table(feed_file: Writer) -> None:
    rows = as_table(feed_file(FEED), n0=["https://i.test/a", "https://i.test/b,c"])
    assert rows[0] == {
        "id": "1",
        "image_link": "https://i.test/a",
        "additional_image_link": "https://i.test/b%2Cc,https://x.test/1b.jpg",
        "title": "<b>Schön</b> & gut",
        "shipping": "5 EUR",
    }
    assert [row["image_link"] for row in rows] == ["https://i.test/a", "https://x.test/2.jpg", "", ""]


TABLE = 'ID\tTitle\timage link\tprice\n1\t"A ""b"""\thttps://x.test/1\t5\n\n2\t=cmd|\' /C calc\'!A0\thttps://x.test/2\t-5\n'


def test_a_table_keeps_its_columns(feed_file: Writer) -> None:
    rows = as_table(feed_file(TABLE), n1=["https://i.test/b", "https://i.test/c"])
    assert rows == [
        {"ID": "1", "Title": 'A "b"', "image_link": "https://x.test/1", "price": "5", "additional_image_link": ""},
        {
            "ID": "2",
            "Title": "'=cmd|' /C calc'!A0",
            "image_link": "https://i.test/b",
            "price": "-5",
            "additional_image_link": "https://i.test/c",
        },
    ]


def test_a_table_as_rss(feed_file: Writer) -> None:
    text = rewritten(feed_file(TABLE.replace("5\n\n", "<5>\n")), n1=["https://i.test/b&c", "https://i.test/c"])
    reader = open_feed(feed_file(text))
    entries = list(reader)
    assert (reader.kind, reader.partial) == ("rss", False)
    assert entries[0].fields == {"id": "1", "title": 'A "b"', "image_link": "https://x.test/1", "price": "<5>"}
    assert entries[1].image_url == "https://i.test/b&c"
    assert entries[1].fields["additional_image_link"] == "https://i.test/c"


def test_a_table_as_rss_keeps_columns_of_any_name(feed_file: Writer) -> None:
    table = "id,image_link,Größe (EU),2nd price,\u00aa,,Farbe\n1,https://x.test/1,44,5,d,e,rot\n"
    text = rewritten(feed_file(table))
    assert "<g:größe__eu_>44</g:größe__eu_>" in text
    assert "<g:_2nd_price>5</g:_2nd_price>" in text
    assert next(iter(open_feed(feed_file(text)))).fields["farbe"] == "rot"
    assert text.count("</g:") == 6, "only the column without a name is not there"


def test_a_table_as_rss_has_our_pictures_before_the_others(feed_file: Writer) -> None:
    """Whoever takes only the first ten takes ours."""
    table = "id,image_link,additional_image_link,title\n1,https://x.test/1,https://x.test/2,A\n"
    text = rewritten(feed_file(table), "additional", n0=["https://i.test/c"])
    assert text.index("https://x.test/1") < text.index("https://i.test/c") < text.index("https://x.test/2")


@pytest.mark.parametrize(
    ("cell", "safe"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd", "'+cmd"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("  =1", "'  =1"),
        ("\uff1d1", "'\uff1d1"),
        ("-5.00", "-5.00"),
        ("+49 170 1", "+49 170 1"),
        ("-5 EUR", "-5 EUR"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_formulas_are_inert(cell: str, safe: str) -> None:
    assert inert(cell) == safe


@pytest.mark.parametrize(
    "inner",
    [
        "<g:bundle><g:image_link>no</g:image_link></g:bundle><g:image_link>old</g:image_link>",
        "<g:image_link>old</g:image_link><g:bundle><g:image_link>no</g:image_link></g:bundle>",
        "<g:note>image_link</g:note><g:image_link>old</g:image_link><x/><y/>",
        "<g:additional_image_link>no</g:additional_image_link><g:image_link>old</g:image_link>",
        "<x a='<!--'/><g:image_link>old</g:image_link>".replace("<!", "&lt;!"),
    ],
)
def test_only_the_entrys_own_picture_is_replaced(feed_file: Writer, inner: str) -> None:
    source = f'<rss xmlns:g="{G}"><channel><item>{inner}</item></channel></rss>'
    assert rewritten(feed_file(source), n0=["https://i.test/a"]) == source.replace("old", "https://i.test/a")
