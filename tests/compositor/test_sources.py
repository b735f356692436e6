"""Product pictures fetched from real sockets on loopback; the attack list for addresses through this door."""

from __future__ import annotations

import asyncio
import hashlib
import io
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from compositor.sources import Known, SourceError, SourceFetcher, SourcePicture
from models.fetch import FetchPolicy, SafeFetcher
from tests.support.dns import PUBLIC, RefusedConnects, ScriptedDns
from tests.support.origin import Origin, Seen, answer_with, redirect_to
from tests.support.slow_peers import drip, endless, silence
from tests.support.tls import certificate, server_tls  # noqa: F401 - fixtures

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator
    from pathlib import Path


def picture(colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, "JPEG")
    return file.getvalue()


RED = picture()
RED_SHA256 = hashlib.sha256(RED).hexdigest()


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    async with Origin(
        {"/a.jpg": answer_with(RED, 'ETag: "1"', "Last-Modified: Sat, 01 Aug 2026 10:00:00 GMT")}
    ) as it:
        yield it


@asynccontextmanager
async def fetching(*allowed: Origin, **bounds: Any) -> AsyncIterator[SourceFetcher]:
    policy = FetchPolicy(allow_hosts=frozenset(("127.0.0.1", each.port) for each in allowed))
    async with SafeFetcher(policy) as fetcher:
        yield SourceFetcher(fetcher, **{"first_pause_s": 0.01, **bounds})


async def code_of(sources: SourceFetcher, url: str, folder: Path) -> str:
    with pytest.raises(SourceError) as caught:
        await sources.get(url, None, folder)
    assert list(folder.iterdir()) == []
    assert "127.0.0.1" not in caught.value.message
    return caught.value.code


class TestPictures:
    async def test_a_picture(self, origin: Origin, tmp_path: Path) -> None:
        async with fetching(origin) as sources:
            got = await sources.get(f"  {origin.url('/a.jpg')}\n", None, tmp_path)
        path = tmp_path / RED_SHA256
        assert got == SourcePicture(
            path, RED_SHA256, '"1"', "Sat, 01 Aug 2026 10:00:00 GMT", len(RED), unchanged=False
        )
        assert path.read_bytes() == RED
        assert list(tmp_path.iterdir()) == [path]
        assert origin.seen[0].headers["accept"].startswith("image/jpeg")

    async def test_an_unchanged_one_is_not_sent_again(self, origin: Origin, tmp_path: Path) -> None:
        async def conditional(seen: Seen, writer: asyncio.StreamWriter) -> None:
            same = seen.headers.get("if-none-match") == '"1"' and "if-modified-since" in seen.headers
            writer.write(answer_with(b"", 'ETag: "2"', status="304 Not Modified") if same else answer_with(RED))

        origin.answers["/a.jpg"] = conditional
        known = Known(RED_SHA256, '"1"', "Sat, 01 Aug 2026 10:00:00 GMT", 5)
        async with fetching(origin) as sources:
            got = await sources.get(origin.url("/a.jpg"), known, tmp_path)
        assert got == SourcePicture(None, RED_SHA256, '"2"', known.last_modified, 5, unchanged=True)
        assert list(tmp_path.iterdir()) == []

    async def test_the_same_bytes_again_are_unchanged(self, origin: Origin, tmp_path: Path) -> None:
        async with fetching(origin) as sources:
            same = await sources.get(origin.url("/a.jpg"), Known(RED_SHA256), tmp_path)
            other = await sources.get(origin.url("/a.jpg"), Known("0" * 64), tmp_path)
        assert (same.unchanged, other.unchanged) == (True, False)
        assert same.path == other.path == tmp_path / RED_SHA256
        assert "if-none-match" not in origin.seen[0].headers

    async def test_not_modified_without_a_condition_is_a_refusal(self, origin: Origin, tmp_path: Path) -> None:
        origin.answers["/a"] = answer_with(b"", status="304 Not Modified")
        async with fetching(origin) as sources:
            assert await code_of(sources, origin.url("/a"), tmp_path) == "source_refused"
            with pytest.raises(SourceError):
                await sources.get(origin.url("/a"), Known(RED_SHA256), tmp_path)

    @pytest.mark.parametrize("etag", ["x" * 513, '"\xff"'])
    async def test_validators_that_cannot_be_kept(self, origin: Origin, tmp_path: Path, etag: str) -> None:
        head, _, body = answer_with(RED).partition(b"\r\n\r\n")
        origin.answers["/a"] = head + b"\r\nETag: " + etag.encode("latin-1") + b"\r\n\r\n" + body
        async with fetching(origin) as sources:
            got = await sources.get(origin.url("/a"), None, tmp_path)
        assert (got.etag, got.last_modified) == (None, None)

    async def test_two_addresses_of_one_content_share_a_file(self, origin: Origin, tmp_path: Path) -> None:
        origin.answers["/b.jpg"] = origin.answers["/a.jpg"]
        async with fetching(origin) as sources:
            first, second = await asyncio.gather(
                *(sources.get(origin.url(path), None, tmp_path) for path in ("/a.jpg", "/b.jpg"))
            )
        assert first.path == second.path
        assert len(list(tmp_path.iterdir())) == 1


