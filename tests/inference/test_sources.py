"""Callers' pictures from base64 and from a real HTTP server that misbehaves on request."""

from __future__ import annotations

import asyncio
import base64
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from inference.bounds import Bounds
from inference.inputs import BadPictureError
from inference.sources import FILE_MAX_BYTES, PictureSources, decoding_threads, from_base64
from models.fetch import FetchPolicy, SafeFetcher
from models.wire import JobInput
from tests.support.inference_rig import base64_of
from tests.support.origin import Origin, answer_with, redirect_to

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BOUNDS = Bounds(64, 512, 512 * 512, 50, 4)
PNG = base64.b64decode(base64_of(Image.new("RGB", (72, 64), "red")))
WHITE = base64_of(Image.new("L", (72, 64), 255))


@asynccontextmanager
async def sources_at(origin: Origin) -> AsyncIterator[PictureSources]:
    policy = FetchPolicy(allow_hosts=frozenset({("127.0.0.1", origin.port)}))
    pool = decoding_threads()
    async with SafeFetcher(policy) as fetcher:
        yield PictureSources(fetcher, policy, BOUNDS, pool)
    pool.shutdown()


def wanting(**fields: Any) -> JobInput:
    return JobInput.model_validate({"prompt": "x", **fields})


async def test_a_picture_from_an_address_and_a_mask_from_the_request() -> None:
    async with Origin({"/a": answer_with(PNG)}) as origin, sources_at(origin) as sources:
        read = await sources.inputs(wanting(image_url=origin.url("/a"), mask=f"data:image/png;base64,{WHITE}"))
        assert read is not None
        assert (read.width, read.height, read.mask is not None) == (72, 64, True)
        assert read.pixels[0, 0].tolist() == [255, 0, 0]
        assert await sources.inputs(wanting()) is None


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (answer_with(b"gone", status="404 Not Found"), "the address answers 404"),
        (answer_with(b"<html>"), "is no PNG, JPEG or WebP"),
        (answer_with(b"x" * (FILE_MAX_BYTES + 1)), "cannot be fetched: "),
        (redirect_to("http://169.254.169.254/latest"), "cannot be fetched: "),
        (redirect_to("file:///etc/passwd"), "cannot be fetched: "),
        (answer_with(PNG[: len(PNG) // 2]), "is damaged or not whole"),
    ],
)
async def test_an_address_that_gives_no_picture(answer: bytes, reason: str) -> None:
    async with Origin({"/a": answer}) as origin, sources_at(origin) as sources:
        with pytest.raises(BadPictureError, match=reason) as caught:
            await sources.inputs(wanting(image=origin.url("/a")))
        assert caught.value.field == "image"


async def test_an_address_that_is_slow_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.sources.FETCH_TIMEOUT_S", 0.2)

    async def never(*_: object) -> None:
        await asyncio.sleep(30)

    async with Origin({"/a": never}) as origin, sources_at(origin) as sources:
        with pytest.raises(BadPictureError, match="did not answer in time"):
            await sources.inputs(wanting(image=origin.url("/a")))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.org/a.png", "must begin with https://"),
        ("https://127.0.0.1/a.png", "not on the public internet"),
        ("https://user:secret@example.org/a.png", "must not contain a user name"),
        ("https://example.org:8443/a.png", "Only the ports 80 and 443"),
    ],
)
async def test_addresses_that_are_refused_without_the_network(url: str, reason: str) -> None:
    async with Origin() as origin, sources_at(origin) as sources:
        problems = sources.problems({"image": url, "mask": None})
        assert [problem.field for problem in problems] == ["image"]
        assert reason in problems[0].reason
        assert sources.problems({"image": origin.url("/a"), "mask": WHITE}) == []
        assert origin.seen == []


async def test_only_so_many_are_read_at_once() -> None:
    going = most = 0

    async def slow(_: object, writer: asyncio.StreamWriter) -> None:
        nonlocal going, most
        going += 1
        most = max(most, going)
        await asyncio.sleep(0.05)
        going -= 1
        writer.write(answer_with(PNG))
        await writer.drain()

    async with Origin({"/a": slow}) as origin, sources_at(origin) as sources:
        await asyncio.gather(*(sources.inputs(wanting(image=origin.url("/a"))) for _ in range(20)))
        assert most == 4


@pytest.mark.parametrize("source", ["QUJD", "QU\nJD\n", " QUJD", "data:image/png;base64,QUJD", "DATA:;BASE64,QUJD"])
def test_base64(source: str) -> None:
    assert from_base64("image", source) == b"ABC"


@pytest.mark.parametrize(
    "source", ["QUJ", "QUJD!", "data:image/png,QUJD", "data:image/png;base64", "ä" * 4, "\ud800AAA"]
)
def test_what_is_no_base64(source: str) -> None:
    with pytest.raises(BadPictureError):
        from_base64("mask", source)


def test_base64_of_too_much() -> None:
    with pytest.raises(BadPictureError, match="larger than 20 MB"):
        from_base64("image", "A" * (FILE_MAX_BYTES // 3 * 4 + 8))


async def test_what_stands_in_the_request_is_looked_through_before_anything_is_fetched() -> None:
    async with Origin() as origin, sources_at(origin) as sources:
        await sources.check_inline(wanting(image="https://example.org/a", mask=WHITE))
        with pytest.raises(BadPictureError, match="mask: is no PNG"):
            await sources.check_inline(wanting(image="https://example.org/a", mask="QUJD"))
