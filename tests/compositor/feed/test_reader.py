from __future__ import annotations

import gzip
import time
from typing import TYPE_CHECKING

import pytest

from compositor.feed.reader import FeedError, FeedLimits, open_feed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from compositor.feed.entries import FeedEntry

    Writer = Callable[[str | bytes], Path]

G = 'xmlns:g="http://base.google.com/ns/1.0"'
ATOM = 'xmlns="http://www.w3.org/2005/Atom"'
SAMPLE = (
    f"<feed {G} {ATOM}>"
    "<entry><id>1</id><image_link>https://x.test/1.jpg</image_link></entry>"
    "<entry><id>2</id><image_link>https://x.test/2.jpg</image_link></entry></feed>"
)


def rss(items: str, head: str = "") -> str:
    return f'<?xml version="1.0"?><rss version="2.0" {G}><channel><title>Shop</title>{head}{items}</channel></rss>'


def item(inner: str) -> str:
    return f"<item><g:id>1</g:id><g:image_link>https://x.test/1.jpg</g:image_link>{inner}</item>"


def read(path: Path, **limits: int) -> list[FeedEntry]:
    return list(open_feed(path, FeedLimits(**limits)))


def code_of(path: Path, **limits: int) -> str:
    with pytest.raises(FeedError) as failure:
        read(path, **limits)
    return failure.value.code


def test_sample_form_with_bare_names(feed_file: Writer) -> None:
    reader = open_feed(feed_file(SAMPLE))
    entries = list(reader)
    assert [(one.position, one.product_id, one.image_url, one.code) for one in entries] == [
        (0, "1", "https://x.test/1.jpg", None),
        (1, "2", "https://x.test/2.jpg", None),
    ]
    assert (reader.kind, reader.partial, reader.count) == ("atom", False, 2)


def test_rss_with_prefix_and_cdata_and_entities(feed_file: Writer) -> None:
    inner = (
        "<title>plain</title><g:title><![CDATA[Tom & <b>Jerry</b> </item>]]></g:title><g:price> 12.50 EUR\n</g:price>"
        "<g:sale_price/><!-- <g:id>9</g:id> --><g:additional_image_link>https://x.test/a</g:additional_image_link>"
        "<g:additional_image_link>https://x.test/b</g:additional_image_link><link>https://x.test/?a=1&amp;b=&#50;</link>"
        "<g:shipping><g:country>DE</g:country><g:price>5 EUR</g:price></g:shipping>"
    )
    reader = open_feed(feed_file(rss(item(inner) * 3)))
    entries = list(reader)
    assert [one.fields for one in entries] == [entries[0].fields] * 3
    assert (reader.kind, reader.partial) == ("rss", False)
    assert entries[2].fields == {
        "id": "1",
        "image_link": "https://x.test/1.jpg",
        "title": "Tom & <b>Jerry</b> </item>",
        "price": "12.50 EUR",
        "sale_price": "",
        "additional_image_link": "https://x.test/a",
        "link": "https://x.test/?a=1&b=2",
        "shipping": "DE:5 EUR",
    }


def test_googles_name_wins_over_another_wherever_it_stands(feed_file: Writer) -> None:
    text = (
        f'<a:feed xmlns:a="http://www.w3.org/2005/Atom" {G}><a:entry><a:id>tag:x</a:id><g:id>7</g:id></a:entry>'
        "<a:entry><g:id>8</g:id><a:id>tag:y</a:id></a:entry><a:entry><a:id>9</a:id></a:entry></a:feed>"
    )
    assert [one.product_id for one in read(feed_file(text))] == ["7", "8", "9"]


def test_names_that_an_entry_declares_itself(feed_file: Writer) -> None:
    text = f"<rss><channel><item {G}><g:id>1</g:id></item><item><g:id {G}>2</g:id></item></channel></rss>"
    reader = open_feed(feed_file(text))
    assert [one.product_id for one in reader] == ["1", "2"]


