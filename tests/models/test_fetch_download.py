"""`SafeFetcher.download` against real sockets: whole files or none, bounded, on connections that are kept."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import resource
import tracemalloc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import pytest

from models.fetch import (
    Downloaded,
    FetchBlockedError,
    FetchFailedError,
    FetchPolicy,
    FetchStorageError,
    FetchTimeoutError,
    FetchTooLargeError,
    SafeFetcher,
)
from tests.support.dns import PUBLIC, RefusedConnects, ScriptedDns
from tests.support.origin import Origin, Seen, answer_with, redirect_to
from tests.support.slow_peers import drip, endless, endless_chunks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


def allowing(origin: Origin, **bounds: Any) -> FetchPolicy:
    return FetchPolicy(allow_hosts=frozenset({("127.0.0.1", origin.port)}), **bounds)


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    async with Origin() as server:
        yield server


class KeptAlive:
    """An origin that answers every request of a connection and counts connections."""

    def __init__(self) -> None:
        self.connections = 0
        self.requests = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                self.requests += 1
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


class TestFiles:
    async def test_a_whole_answer(self, origin: Origin, tmp_path: Path) -> None:
        data = os.urandom(300_000)
        origin.answers["/a"] = answer_with(data, 'ETag: "x"')
        target = tmp_path / "picture"
        target.write_bytes(b"older")
        async with SafeFetcher(allowing(origin)) as fetcher:
            got = await fetcher.download(origin.url("/a"), target, headers={"If-None-Match": '"y"'})
        assert (got.status, got.stored, got.bytes, got.url) == (200, True, 300_000, origin.url("/a"))
        assert got.sha256 == hashlib.sha256(data).hexdigest()
        assert got.headers["etag"] == '"x"'
        assert origin.seen[0].headers["if-none-match"] == '"y"'
        assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("picture", data)]

    async def test_decoded_bytes_are_stored_and_counted(self, origin: Origin, tmp_path: Path) -> None:
        data = b"word " * 100_000
        origin.answers["/a"] = answer_with(gzip.compress(data), "Content-Encoding: gzip")
        async with SafeFetcher(allowing(origin)) as fetcher:
            got = await fetcher.download(origin.url("/a"), tmp_path / "feed")
        assert (got.bytes, got.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert (tmp_path / "feed").read_bytes() == data

    async def test_through_redirects(self, origin: Origin, tmp_path: Path) -> None:
        origin.answers |= {"/a": redirect_to("/b"), "/b": answer_with(b"end")}
        async with SafeFetcher(allowing(origin)) as fetcher:
            assert (await fetcher.download(origin.url("/a"), tmp_path / "x")).url == origin.url("/b")
        assert (tmp_path / "x").read_bytes() == b"end"

    @pytest.mark.parametrize(
        "status", ["304 Not Modified", "404 Not Found", "500 Oh", "206 Partial Content", "204 No Content"]
    )
    async def test_any_other_status_leaves_the_file(self, origin: Origin, tmp_path: Path, status: str) -> None:
        body = b"" if status[:3] in ("304", "204") else b"words"
        origin.answers["/a"] = answer_with(body, status=status)
        (tmp_path / "x").write_bytes(b"older")
        async with SafeFetcher(allowing(origin)) as fetcher:
            got = await fetcher.download(origin.url("/a"), tmp_path / "x")
        assert got == Downloaded(int(status[:3]), got.headers, 0, "", origin.url("/a"))
        assert not got.stored
        assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"older"]

    async def test_an_empty_body_is_a_file(self, origin: Origin, tmp_path: Path) -> None:
        origin.answers["/a"] = answer_with(b"")
        async with SafeFetcher(allowing(origin)) as fetcher:
            assert (await fetcher.download(origin.url("/a"), tmp_path / "x")).stored
        assert (tmp_path / "x").read_bytes() == b""

    async def test_memory_does_not_grow_with_the_body(self, origin: Origin, tmp_path: Path) -> None:
        async def large(_seen: Seen, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 60000000\r\n\r\n")
            for _ in range(600):
                writer.write(bytes(100_000))
                await writer.drain()

        origin.answers["/a"] = large
        async with SafeFetcher(allowing(origin)) as fetcher:
            tracemalloc.start()
            got = await fetcher.download(origin.url("/a"), tmp_path / "x", max_wire_bytes=10**9)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert got.bytes == (tmp_path / "x").stat().st_size == 60_000_000
        assert peak < 8_000_000


BAD_ANSWERS = [
    (drip, {"total_timeout_s": 0.3}, FetchTimeoutError),
    (endless, {"max_wire_bytes": 10**6, "max_decoded_bytes": 10**9}, FetchTooLargeError),
    (endless_chunks, {"max_wire_bytes": 10**9, "max_decoded_bytes": 10**6}, FetchTooLargeError),
    (answer_with(b"x", length=10**12), {}, FetchTooLargeError),
    (answer_with(b"x" * 10, length=20), {}, FetchFailedError),
    (answer_with(gzip.compress(bytes(10**8), mtime=0), "Content-Encoding: gzip"), {}, FetchTooLargeError),
    (answer_with(gzip.compress(bytes(10**4), mtime=0)[:-9], "Content-Encoding: gzip"), {}, FetchFailedError),
    (answer_with(b"x", "Content-Encoding: br"), {}, FetchFailedError),
    (redirect_to("http://169.254.169.254/"), {}, FetchBlockedError),
    (redirect_to("/a"), {}, FetchBlockedError),
    (b"SSH-2.0-OpenSSH_9.6\r\n", {}, FetchFailedError),
]


class TestNothingIsLeft:
    @pytest.mark.parametrize(("answer", "limits", "error"), BAD_ANSWERS)
    async def test_after_a_bad_answer(
        self, origin: Origin, tmp_path: Path, answer: Any, limits: Any, error: type[Exception]
    ) -> None:
        origin.answers["/a"] = answer
        (tmp_path / "x").write_bytes(b"older")
        async with SafeFetcher(allowing(origin)) as fetcher:
            with pytest.raises(error):
                await fetcher.download(origin.url("/a"), tmp_path / "x", **limits)
        assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("x", b"older")]

    async def test_after_a_cancellation(self, origin: Origin, tmp_path: Path) -> None:
        origin.answers["/a"] = drip
        async with SafeFetcher(allowing(origin)) as fetcher:
            task = asyncio.create_task(fetcher.download(origin.url("/a"), tmp_path / "x"))
            while not list(tmp_path.iterdir()):
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert list(tmp_path.iterdir()) == []


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Writes beyond `size` bytes fail as on a full disk (Python ignores SIGXFSZ)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestDisk:
    @pytest.mark.parametrize("size", [5_000, 3_000_000])
    async def test_full(self, origin: Origin, tmp_path: Path, size: int) -> None:
        """Both where the system refuses a write and where it refuses the last flush."""
        origin.answers["/a"] = answer_with(bytes(size))
        async with SafeFetcher(allowing(origin)) as fetcher:
            with files_no_larger_than(4096), pytest.raises(FetchStorageError) as caught:
                await fetcher.download(origin.url("/a"), tmp_path / "x")
        assert (caught.value.code, caught.value.retryable, caught.value.report) == ("fetch_not_stored", True, True)
        assert list(tmp_path.iterdir()) == []

    async def test_a_folder_that_is_not_there(self, origin: Origin, tmp_path: Path) -> None:
        origin.answers["/a"] = answer_with(b"x")
        async with SafeFetcher(allowing(origin)) as fetcher:
            with pytest.raises(FetchStorageError):
                await fetcher.download(origin.url("/a"), tmp_path / "none" / "x")


class TestConnections:
    async def test_are_kept_for_the_same_host(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        dns = ScriptedDns(monkeypatch, ["127.0.0.1"], ["127.0.0.1"], ["127.0.0.1"])
        async with KeptAlive() as server:
            hosts = frozenset({("shop.test", server.port), ("other.test", server.port)})
            async with SafeFetcher(FetchPolicy(allow_hosts=hosts)) as fetcher:
                for number in range(5):
                    await fetcher.download(f"http://shop.test:{server.port}/{number}", tmp_path / "x")
                assert (server.connections, server.requests, dns.asked) == (1, 5, ["shop.test"])
                await fetcher.download(f"http://other.test:{server.port}/", tmp_path / "x")
                assert (server.connections, dns.asked) == (2, ["shop.test", "other.test"])

    async def test_are_never_lent_to_a_host_that_is_not_allowed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ScriptedDns(monkeypatch, ["127.0.0.1"])
        async with KeptAlive() as server:
            policy = FetchPolicy(allow_hosts=frozenset({("shop.test", server.port)}))
            async with SafeFetcher(policy) as fetcher:
                await fetcher.download(f"http://shop.test:{server.port}/", tmp_path / "x")
                with pytest.raises(FetchBlockedError):
                    await fetcher.download(f"http://127.0.0.1:{server.port}/", tmp_path / "x")
        assert server.requests == 1

    async def test_no_other_request_uses_them(self, tmp_path: Path) -> None:
        async with KeptAlive() as server:
            policy = FetchPolicy(allow_hosts=frozenset({("127.0.0.1", server.port)}))
            url = f"http://127.0.0.1:{server.port}/"
            async with SafeFetcher(policy) as fetcher:
                await fetcher.download(url, tmp_path / "x")
                await fetcher.get(url)
                await fetcher.get(url)
        assert (server.connections, server.requests) == (3, 3)

    async def test_one_lookup_and_only_public_addresses(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dns = ScriptedDns(monkeypatch, [PUBLIC], ["127.0.0.1"], [PUBLIC, "10.0.0.1"])
        connects = RefusedConnects(monkeypatch)
        async with SafeFetcher(FetchPolicy()) as fetcher:
            for error in (FetchFailedError, FetchBlockedError, FetchBlockedError):
                with pytest.raises(error):
                    await fetcher.download("http://rebind.test/", tmp_path / "x")
        assert (len(dns.asked), connects.tried) == (3, [PUBLIC])

    async def test_outside_its_context(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError, match="outside"):
            await SafeFetcher(FetchPolicy()).download("http://example.test/", tmp_path / "x")