class TestFailures:
    @pytest.mark.parametrize(
        ("status", "code", "requests"),
        [
            ("404 Not Found", "source_not_found", 1),
            ("410 Gone", "source_not_found", 1),
            ("403 Forbidden", "source_refused", 1),
            ("418 I'm a teapot", "source_refused", 1),
            ("302 Found", "source_refused", 1),
            ("204 No Content", "source_refused", 1),
            ("500 Internal Server Error", "source_unavailable", 3),
            ("503 Service Unavailable", "source_unavailable", 3),
            ("429 Too Many Requests", "source_unavailable", 3),
        ],
    )
    async def test_statuses(self, origin: Origin, tmp_path: Path, status: str, code: str, requests: int) -> None:
        origin.answers["/a"] = answer_with(b"", status=status)
        async with fetching(origin) as sources:
            assert await code_of(sources, origin.url("/a"), tmp_path) == code
        assert len(origin.seen) == requests

    async def test_a_failure_that_passes(self, origin: Origin, tmp_path: Path) -> None:
        async def third_time(_seen: Seen, writer: asyncio.StreamWriter) -> None:
            if len(origin.seen) == 1:
                writer.write(answer_with(b"", status="502 Bad Gateway"))
            elif len(origin.seen) == 3:
                writer.write(answer_with(RED))

        origin.answers["/a"] = third_time  # the second time it hangs up
        async with fetching(origin) as sources:
            assert (await sources.get(origin.url("/a"), None, tmp_path)).sha256 == RED_SHA256

    @pytest.mark.parametrize(("asked", "requests"), [("1", 3), ("3600", 1), ("Sat, 01 Aug 2026 10:00:00 GMT", 1)])
    async def test_retry_after(
        self, origin: Origin, tmp_path: Path, asked: str, requests: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pauses: list[float] = []
        sleep = asyncio.sleep

        async def quick_sleep(seconds: float) -> None:
            pauses.append(seconds)
            await sleep(0)

        monkeypatch.setattr("compositor.sources.asyncio.sleep", quick_sleep)
        origin.answers["/a"] = answer_with(b"", f"Retry-After: {asked}", status="503 Busy")
        async with fetching(origin) as sources:
            assert await code_of(sources, origin.url("/a"), tmp_path) == "source_unavailable"
        assert len(origin.seen) == requests
        assert [pause for pause in pauses if pause] == [1.0] * (requests - 1)

    async def test_nobody_listens(self, tmp_path: Path) -> None:
        async with Origin() as gone:
            entered, url = fetching(gone), gone.url("/a")
            sources = await entered.__aenter__()
        assert await code_of(sources, url, tmp_path) == "source_unavailable"
        await entered.__aexit__(None, None, None)

    async def test_a_disk_that_refuses(self, origin: Origin, tmp_path: Path) -> None:
        async with fetching(origin) as sources:
            with pytest.raises(SourceError) as caught:
                await sources.get(origin.url("/a.jpg"), None, tmp_path / "none")
        assert (caught.value.code, caught.value.retryable) == ("source_not_stored", True)


class TestBounds:
    async def test_per_host_and_in_total(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        under_way: dict[str, int] = {}
        peaks: dict[str, int] = {}
        names = ("a", "b", "c")
        ScriptedDns(monkeypatch, *[["127.0.0.1"]] * 60)

        async def slowly(seen: Seen, writer: asyncio.StreamWriter) -> None:
            for key in (seen.headers["host"], "all"):
                under_way[key] = under_way.get(key, 0) + 1
                peaks[key] = max(peaks.get(key, 0), under_way[key])
            await asyncio.sleep(0.02)
            writer.write(answer_with(RED))
            for key in (seen.headers["host"], "all"):
                under_way[key] -= 1

        async with Origin() as origin:
            origin.answers = {f"/{number}": slowly for number in range(20)}
            policy = FetchPolicy(allow_hosts=frozenset((f"{name}.test", origin.port) for name in names))
            async with SafeFetcher(policy) as fetcher:
                sources = SourceFetcher(fetcher, per_host=3, total=5)
                urls = [origin.url(f"/{number}", f"{name}.test") for name in names for number in range(20)]
                await asyncio.gather(*(sources.get(url, None, tmp_path) for url in urls))
                assert sources._turns._hosts == {}
        assert len(origin.seen) == 60
        assert peaks.pop("all") == 5
        assert set(peaks.values()) == {3}

    async def test_a_slow_host_leaves_the_others_their_turns(
        self, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ScriptedDns(monkeypatch, *[["127.0.0.1"]] * 10)
        origin.answers["/slow"] = silence
        policy = FetchPolicy(allow_hosts=frozenset({("slow.test", origin.port), ("127.0.0.1", origin.port)}))
        async with SafeFetcher(policy) as fetcher:
            sources = SourceFetcher(fetcher, per_host=1, total=2)
            slow = [
                asyncio.create_task(sources.get(origin.url(f"/slow?{number}", "slow.test"), None, tmp_path))
                for number in range(5)
            ]
            await asyncio.sleep(0.05)
            got = await asyncio.wait_for(sources.get(origin.url("/a.jpg"), None, tmp_path), 5)
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)
        assert got.sha256 == RED_SHA256

    async def test_waiting_for_a_turn_is_not_counted(self, origin: Origin, tmp_path: Path) -> None:
        async def slowly(_seen: Seen, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(0.2)
            writer.write(answer_with(RED))

        origin.answers["/s"] = slowly
        async with fetching(origin, per_host=1, timeout_s=0.5) as sources:
            await asyncio.gather(*(sources.get(origin.url(f"/s?{number}"), None, tmp_path) for number in range(5)))

    async def test_one_request_for_one_address(self, origin: Origin, tmp_path: Path) -> None:
        async with fetching(origin) as sources:
            got = await asyncio.gather(*(sources.get(origin.url("/a.jpg"), None, tmp_path) for _ in range(20)))
            assert len(set(got)) == len(origin.seen) == 1
            await sources.get(origin.url("/a.jpg"), None, tmp_path)
        assert len(origin.seen) == 2

    async def test_one_failure_for_all_who_asked(self, origin: Origin, tmp_path: Path) -> None:
        async with fetching(origin) as sources:
            outcomes = await asyncio.gather(
                *(sources.get(origin.url("/none"), None, tmp_path) for _ in range(5)), return_exceptions=True
            )
        assert [getattr(each, "code", None) for each in outcomes] == ["source_not_found"] * 5
        assert len(origin.seen) == 1

    async def test_one_that_leaves_does_not_take_the_picture_from_the_others(
        self, origin: Origin, tmp_path: Path
    ) -> None:
        go = asyncio.Event()

        async def wait(_seen: Seen, writer: asyncio.StreamWriter) -> None:
            await go.wait()
            writer.write(answer_with(RED))

        origin.answers["/w"] = wait
        async with fetching(origin) as sources:
            first, second = (asyncio.create_task(sources.get(origin.url("/w"), None, tmp_path)) for _ in range(2))
            while not origin.seen:
                await asyncio.sleep(0.01)
            first.cancel()
            await asyncio.sleep(0)
            go.set()
            assert (await second).sha256 == RED_SHA256
            with pytest.raises(asyncio.CancelledError):
                await first

    async def test_the_last_that_leaves_ends_the_request(self, origin: Origin, tmp_path: Path) -> None:
        origin.answers["/w"] = drip
        async with fetching(origin) as sources:
            task = asyncio.create_task(sources.get(origin.url("/w"), None, tmp_path))
            while not list(tmp_path.iterdir()):
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            origin.answers["/w"] = answer_with(RED)  # a new call does not join the one that is being cancelled
            assert (await sources.get(origin.url("/w"), None, tmp_path)).sha256 == RED_SHA256
        assert [each.name for each in tmp_path.iterdir()] == [RED_SHA256]


class TestAttacks:
    """The list of addresses in the threat notes, by its numbers."""

    @pytest.mark.parametrize(
        "url",
        [
            *("http://127.1/a", "http://0x7f.1/a", "http://2130706433/a", "http://0.0.0.0/a"),  # 24
            *("http://169.254.169.254/latest/meta-data/", "http://168.63.129.16/machine"),  # 25
            *("http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://[::7f00:1]/"),  # 26
            *("http://[64:ff9b::a9fe:a9fe]/", "http://[2002:7f00:1::]/", "http://[fec0::1]/"),
            *("file:///etc/passwd", "gopher://x/", "data:image/png;base64,AAAA", "ftp://example.test/a"),  # 31
            *("http://example.test:22/", "http://example.test:6379/"),  # 32
            *(
                "",
                "  ",
                "http://",
                "http://[",
                "//example.test/a",
                "a.jpg",
                "http://exa mple.test/",
                "http://u:p@e.test/",
            ),
            *("http://example.test/\r\nHost: inside", "http://" + "a" * 9000),
        ],
    )
    async def test_addresses_that_are_not_contacted(
        self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dns, connects = ScriptedDns(monkeypatch), RefusedConnects(monkeypatch)
        async with fetching() as sources:
            assert await code_of(sources, url, tmp_path) == "source_blocked"
        assert (dns.asked, connects.tried) == ([], [])

    async def test_a_rebinding_host(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # 27
        dns, connects = ScriptedDns(monkeypatch, [PUBLIC], ["127.0.0.1"]), RefusedConnects(monkeypatch)
        async with fetching() as sources:
            assert await code_of(sources, "http://rebind.test/a", tmp_path) == "source_blocked"
        assert (len(dns.asked), connects.tried) == (2, [PUBLIC])  # the second try asked anew and was refused

    async def test_a_mixed_answer(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # 28
        ScriptedDns(monkeypatch, [PUBLIC, "10.0.0.1"])
        connects = RefusedConnects(monkeypatch)
        async with fetching() as sources:
            assert await code_of(sources, "http://mixed.test/a", tmp_path) == "source_blocked"
        assert connects.tried == []

    @pytest.mark.parametrize("location", ["http://10.0.0.1/", "http://[::1]/", "file:///etc/passwd", "/r"])
    async def test_redirects(self, origin: Origin, tmp_path: Path, location: str) -> None:  # 29, 30
        origin.answers["/r"] = redirect_to(location)
        async with fetching(origin) as sources:
            assert await code_of(sources, origin.url("/r"), tmp_path) == "source_blocked"
        assert len(origin.seen) == (4 if location == "/r" else 1)

    @pytest.mark.parametrize("answer", [drip, silence])
    async def test_a_slow_peer(self, origin: Origin, tmp_path: Path, answer: Any) -> None:  # 34
        origin.answers["/s"] = answer
        async with fetching(origin, timeout_s=0.4) as sources:
            started = time.monotonic()
            assert await code_of(sources, origin.url("/s"), tmp_path) == "source_timeout"
            assert time.monotonic() - started < 3
        assert len(origin.seen) == 1

    @pytest.mark.parametrize("answer", [endless, answer_with(RED, length=10**10), answer_with(RED + bytes(10**6))])
    async def test_lengths(self, origin: Origin, tmp_path: Path, answer: Any) -> None:  # 35
        origin.answers["/l"] = answer
        async with fetching(origin, max_bytes=10**6) as sources:
            assert await code_of(sources, origin.url("/l"), tmp_path) == "source_too_large"

    async def test_a_body_that_ends_early(self, origin: Origin, tmp_path: Path) -> None:  # 35
        origin.answers["/l"] = answer_with(RED[:-5], length=len(RED))
        async with fetching(origin) as sources:
            assert await code_of(sources, origin.url("/l"), tmp_path) == "source_unavailable"

    @pytest.mark.parametrize(
        "body",
        [
            b"<!DOCTYPE html><title>Before you continue</title>We use cookies",
            b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
            b"%!PS-Adobe-3.0 EPSF-3.0",
            b"8BPS\x00\x01" + bytes(50),
            b"II*\x00" + bytes(50),
            b"",
        ],
    )
    async def test_what_is_no_picture(self, origin: Origin, tmp_path: Path, body: bytes) -> None:  # 15, 16, 36
        origin.answers["/x.png"] = answer_with(body, "Content-Type: image/png", "Set-Cookie: a=b")
        async with fetching(origin) as sources:
            assert await code_of(sources, origin.url("/x.png"), tmp_path) == "source_not_an_image"

    async def test_tls(self, server_tls: ssl.SSLContext, tmp_path: Path) -> None:  # noqa: F811 - 37
        async with Origin({"/a.jpg": answer_with(RED)}, tls=server_tls) as secure, fetching(secure) as sources:
            with pytest.raises(SourceError, match="TLS") as caught:
                await sources.get(secure.url("/a.jpg"), None, tmp_path)
            assert (caught.value.code, secure.seen) == ("source_unavailable", [])