@pytest.mark.parametrize(
    ("inner", "url"),
    [
        ('<media:content url="https://x.test/m.jpg" medium="image"/>', "https://x.test/m.jpg"),
        ('<media:thumbnail url="https://x.test/t.jpg"/>', "https://x.test/t.jpg"),
        ('<enclosure type="image/png" url="https://x.test/e?a=1&amp;b=2" length="1"/>', "https://x.test/e?a=1&b=2"),
        ('<enclosure type="audio/mpeg" url="https://x.test/e.mp3"/>', None),
        ("<image_url>https://x.test/u.jpg</image_url>", "https://x.test/u.jpg"),
        ("<g:image_link/><image_url>https://x.test/u.jpg</image_url>", None),
    ],
)
def test_other_places_of_a_picture(feed_file: Writer, inner: str, url: str | None) -> None:
    head = f'<rss {G} xmlns:media="http://search.yahoo.com/mrss/"><channel><item><g:id>1</g:id>'
    assert read(feed_file(f"{head}{inner}</item></channel></rss>"))[0].image_url == url


@pytest.mark.parametrize(
    ("inner", "code"),
    [
        ("<g:image_link>https://x.test/1</g:image_link>", "missing_id"),
        ("<g:id> </g:id><g:image_link>https://x.test/1</g:image_link>", "missing_id"),
        ("<g:id>1</g:id>", "missing_image"),
        ("<g:id>1</g:id><g:image_link></g:image_link>", "missing_image"),
        ("<g:id>1</g:id><g:image_link>/a/1.jpg</g:image_link>", "relative_url"),
        ("<g:id>1</g:id><g:image_link>//x.test/1.jpg</g:image_link>", "relative_url"),
        ("<g:id>1</g:id><g:image_link>images/1.jpg</g:image_link>", "relative_url"),
        ("<g:id>1</g:id><g:image_link>file:///etc/passwd</g:image_link>", "bad_url"),
        ("<g:id>1</g:id><g:image_link>data:image/png;base64,AAAA</g:image_link>", "bad_url"),
        ("<g:id>1</g:id><g:image_link>https:///1.jpg</g:image_link>", "bad_url"),
        ("<g:id>1</g:id><g:image_link>https://me:word@x.test/1.jpg</g:image_link>", "bad_url"),
        (f"<g:id>1</g:id><g:image_link>https://x.test/{'a' * 8200}</g:image_link>", "bad_url"),
        (f"<g:id>{'a' * 300}</g:id><g:image_link>https://x.test/1</g:image_link>", "bad_id"),
        ("<g:id>a&#10;b</g:id><g:image_link>https://x.test/1</g:image_link>", "bad_id"),
        ("", "missing_id"),
    ],
)
def test_a_bad_entry_is_its_own_outcome(feed_file: Writer, inner: str, code: str) -> None:
    reader = open_feed(feed_file(rss(item("") + f"<item>{inner}</item>" + item(""))))
    entries = list(reader)
    assert [one.code for one in entries] == [None, code, None]
    assert entries[1].reason
    assert len(entries[1].reason) < 200
    assert not reader.partial


def test_self_closing_entry_counts(feed_file: Writer) -> None:
    assert [one.code for one in read(feed_file(rss(f"<item/>{item('')}<item />")))] == [
        "missing_id",
        None,
        "missing_id",
    ]


def test_elements_whose_names_begin_like_an_entry(feed_file: Writer) -> None:
    text = rss("<items>x</items>" + item("<item_group_id>5</item_group_id>") * 2 + "<itemized/>")
    assert [one.fields["item_group_id"] for one in read(feed_file(text))] == ["5", "5"]


def test_an_entry_inside_an_entry_is_not_another(feed_file: Writer) -> None:
    nested = item("<g:bundle><item><g:id>inner</g:id></item></g:bundle>")
    assert [one.product_id for one in read(feed_file(rss(nested + item(""))))] == ["1", "1"]


