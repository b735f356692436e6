from __future__ import annotations

from compositor.feed.entries import EntryMaker


def test_an_origin_once_good_excuses_nothing_else() -> None:
    maker = EntryMaker()
    urls = ["https://x.test/1", "https://x.test/a\nb", "https://x.test", "https://x.testing/1", "https://x.test@y/"]
    assert [maker.make(0, {"id": "1", "image_link": url}).code for url in urls] == [
        None,
        "bad_url",
        None,
        None,
        "bad_url",
    ]


def test_an_entry_from_elsewhere_is_judged_alike() -> None:
    assert EntryMaker().make(3, {"id": "1", "image_link": "ftp://x.test/1"}).code == "bad_url"
    assert EntryMaker().make(3, {"id": "1", "image_url": "HTTP://x.test/1"})[:3] == (3, "1", "HTTP://x.test/1")
