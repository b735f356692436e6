"""SafeFetcher against real sockets on loopback, which the tests allow by name; nothing leaves the machine."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import ssl
import time
import tracemalloc
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from models.fetch import (
    FetchBlockedError,
    FetchError,
    FetchFailedError,
    FetchPolicy,
    FetchTimeoutError,
    FetchTooLargeError,
    SafeFetcher,
)
from models.fetch.body import make_decoder
from models.fetch.connect import CheckedResolver, RefusedAddressError, checked_socket, hop_is_allowed
from tests.support.dns import PUBLIC, RefusedConnects, ScriptedDns
from tests.support.origin import Origin, Seen, answer_with, redirect_to
from tests.support.slow_peers import continue_for_ever, drip, drip_headers, endless, endless_chunks, silence

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


def allowing(*origins: Origin, **bounds: Any) -> FetchPolicy:
    return FetchPolicy(allow_hosts=frozenset(("127.0.0.1", origin.port) for origin in origins), **bounds)


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    async with Origin() as server:
        yield server


@pytest.fixture
async def other() -> AsyncIterator[Origin]:
    async with Origin() as server:
        yield server


class TestRequests:
    async def test_get(self, origin: Origin) -> None:
        origin.answers["/a"] = answer_with(b"hello", "Content-Type: text/plain", "X-Odd: 1")
        async with SafeFetcher(allowing(origin)) as fetcher:
            answer = await fetcher.get(origin.url("/a?b=%2F"), headers={"X-Mine": "yes"})
        assert (answer.status, answer.ok, answer.body, answer.url) == (200, True, b"hello", origin.url("/a?b=%2F"))
        assert answer.headers["content-TYPE"] == "text/plain"
        (seen,) = origin.seen
        assert (seen.method, seen.path, seen.headers["x-mine"]) == ("GET", "/a?b=%2F", "yes")
        assert seen.headers["host"] == f"127.0.0.1:{origin.port}"
        assert seen.headers["accept-encoding"] == "gzip, deflate"

    async def test_post_json_and_put(self, origin: Origin) -> None:
        origin.answers["/hook"] = answer_with(b"", status="202 Accepted")
        data = bytes(range(256)) * 8192
        async with SafeFetcher(allowing(origin)) as fetcher:
            assert (await fetcher.post_json(origin.url("/hook"), {"ü": [1, None]})).status == 202
            assert (await fetcher.put(origin.url("/hook"), data, {"Content-Type": "image/png"})).ok
            with pytest.raises(ValueError, match="Out of range float"):
                await fetcher.post_json(origin.url("/hook"), float("nan"))
        post, put = origin.seen
        assert (post.method, json.loads(post.body)) == ("POST", {"ü": [1, None]})
        assert post.headers["content-type"] == "application/json"
        assert (put.method, put.body, put.headers["content-type"]) == ("PUT", data, "image/png")
        assert put.headers["content-length"] == str(len(data))

    async def test_an_error_status_is_an_answer(self, origin: Origin) -> None:
        async with SafeFetcher(allowing(origin)) as fetcher:
            answer = await fetcher.get(origin.url("/none"))
        assert (answer.status, answer.ok) == (404, False)

    @pytest.mark.parametrize("name", ["Host", "content-length", "Transfer-Encoding", "Cookie"])
    async def test_headers_that_are_not_the_callers(self, origin: Origin, name: str) -> None:
        async with SafeFetcher(allowing(origin)) as fetcher:
            with pytest.raises(ValueError, match="not the caller's"):
                await fetcher.get(origin.url(), headers={name: "x"})
        assert origin.seen == []

    async def test_no_cookie_is_kept(self, origin: Origin) -> None:
        origin.answers["/a"] = answer_with(b"", "Set-Cookie: a=b; Path=/")
        async with SafeFetcher(allowing(origin)) as fetcher:
            await fetcher.get(origin.url("/a"))
            await fetcher.get(origin.url("/a"))
        assert "cookie" not in origin.seen[1].headers

    async def test_proxy_variables_and_netrc_are_ignored(
        self, origin: Origin, other: Origin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login secret password secret\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, other.url())
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        origin.answers["/a"] = answer_with(b"direct")
        async with SafeFetcher(allowing(origin)) as fetcher:
            assert (await fetcher.get(origin.url("/a"))).body == b"direct"
        assert other.seen == []
        assert "authorization" not in origin.seen[0].headers

    async def test_outside_its_context(self) -> None:
        with pytest.raises(RuntimeError, match="outside"):
            await SafeFetcher(FetchPolicy()).get("http://example.test/")


class TestAddresses:
    @pytest.mark.parametrize("url", ["file:///etc/passwd", "http://127.1/", "http://example.test:6379/"])
    async def test_blocked_without_a_lookup(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        dns, connects = ScriptedDns(monkeypatch, [PUBLIC]), RefusedConnects(monkeypatch)
        async with SafeFetcher(FetchPolicy()) as fetcher:
            with pytest.raises(FetchBlockedError):
                await fetcher.get(url)
        assert (dns.asked, connects.tried) == ([], [])

    async def test_a_name_that_leads_inside(self, origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
        dns, connects = ScriptedDns(monkeypatch, ["10.7.8.9"]), RefusedConnects(monkeypatch)
        async with SafeFetcher(FetchPolicy()) as fetcher:
            with pytest.raises(FetchBlockedError) as caught:
                await fetcher.get("http://inside.test/secret?token=1")
        assert (dns.asked, connects.tried) == (["inside.test"], [])
        assert "10.7.8.9" not in caught.value.message
        assert "token" not in caught.value.message

    @pytest.mark.parametrize(
        "answer", [[PUBLIC, "127.0.0.1"], ["10.0.0.1", PUBLIC], [PUBLIC, "::1"], [PUBLIC, "64:ff9b::a9fe:a9fe"]]
    )
    async def test_a_mixed_answer_is_refused_whole(self, answer: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        ScriptedDns(monkeypatch, answer)
        connects = RefusedConnects(monkeypatch)
        async with SafeFetcher(FetchPolicy()) as fetcher:
            with pytest.raises(FetchBlockedError):
                await fetcher.get("http://mixed.test/")
        assert connects.tried == []

    async def test_rebinding_finds_one_lookup_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        dns, connects = ScriptedDns(monkeypatch, [PUBLIC], ["127.0.0.1"]), RefusedConnects(monkeypatch)
        async with SafeFetcher(FetchPolicy()) as fetcher:
            with pytest.raises(FetchFailedError) as caught:
                await fetcher.get("http://rebind.test/")
        assert dns.asked == ["rebind.test"]
        assert connects.tried == [PUBLIC]
        assert PUBLIC not in caught.value.message

    async def test_rebinding_between_two_requests(self, monkeypatch: pytest.MonkeyPatch) -> None:
        dns, connects = ScriptedDns(monkeypatch, [PUBLIC], ["127.0.0.1"]), RefusedConnects(monkeypatch)
        async with SafeFetcher(FetchPolicy()) as fetcher:
            with pytest.raises(FetchFailedError):
                await fetcher.get("http://rebind.test/")
            with pytest.raises(FetchBlockedError):
                await fetcher.get("http://rebind.test/")
        assert len(dns.asked) == 2
        assert connects.tried == [PUBLIC]

    async def test_every_public_address_is_tried(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ScriptedDns(monkeypatch, [PUBLIC, "2606:4700:4700::1111"])
        connects = RefusedConnects(monkeypatch)
        async with SafeFetcher(FetchPolicy()) as fetcher:
            with pytest.raises(FetchFailedError):
                await fetcher.get("http://both.test/")
        assert set(connects.tried) == {PUBLIC, "2606:4700:4700::1111"}

    async def test_an_allowed_name(self, origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
        dns = ScriptedDns(monkeypatch, ["127.0.0.1"])
        origin.answers["/a"] = answer_with(b"x")
        policy = FetchPolicy(allow_hosts=frozenset({("store.test", origin.port)}))
        async with SafeFetcher(policy) as fetcher:
            assert (await fetcher.get(origin.url("/a", host="STORE.test."))).body == b"x"
            with pytest.raises(FetchBlockedError):
                await fetcher.get(origin.url("/a", host="other.test"))
        assert hop_is_allowed.get() is False
        assert len(dns.asked) == 1
        assert len(origin.seen) == 1

    async def test_the_socket_is_checked_again(self) -> None:
        """Were resolver and URL check both to fail, the factory still refuses: a literal never meets the resolver."""
        inside = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))
        with pytest.raises(RefusedAddressError):
            checked_socket(inside)
        checked_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", (PUBLIC, 80))).close()
        token = hop_is_allowed.set(True)
        checked_socket(inside).close()
        hop_is_allowed.reset(token)

    @pytest.mark.parametrize("addresses", [["127.0.0.1"], ["127.0.0.1", "127.0.0.2"]])
    async def test_a_broken_resolver_reaches_nothing(
        self, addresses: list[str], origin: Origin, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ScriptedDns(monkeypatch, addresses)
        flips = iter([True, False, False])  # the resolver is fooled, the socket factory not
        monkeypatch.setattr("models.fetch.connect.is_public", lambda text: text != "127.0.0.1" or next(flips))
        connects = RefusedConnects(monkeypatch)
        async with SafeFetcher(FetchPolicy()) as fetcher:
            with pytest.raises(FetchError):
                await fetcher.get("http://fooled.test/")
        assert "127.0.0.1" not in connects.tried
        assert hop_is_allowed.get() is False

    async def test_a_name_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ScriptedDns(monkeypatch)
        async with SafeFetcher(FetchPolicy()) as fetcher:
            with pytest.raises(FetchFailedError, match="could not be resolved") as caught:
                await fetcher.get("http://gone.test/")
        assert caught.value.status == 502

    async def test_a_dead_name_server_hits_the_deadline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(4))
        async with SafeFetcher(FetchPolicy(total_timeout_s=0.3)) as fetcher:
            started = time.monotonic()
            with pytest.raises(FetchTimeoutError):
                await fetcher.get("http://slow.test/")
            assert time.monotonic() - started < 3

    async def test_the_resolver_gives_its_threads_back(self) -> None:
        resolver = CheckedResolver(FetchPolicy())
        await resolver.close()
        with pytest.raises(RuntimeError):
            await resolver.resolve("example.test", 80)


class TestRedirects:
    @pytest.mark.parametrize(
        "location",
        [
            *(
                "http://10.0.0.1/",
                "http://169.254.169.254/latest",
                "//127.0.0.1:1/",
                "http://[::1]/",
                "file:///etc/passwd",
            ),
            *("http://localhost:6379/", "http://2130706433/", "http://u:p@example.test/", "http://[", "gopher://x/"),
        ],
    )
    async def test_to_the_inside_is_blocked_at_the_hop(
        self, origin: Origin, location: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        origin.answers["/a"] = redirect_to(location)
        async with SafeFetcher(allowing(origin)) as fetcher:
            with pytest.raises(FetchBlockedError):
                await fetcher.get(origin.url("/a"))
        assert len(origin.seen) == 1

    async def test_to_a_name_that_leads_inside(self, origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
        dns = ScriptedDns(monkeypatch, ["192.168.1.1"])
        origin.answers["/a"] = redirect_to("http://inside.test/")
        async with SafeFetcher(allowing(origin)) as fetcher:
            with pytest.raises(FetchBlockedError):
                await fetcher.get(origin.url("/a"))
        assert dns.asked == ["inside.test"]

    async def test_an_allowed_host_does_not_lend_its_leave(self, origin: Origin, other: Origin) -> None:
        origin.answers["/a"] = redirect_to(other.url("/secret"))
        async with SafeFetcher(allowing(origin)) as fetcher:
            with pytest.raises(FetchBlockedError):
                await fetcher.get(origin.url("/a"))
        assert other.seen == []

    async def test_a_loop_stops_at_three(self, origin: Origin) -> None:
        origin.answers["/a"] = redirect_to("/a")
        async with SafeFetcher(allowing(origin)) as fetcher:
            with pytest.raises(FetchBlockedError, match="more than 3 times"):
                await fetcher.get(origin.url("/a"))
        assert len(origin.seen) == 4

    async def test_three_are_followed(self, origin: Origin) -> None:
        for number in range(3):
            origin.answers[f"/{number}"] = redirect_to(f"{number + 1}?q=%2F")
        origin.answers["/3"] = answer_with(b"end")
        async with SafeFetcher(allowing(origin)) as fetcher:
            answer = await fetcher.get(origin.url("/0"))
        assert (answer.body, answer.url) == (b"end", origin.url("/3?q=%2F"))

    @pytest.mark.parametrize(
        ("status", "method", "then"),
        [
            *(
                (301, "POST", "GET"),
                (302, "POST", "GET"),
                (303, "POST", "GET"),
                (303, "PUT", "GET"),
                (302, "PUT", "PUT"),
            ),
            *((307, "POST", "POST"), (308, "PUT", "PUT"), (308, "GET", "GET"), (303, "HEAD", "HEAD")),
        ],
    )
    async def test_methods_and_bodies(self, origin: Origin, status: int, method: str, then: str) -> None:
        origin.answers["/a"] = redirect_to("/b", status=f"{status} Moved")
        origin.answers["/b"] = answer_with(b"")
        body = b"payload" if method in ("POST", "PUT") else None
        async with SafeFetcher(allowing(origin)) as fetcher:
            await fetcher.request(
                method, origin.url("/a"), body=body, headers={"Content-Type": "text/x"} if body else {}
            )
        second = origin.seen[1]
        assert (second.method, second.body) == (then, b"payload" if then in ("POST", "PUT") else b"")
        assert ("content-type" in second.headers) == (then in ("POST", "PUT"))

    async def test_headers_stay_with_their_origin(self, origin: Origin, other: Origin) -> None:
        origin.answers["/a"] = redirect_to("/b", status="307 Temporary Redirect")
        origin.answers["/b"] = redirect_to(other.url("/c"), status="307 Temporary Redirect")
        other.answers["/c"] = redirect_to(origin.url("/d"), status="307 Temporary Redirect")
        origin.answers["/d"] = answer_with(b"end")
        secret = {"Authorization": "Bearer s", "X-Api-Key": "k", "Accept": "image/*", "Content-Type": "a/b"}
        async with SafeFetcher(allowing(origin, other)) as fetcher:
            answer = await fetcher.request("POST", origin.url("/a"), headers=secret, body=b"x")
        assert answer.body == b"end"
        first, second, back = origin.seen
        (crossed,) = other.seen
        assert [seen.headers.get("authorization") for seen in (first, second, crossed, back)] == ["Bearer s"] * 2 + [
            None
        ] * 2
        assert "x-api-key" not in crossed.headers
        assert (crossed.headers["accept"], crossed.headers["content-type"], crossed.body) == ("image/*", "a/b", b"x")
        assert crossed.headers["host"] == f"127.0.0.1:{other.port}"

    async def test_a_body_does_not_go_from_https_to_http(
        self, origin: Origin, server_tls: ssl.SSLContext, certificate: tuple[Path, Path]
    ) -> None:
        async with Origin({"/a": redirect_to(origin.url("/b"), status="308 Gone There")}, tls=server_tls) as secure:
            trust = ssl.create_default_context(cafile=certificate[0])
            async with SafeFetcher(allowing(origin, secure), ssl_context=trust) as fetcher:
                with pytest.raises(FetchBlockedError, match="https to http"):
                    await fetcher.put(secure.url("/a"), b"x")
        assert origin.seen == []

    async def test_a_redirect_without_location_is_an_answer(self, origin: Origin) -> None:
        origin.answers["/a"] = answer_with(b"where?", status="302 Found")
        async with SafeFetcher(allowing(origin)) as fetcher:
            assert (await fetcher.get(origin.url("/a"))).status == 302


class TestBounds:
    @pytest.mark.parametrize("answer", [drip, drip_headers, continue_for_ever, silence])
    async def test_the_deadline_beats_a_slow_peer(self, origin: Origin, answer: Any) -> None:
        origin.answers["/a"] = answer
        async with SafeFetcher(allowing(origin, total_timeout_s=0.5)) as fetcher:
            started = time.monotonic()
            with pytest.raises(FetchTimeoutError) as caught:
                await fetcher.get(origin.url("/a"))
            assert 0.4 < time.monotonic() - started < 5
        assert (caught.value.status, caught.value.retryable) == (504, True)

    async def test_one_deadline_for_all_redirects(self, origin: Origin) -> None:
        async def slow_redirect(_seen: Seen, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(0.3)
            writer.write(redirect_to("/a"))

        origin.answers["/a"] = slow_redirect
        async with SafeFetcher(allowing(origin)) as fetcher:
            with pytest.raises(FetchTimeoutError):
                await fetcher.get(origin.url("/a"), total_timeout_s=0.7)
        assert len(origin.seen) <= 3

    async def test_connecting_has_its_own_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def never(*_: object) -> None:
            await asyncio.sleep(60)

        ScriptedDns(monkeypatch, [PUBLIC])
        monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", never)
        async with SafeFetcher(FetchPolicy(connect_timeout_s=0.2)) as fetcher:
            started = time.monotonic()
            with pytest.raises(FetchTimeoutError):
                await fetcher.get("http://hole.test/")
            assert time.monotonic() - started < 5

    @pytest.mark.parametrize("answer", [endless, endless_chunks])
    async def test_an_endless_body_stops_at_the_cap(self, origin: Origin, answer: Any) -> None:
        origin.answers["/a"] = answer
        async with SafeFetcher(allowing(origin, total_timeout_s=30)) as fetcher:
            for caps in ({"max_wire_bytes": 10**6, "max_decoded_bytes": 10**12}, {"max_wire_bytes": 10**12}):
                with pytest.raises(FetchTooLargeError) as caught:
                    await fetcher.get(origin.url("/a"), **caps)  # type: ignore[arg-type]
        assert (caught.value.status, caught.value.code) == (502, "fetch_too_large")

    async def test_the_caps_are_inclusive(self, origin: Origin) -> None:
        origin.answers["/a"] = answer_with(b"x" * 1000)
        async with SafeFetcher(allowing(origin)) as fetcher:
            assert (
                len((await fetcher.get(origin.url("/a"), max_wire_bytes=1000, max_decoded_bytes=1000)).body) == 1000
            )
            for cap in ({"max_wire_bytes": 999}, {"max_decoded_bytes": 999}):
                with pytest.raises(FetchTooLargeError):
                    await fetcher.get(origin.url("/a"), **cap)  # type: ignore[arg-type]

    async def test_a_large_claim_is_refused_unread(self, origin: Origin) -> None:
        origin.answers["/a"] = answer_with(b"x", length=10**12)
        async with SafeFetcher(allowing(origin)) as fetcher:
            with pytest.raises(FetchTooLargeError):
                await fetcher.get(origin.url("/a"))
            assert (await fetcher.request("HEAD", origin.url("/a"))).body == b""

    async def test_a_false_length(self, origin: Origin) -> None:
        origin.answers["/long"] = answer_with(b"x" * 10, length=20)
        origin.answers["/short"] = answer_with(b"x" * 10_000_000, length=10)
        async with SafeFetcher(allowing(origin)) as fetcher:
            with pytest.raises(FetchFailedError):
                await fetcher.get(origin.url("/long"))
            with suppress(FetchFailedError):  # when aiohttp sees the rest before the body is handed over
                assert (await fetcher.get(origin.url("/short"))).body == b"x" * 10

    @pytest.mark.parametrize(
        ("name", "pack"),
        [
            ("gzip", gzip.compress),
            ("X-GZIP", gzip.compress),
            ("deflate", zlib.compress),
            ("deflate", lambda data: zlib.compress(data, wbits=-15)),
            ("gzip", lambda data: gzip.compress(data[:100]) + gzip.compress(data[100:])),
            ("identity", lambda data: data),
        ],
    )
    async def test_encodings(self, origin: Origin, name: str, pack: Any) -> None:
        data = bytes(range(256)) * 20_000
        origin.answers["/a"] = answer_with(pack(data), f"Content-Encoding: {name}")
        async with SafeFetcher(allowing(origin)) as fetcher:
            assert (await fetcher.get(origin.url("/a"))).body == data

    @pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
    async def test_a_bomb_stops_at_the_decoded_cap(self, origin: Origin, pack: Any) -> None:
        bomb = pack(bytes(100_000_000))
        assert len(bomb) < 200_000
        name = "gzip" if pack is gzip.compress else "deflate"
        origin.answers["/a"] = answer_with(bomb, f"Content-Encoding: {name}")
        async with SafeFetcher(allowing(origin, max_decoded_bytes=1_000_000)) as fetcher:
            started = time.monotonic()
            with pytest.raises(FetchTooLargeError):
                await fetcher.get(origin.url("/a"))
            assert time.monotonic() - started < 5

    def test_a_bomb_never_lies_in_memory(self) -> None:
        decoder = make_decoder("gzip", 1_000_000)
        bomb = gzip.compress(bytes(100_000_000))
        tracemalloc.start()
        with pytest.raises(FetchTooLargeError):
            decoder.feed(bomb)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8_000_000

    @pytest.mark.parametrize(
        ("name", "body"),
        [
            ("gzip", gzip.compress(b"x" * 1000, mtime=0)[:-9]),
            ("gzip", b"not gzip"),
            ("gzip", gzip.compress(b"x", mtime=0) + b"garbage"),
            ("deflate", zlib.compress(b"x" * 1000)[:-6]),
            ("br", b"x"),
            ("zstd", b"x"),
            ("gzip, gzip", gzip.compress(gzip.compress(b"x", mtime=0), mtime=0)),
        ],
    )
    async def test_broken_and_unknown_encodings(self, origin: Origin, name: str, body: bytes) -> None:
        origin.answers["/a"] = answer_with(body, f"Content-Encoding: {name}")
        async with SafeFetcher(allowing(origin)) as fetcher:
            with pytest.raises(FetchFailedError):
                await fetcher.get(origin.url("/a"))

    async def test_an_empty_body_needs_no_decoding(self, origin: Origin) -> None:
        origin.answers["/a"] = answer_with(b"", "Content-Encoding: gzip")
        async with SafeFetcher(allowing(origin)) as fetcher:
            assert (await fetcher.get(origin.url("/a"))).body == b""


class TestPeersThatFail:
    @pytest.mark.parametrize(
        "answer",
        [
            *(b"", b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 2000 What\r\n\r\n"),
            b"HTTP/1.1 200 OK\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 2000 + b"\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        ],
    )
    async def test_no_http(self, origin: Origin, answer: bytes) -> None:
        origin.answers["/a"] = answer
        async with SafeFetcher(allowing(origin)) as fetcher:
            with pytest.raises(FetchFailedError) as caught:
                await fetcher.get(origin.url("/a"))
        assert "127.0.0.1" not in caught.value.message

    async def test_nobody_listens(self) -> None:
        async with Origin() as origin:
            policy, url = allowing(origin), origin.url()
        async with SafeFetcher(policy) as fetcher:
            with pytest.raises(FetchFailedError, match="could not be made"):
                await fetcher.get(url)

    async def test_a_certificate_that_nobody_signed(self, server_tls: ssl.SSLContext) -> None:
        async with (
            Origin({"/a": answer_with(b"x")}, tls=server_tls) as secure,
            SafeFetcher(allowing(secure)) as fetcher,
        ):
            with pytest.raises(FetchFailedError, match="TLS"):
                await fetcher.get(secure.url("/a"))
            assert secure.seen == []

    async def test_a_certificate_for_another_name(
        self, server_tls: ssl.SSLContext, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ScriptedDns(monkeypatch, ["127.0.0.1"])
        trust = ssl.create_default_context(cafile=certificate[0])
        async with Origin({"/a": answer_with(b"x")}, tls=server_tls) as secure:
            hosts = frozenset({("other.test", secure.port), ("127.0.0.1", secure.port)})
            async with SafeFetcher(FetchPolicy(allow_hosts=hosts), ssl_context=trust) as fetcher:
                assert (await fetcher.get(secure.url("/a"))).body == b"x"
                with pytest.raises(FetchFailedError, match="TLS"):
                    await fetcher.get(secure.url("/a", host="other.test"))

    async def test_plain_http_on_a_tls_port(self) -> None:
        async def speak_first(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(answer_with(b"", status="400 Bad Request"))
            writer.close()

        server = await asyncio.start_server(speak_first, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, SafeFetcher(FetchPolicy(allow_hosts=frozenset({("127.0.0.1", port)}))) as fetcher:
            with pytest.raises(FetchFailedError):
                await fetcher.get(f"https://127.0.0.1:{port}/")

    async def test_twenty_at_once(self, origin: Origin) -> None:
        origin.answers["/a"] = answer_with(b"x" * 100_000)
        async with SafeFetcher(allowing(origin)) as fetcher:
            answers = await asyncio.gather(*(fetcher.get(origin.url("/a")) for _ in range(20)))
        assert {len(answer.body) for answer in answers} == {100_000}