def test_markup_in_comments_instructions_and_attributes_is_no_entry(feed_file: Writer) -> None:
    text = rss(f"<!-- {item('')} --><?php <item> ?><note a='<x' b=\"/>\">n</note>{item('')}").replace(
        "<x", "&lt;item>"
    )
    assert len(read(feed_file(text))) == 1


ENTRY = "<entry><id>ü1</id><title>Größe €</title><image_link>https://x.test/1.jpg</image_link></entry>"


@pytest.mark.parametrize(
    ("encoding", "declared"),
    [
        ("utf-8", "utf-8"),
        ("utf-8-sig", "utf-8"),
        ("utf-8-sig", None),
        ("utf-8", None),
        ("utf-8", "utf-16"),  # says so in single bytes: as some servers write it
        ("utf-16", "utf-16"),
        ("utf-16-le", "utf-16"),
        ("utf-16-be", None),
        ("utf-32", "utf-32"),
        ("windows-1252", "windows-1252"),
        ("iso-8859-15", "ISO-8859-15"),
        ("cp1250", "windows-1250"),
    ],
)
def test_encodings(feed_file: Writer, encoding: str, declared: str | None) -> None:
    declaration = f'<?xml version="1.0" encoding="{declared}"?>' if declared else ""
    reader = open_feed(feed_file(f"{declaration}<feed {ATOM}>{ENTRY * 900}</feed>".encode(encoding)))
    assert {(one.product_id, one.fields["title"]) for one in reader} == {("ü1", "Größe €")}
    assert (reader.count, reader.partial) == (900, False)


def test_other_scripts(feed_file: Writer) -> None:
    text = f'<?xml version="1.0" encoding="Shift_JIS"?><feed {ATOM}>{ENTRY}</feed>'
    text = text.replace("ü1", "1").replace("Größe €", "東京 靴")
    assert read(feed_file(text.encode("shift_jis")))[0].fields["title"] == "東京 靴"


@pytest.mark.parametrize("name", ["utf-7", "unicode_escape", "zlib_codec", "rot13", "no-such", "idna", "undefined"])
def test_encodings_that_are_none_are_read_as_utf_8_and_partial(feed_file: Writer, name: str) -> None:
    reader = open_feed(feed_file(f'<?xml version="1.0" encoding="{name}"?><feed {ATOM}>{ENTRY}</feed>'))
    assert [one.product_id for one in reader] == ["ü1"]
    assert reader.partial


def test_bytes_that_are_not_utf_8_are_read_as_windows_1252_and_partial(feed_file: Writer) -> None:
    good = f"<feed {ATOM}>{ENTRY}".encode()
    reader = open_feed(feed_file(good + ENTRY.replace("ü", "").encode("cp1252") + ENTRY.encode() + b"</feed>"))
    assert [one.fields["title"] for one in reader] == ["Größe €"] * 3
    assert reader.partial


@pytest.mark.parametrize(
    ("before", "inner"),
    [
        ("\n ", ""),
        ("<br />\n<b>Warning</b>: undefined index in shop.php\n", ""),
        ("", "<title>Tom & Jerry</title>"),
        ("", "<title>Tom&nbsp;&amp; Jerry</title>"),
        ("", "<title>Tom\x01Jerry</title>"),
        ("", "<title>Tom"),
        ("", "<title>Tom</titel>"),
        ("", "</b>"),
        ("", '<title a="1" a="2">Tom</title>'),
    ],
)
def test_a_broken_document_is_read_and_marked_partial(feed_file: Writer, before: str, inner: str) -> None:
    broken = f"<item><g:id>1</g:id>{inner}<g:image_link>https://x.test/1?a=1&copy=2</g:image_link></item>"
    reader = open_feed(feed_file(before + rss(item("") + broken + item("") * 2)))
    entries = list(reader)
    assert [one.product_id for one in entries] == ["1"] * 4
    assert [one.code for one in entries] == [None] * 4
    assert entries[1].image_url == "https://x.test/1?a=1&copy=2"
    assert reader.partial


