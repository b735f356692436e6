from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.support.fake_backend import png

if TYPE_CHECKING:
    from tests.gateway.conftest import RunningGateway, StartGateway

DATA = png(64, 64, 9)


async def draw(gateway: RunningGateway) -> str:
    reply = await gateway.generate({"prompt": "x", "seed": 9, "width": 64, "height": 64})
    return str(reply.json["image_url"]).removeprefix("http://pictures.example")


async def test_a_picture_is_served_with_the_headers_that_keep_it_harmless(gateway: RunningGateway) -> None:
    path = await draw(gateway)
    name = path.removeprefix("/media/generated/").removesuffix(".png")
    assert len(name) == 26
    got = await gateway.request("GET", path, key=None)
    assert (got.status, got.body) == (200, DATA)
    assert got.headers["Content-Type"] == "image/png"
    assert got.headers["X-Content-Type-Options"] == "nosniff"
    assert got.headers["Cache-Control"] == "private, max-age=86400, immutable"
    assert "sandbox" in got.headers["Content-Security-Policy"]
    assert got.headers["Accept-Ranges"] == "bytes"
    assert name not in got.headers["ETag"]


async def test_head_says_the_same_without_the_picture(gateway: RunningGateway) -> None:
    path = await draw(gateway)
    got = await gateway.request("GET", path)
    head = await gateway.request("HEAD", path)
    assert (head.status, head.body) == (200, b"")
    for name in ("Content-Length", "Content-Type", "ETag", "Cache-Control", "Last-Modified", "Accept-Ranges"):
        assert head.headers[name] == got.headers[name]


async def test_one_content_under_two_names(gateway: RunningGateway) -> None:
    first, second = await draw(gateway), await draw(gateway)
    assert first != second
    assert (await gateway.request("GET", first)).headers["ETag"] == (await gateway.request("GET", second)).headers[
        "ETag"
    ]
    objects = list((gateway.settings.home / "store" / "objects").rglob("*.png"))
    assert len(objects) == 1


async def test_revalidation(gateway: RunningGateway) -> None:
    path = await draw(gateway)
    first = await gateway.request("GET", path)
    etag, modified = first.headers["ETag"], first.headers["Last-Modified"]
    for headers in (
        {"If-None-Match": etag},
        {"If-None-Match": f'"other", W/{etag}'},
        {"If-None-Match": "*"},
        {"If-Modified-Since": modified},
    ):
        again = await gateway.request("GET", path, headers=headers)
        assert (again.status, again.body) == (304, b"")
        assert again.headers["ETag"] == etag
    for headers in (
        {"If-None-Match": '"other"'},
        {"If-None-Match": '"other"', "If-Modified-Since": modified},
        {"If-Modified-Since": "Mon, 01 Jan 2001 00:00:00 GMT"},
        {"If-Modified-Since": "yesterday"},
    ):
        assert (await gateway.request("GET", path, headers=headers)).status == 200


PARTS = [
    ("bytes=0-9", 0, 10),
    ("bytes=5-", 5, len(DATA)),
    ("bytes=-7", len(DATA) - 7, len(DATA)),
    ("bytes=0-999999999", 0, len(DATA)),
    ("bytes=-999999999", 0, len(DATA)),
    (f"bytes={len(DATA) - 1}-", len(DATA) - 1, len(DATA)),
]
BEYOND = [f"bytes={len(DATA)}-", "bytes=999999999-", "bytes=-0"]
NO_RANGES = ["bytes=9-5", "bytes=0-1,5-6", "bytes=", "bytes=a-b", "lines=0-1", "bytes=-", "0-5"]


async def test_parts(gateway: RunningGateway) -> None:
    path = await draw(gateway)
    for asked, start, end in PARTS:
        part = await gateway.request("GET", path, headers={"Range": asked})
        assert (part.status, part.body) == (206, DATA[start:end]), asked
        assert part.headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(DATA)}"
        assert part.headers["Content-Length"] == str(end - start)


async def test_a_part_beyond_the_end_is_416(gateway: RunningGateway) -> None:
    path = await draw(gateway)
    for asked in BEYOND:
        reply = await gateway.request("GET", path, headers={"Range": asked})
        assert (reply.status, reply.code) == (416, "range_not_satisfiable"), asked
        assert reply.headers["Content-Range"] == f"bytes */{len(DATA)}"


async def test_a_range_that_is_none_is_ignored(gateway: RunningGateway) -> None:
    path = await draw(gateway)
    for asked in NO_RANGES:
        reply = await gateway.request("GET", path, headers={"Range": asked})
        assert (reply.status, reply.body) == (200, DATA), asked


async def test_a_part_only_of_the_picture_that_the_caller_knows(gateway: RunningGateway) -> None:
    path = await draw(gateway)
    first = await gateway.request("GET", path)
    for condition, status in (
        (first.headers["ETag"], 206),
        (first.headers["Last-Modified"], 206),
        ('"other"', 200),
        (f"W/{first.headers['ETag']}", 200),
        ("Mon, 01 Jan 2001 00:00:00 GMT", 200),
    ):
        reply = await gateway.request("GET", path, headers={"Range": "bytes=0-3", "If-Range": condition})
        assert reply.status == status, condition


OTHER_NAMES = [
    "/media/generated/",
    "/media/generated/x.png",
    "/media/generated/0000000000000000000000000.png",
    "/media/generated/00000000000000000000000000.png",
    "/media/generated/00000000000000000000000000.PNG",
    "/media/generated/00000000000000000000000000",
    "/media/generated/../first-key",
    "/media/generated/%2e%2e/first-key",
    "/media/generated/%2e%2e%2ffirst-key",
    "/media/generated/%252e%252e%252ffirst-key",
    "/media/generated/..%5cfirst-key",
    "/media/generated/%00.png",
    "/media/generated/....//first-key",
    "/media/first-key",
    "//etc/passwd",
]


async def test_other_names_are_404(gateway: RunningGateway) -> None:
    host, port = gateway.url.removeprefix("http://").split(":")
    for path in OTHER_NAMES:
        reader, writer = await asyncio.open_connection(host, int(port))  # a client library would tidy the path
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 404"), path
        assert b'"code":"not_found"' in answer
        assert b"igen_" not in answer


async def test_a_picture_whose_object_is_gone_is_404(gateway: RunningGateway) -> None:
    path = await draw(gateway)
    for found in (gateway.settings.home / "store").rglob("*.png"):
        found.unlink()
    for method in ("GET", "HEAD"):
        assert (await gateway.request(method, path)).status == 404


async def test_with_media_auth_only_the_owner_sees_it(start_gateway: StartGateway, other_key: str) -> None:
    gateway = await start_gateway(media_auth="owner")
    path = await draw(gateway)
    assert (await gateway.request("GET", path)).status == 200
    for method in ("GET", "HEAD"):
        assert (await gateway.request(method, path, key=None)).status == 401
        assert (await gateway.request(method, path, key=other_key)).status == 404
    assert (await gateway.request("GET", path)).headers["Vary"] == "Authorization"


async def test_links_never_come_from_the_host_header(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(allowed_hosts="*")
    reply = await gateway.generate(headers={"Host": "evil.example"})
    assert reply.json["image_url"].startswith("http://pictures.example/")
