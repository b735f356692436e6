from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

from tests.support.seeded_run import seed_run

if TYPE_CHECKING:
    from tests.gateway.conftest import RunningGateway

FEED = b"<feed>" + b"<entry><id>1</id></entry>" * 50 + b"</feed>"
PLAIN = {"Accept-Encoding": "identity"}


async def published(gateway: RunningGateway) -> tuple[str, str]:
    frame = await gateway.frame()
    await seed_run(gateway.services.db, gateway.services.store, frame["id"], publish=FEED)
    stem = frame["output_feed"]["xml"].removeprefix("http://pictures.example").removesuffix(".xml")
    return f"/api/frames/{frame['id']}", stem


async def test_a_feed_is_there_once_published_and_needs_no_key(framing: RunningGateway) -> None:
    frame = await framing.frame()
    link = frame["output_feed"]["xml"].removeprefix("http://pictures.example")
    assert frame["output_feed"]["published"] is False
    assert (await framing.request("GET", link, key=None)).status == 404
    await seed_run(framing.services.db, framing.services.store, frame["id"], publish=FEED)
    got = await framing.request("GET", link, key=None, headers=PLAIN)
    assert (got.status, got.body, got.headers["Content-Type"]) == (200, FEED, "application/xml; charset=utf-8")
    csv = await framing.request("GET", link.replace(".xml", ".csv"), key=None, headers=PLAIN)
    assert (csv.body, csv.headers["Content-Type"]) == (b"id\r\n1\r\n", "text/csv; charset=utf-8")


async def test_etags_and_gzip(framing: RunningGateway) -> None:
    _, stem = await published(framing)
    plain = await framing.request("GET", f"{stem}.xml", key=None, headers=PLAIN)
    again = await framing.request(
        "GET", f"{stem}.xml", key=None, headers={**PLAIN, "If-None-Match": plain.headers["ETag"]}
    )
    assert (again.status, again.body) == (304, b"")
    packed = await framing.request("GET", f"{stem}.xml", key=None, headers={"Accept-Encoding": "br, gzip"})
    assert (packed.headers["Content-Encoding"], packed.body) == ("gzip", FEED)  # the client unpacks
    assert packed.headers["ETag"] != plain.headers["ETag"]
    assert "Accept-Encoding" in packed.headers["Vary"]
    refused = await framing.request("GET", f"{stem}.xml", key=None, headers={"Accept-Encoding": "gzip;q=0"})
    assert "Content-Encoding" not in refused.headers
    file = await framing.request("GET", f"{stem}.xml.gz", key=None, headers=PLAIN)
    assert gzip.decompress(file.body) == FEED
    head = await framing.request("HEAD", f"{stem}.xml", key=None, headers=PLAIN)
    assert (head.body, head.headers["Content-Length"]) == (b"", str(len(FEED)))


async def test_a_link_is_renewed_and_revoked(framing: RunningGateway, other_key: str) -> None:
    address, stem = await published(framing)
    assert (await framing.request("POST", f"{address}/feed-token", key=other_key)).status == 404
    renewed = (await framing.request("POST", f"{address}/feed-token")).json["output_feed"]["xml"]
    fresh = renewed.removeprefix("http://pictures.example")
    assert (await framing.request("GET", f"{stem}.xml", key=None)).status == 404
    assert (await framing.request("GET", fresh, key=None)).status == 200
    assert (await framing.request("DELETE", f"{address}/feed-token")).status == 204
    assert (await framing.request("GET", fresh, key=None)).status == 404
    assert (await framing.request("GET", address)).json["output_feed"] is None


async def test_addresses_that_are_no_feed(framing: RunningGateway) -> None:
    for path in ("/feeds/x.xml", f"/feeds/{'a' * 26}.xml", f"/feeds/{'a' * 26}.exe", "/feeds/..%2f..%2fetc"):
        assert (await framing.request("GET", path, key=None)).status == 404


async def test_a_deleted_frames_feed_is_gone(framing: RunningGateway) -> None:
    address, stem = await published(framing)
    await framing.request("DELETE", address)
    assert (await framing.request("GET", f"{stem}.xml", key=None)).status == 404


async def test_the_request_log_keeps_no_feed_link(framing: RunningGateway) -> None:
    _, stem = await published(framing)
    await framing.request("GET", f"{stem}.xml", key=None)
    rows = await framing.log(2)
    assert not any(stem.rpartition("/")[2] in row.path for row in rows)