def test_well_formed_entries_are_not_partial(feed_file: Writer) -> None:
    reader = open_feed(feed_file(rss(item("<title>Tom &amp; Jerry</title>"))))
    assert [one.fields["title"] for one in reader] == ["Tom & Jerry"]
    assert not reader.partial


def test_an_entry_that_is_never_closed_ends_where_the_next_begins(feed_file: Writer) -> None:
    text = rss(item("") + item("").removesuffix("</item>") + item("") + item("").removesuffix("</item>"))
    reader = open_feed(feed_file(text))
    assert [one.code for one in reader] == [None] * 4
    assert reader.partial


def test_an_undeclared_prefix_is_read_and_marked_partial(feed_file: Writer) -> None:
    reader = open_feed(feed_file(rss(item("") * 3).replace(G, "")))
    assert [one.product_id for one in reader] == ["1", "1", "1"]
    assert reader.partial


def test_every_cut_is_an_error(feed_file: Writer) -> None:
    """A feed cut anywhere, good or with a fault early on, must never look whole."""
    for text in (rss(item("<title>a & b</title>") + item("")), rss(item("<t><![CDATA[</rss>]]></t>") + item(""))):
        whole = text.encode()
        for length in range(1, len(whole)):
            with pytest.raises(FeedError) as failure:
                read(feed_file(whole[:length]))
            assert failure.value.code in {"feed_truncated", "feed_not_xml", "feed_not_a_feed"}, whole[:length]


def test_a_feed_cut_off_in_a_late_entry(feed_file: Writer) -> None:
    whole = rss(item("") * 2000)
    assert code_of(feed_file(whole[: len(whole) - 200])) == "feed_truncated"


def test_a_cut_gzip_is_an_error(feed_file: Writer) -> None:
    packed = gzip.compress(rss(item("") * 2000).encode())
    assert len(read(feed_file(packed))) == 2000
    for length in (len(packed) - 1, len(packed) - 9, len(packed) // 2):
        assert code_of(feed_file(packed[:length])) == "feed_truncated"
    damaged = bytearray(packed)
    damaged[len(packed) // 2] ^= 0xFF
    assert code_of(feed_file(bytes(damaged))) in {"feed_bad_gzip", "feed_truncated"}


def test_several_gzip_members_are_one_feed(feed_file: Writer) -> None:
    whole = rss(item("") * 3).encode()
    assert len(read(feed_file(gzip.compress(whole[:70]) + gzip.compress(whole[70:])))) == 3


BOMB = '<!DOCTYPE l [<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {to} "{"&" + of + ";"}{("&" + of + ";") * 9}">' for of, to in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "prolog",
    [
        BOMB + "]>",
        f'<!DOCTYPE q [<!ENTITY a "{"a" * 50_000}">]>',
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd">',
        '<!DOCTYPE x [<!ENTITY % p SYSTEM "http://127.0.0.1:9/x.dtd"> %p;]>',
        "<!-- a --><?b c?>\n<!DOCTYPE rss>",
        "<!doctype rss>",
        "junk <!DOCTYPE rss>",
        f"<!-- {'x' * 70_000} --><!DOCTYPE rss>",
    ],
    ids=["laughs", "quadratic", "file", "http", "parameter", "late", "lower", "junk", "after-64k"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_any_doctype_is_refused_at_once(feed_file: Writer, prolog: str, encoding: str) -> None:
    begin = time.monotonic()
    text = f"{prolog}<rss {G}><channel>{item('<title>&a;&i;</title>') * 3}</channel></rss>"
    with pytest.raises(FeedError) as failure:
        open_feed(feed_file(text.encode(encoding)))
    assert failure.value.code == "feed_doctype"
    assert time.monotonic() - begin < 1


def test_the_decoded_size_is_capped(feed_file: Writer) -> None:
    text = rss(item("") * 2000)
    assert len(read(feed_file(text), max_bytes=len(text))) == 2000
    assert code_of(feed_file(text), max_bytes=len(text) - 1) == "feed_too_large"


def test_a_gzip_bomb_stops_at_the_cap(feed_file: Writer) -> None:
    bomb = gzip.compress(rss("<title>" + " " * 50_000_000).encode())
    begin = time.monotonic()
    assert code_of(feed_file(bomb), max_bytes=2_000_000) == "feed_too_large"
    assert code_of(feed_file(bomb)) == "feed_entry_too_large"
    assert time.monotonic() - begin < 10


def test_entries_are_capped(feed_file: Writer) -> None:
    path = feed_file(rss(item("") * 10))
    assert len(read(path, max_items=10)) == 10
    assert code_of(path, max_items=9) == "feed_too_many_items"


def test_one_entry_without_end_stops_at_the_cap(feed_file: Writer) -> None:
    assert code_of(feed_file(rss("<item>" + "<a>b</a>" * 1_100_000))) == "feed_entry_too_large"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "feed_empty"),
        (b"  \n", "feed_empty"),
        (rss(""), "feed_empty"),
        (f"<feed {ATOM}/>", "feed_empty"),
        ("id,image_link\n", "feed_empty"),
        ("<html><body>Not found</body></html>", "feed_not_a_feed"),
        ('{"products": []}', "feed_not_xml"),
        ("Not found", "feed_not_xml"),
        (b"PK\x03\x04abcdefgh", "feed_not_xml"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "feed_not_xml"),
        (gzip.compress(gzip.compress(rss("").encode(), mtime=0), mtime=0), "feed_not_xml"),
    ],
)
def test_what_is_no_feed_says_so(feed_file: Writer, content: str | bytes, code: str) -> None:
    assert code_of(feed_file(content)) == code


def test_markup_in_values_stays_text(feed_file: Writer) -> None:
    inner = "<g:title>&lt;script&gt;alert(1)&lt;/script&gt;</g:title><g:brand>=cmd|' /C calc'!A0</g:brand>"
    fields = read(feed_file(rss(item(inner))))[0].fields
    assert (fields["title"], fields["brand"]) == ("<script>alert(1)</script>", "=cmd|' /C calc'!A0")


@pytest.mark.parametrize("order", [("id", "title", "image_url", "link"), ("link", "image_url", "title", "id")])
def test_wanted_fields_are_there_with_those_that_every_entry_needs(feed_file: Writer, order: tuple[str, ...]) -> None:
    values = {"id": "1", "title": "T &amp; J", "image_url": "https://x.test/1", "link": "https://x.test/&amp;"}
    inner = "".join(f"<{name}>{values[name]}</{name}>" for name in order)
    entries = list(open_feed(feed_file(rss(f"<item>{inner}</item>" * 9)), wanted={"title"}.__contains__))
    assert [(one.product_id, one.image_url, one.fields["title"]) for one in entries] == [
        ("1", "https://x.test/1", "T & J")
    ] * 9
    assert "link" not in entries[-1].fields


@pytest.mark.parametrize("fault", ["a & b", "&nbsp;", "\x01", "a]]>b", "&#0;", "\ufffe"])
def test_a_fault_in_a_field_that_is_not_wanted_is_seen(feed_file: Writer, fault: str) -> None:
    many = item("<link>https://x.test/</link>") * 200
    reader = open_feed(feed_file(rss(f"{many}{item(f'<link>{fault}</link>')}{many}")), wanted={"title"}.__contains__)
    assert {one.code for one in reader} == {None}
    assert (reader.count, reader.partial) == (401, True)


def test_a_reader_can_be_read_again(feed_file: Writer) -> None:
    reader = open_feed(feed_file(rss(item("") * 5)))
    assert list(reader) == list(reader)
    assert reader.count == 5


def test_the_error_survives_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(FeedError("feed_empty", "The feed is empty.")))
    assert (error.code, error.message) == ("feed_empty", "The feed is empty.")
