from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from compositor.compose.client import ComposeClient, ComposePool, ComposeProcess
from compositor.compose.errors import ComposeError
from compositor.compose.fonts import BUNDLED
from compositor.compose.job import ComposeJob, PictureInfo
from compositor.compose.render import render

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


async def test_the_same_picture_as_without_a_process(
    process: ComposeProcess, make_job: Callable[..., ComposeJob]
) -> None:
    job = make_job(placement={"fit": "cover", "radius": 20, "shadow": {}})
    async with ComposeClient(process.socket_path) as client:
        assert await client.compose(job) == render(job)


async def test_inspect(process: ComposeProcess, frame: Path, tmp_path: Path) -> None:
    hole = tmp_path / "hole.webp"
    Image.new("RGBA", (30, 20), (1, 2, 3, 4)).save(hole, lossless=True)
    async with ComposeClient(process.socket_path) as client:
        assert await client.inspect(frame) == PictureInfo(200, 200, False, "png")
        assert await client.inspect(hole) == PictureInfo(30, 20, True, "webp")
        with pytest.raises(ComposeError) as raised:
            await client.inspect(tmp_path / "none")
        assert raised.value.code == "broken_image"


async def test_inspect_a_font(process: ComposeProcess, frame: Path) -> None:
    async with ComposePool(process.socket_path, 1) as pool:
        await pool.inspect_font(BUNDLED["bold"])
        with pytest.raises(ComposeError) as raised:
            await pool.inspect_font(frame)
        assert raised.value.code == "bad_font"


async def test_errors_come_through_and_the_connection_stays(
    process: ComposeProcess, make_job: Callable[..., ComposeJob], tmp_path: Path
) -> None:
    (tmp_path / "page.jpg").write_text("<html></html>")
    async with ComposeClient(process.socket_path) as client:
        await client.compose(make_job())
        pid = client.child_pid
        with pytest.raises(ComposeError) as raised:
            await client.compose(make_job(source=tmp_path / "page.jpg"))
        assert (raised.value.code, raised.value.retryable) == ("not_an_image", False)
        await client.compose(make_job())
        assert client.child_pid == pid


async def test_requests_of_one_client_wait_for_each_other(
    process: ComposeProcess, make_job: Callable[..., ComposeJob]
) -> None:
    async with ComposeClient(process.socket_path) as client:
        jobs = [make_job(placement={"padding": number}) for number in range(6)]
        answers = await asyncio.gather(*(client.compose(job) for job in jobs))
    assert [answer.data for answer in answers] == [render(job).data for job in jobs]


async def test_a_cancelled_request_leaves_no_answer_for_the_next(
    process: ComposeProcess, make_job: Callable[..., ComposeJob]
) -> None:
    async with ComposeClient(process.socket_path) as client:
        await client.compose(make_job())
        slow = asyncio.create_task(client.compose(make_job(sizes=[{"name": "a", "width": 4000, "height": 4000}])))
        await asyncio.sleep(0.02)
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        assert (await client.compose(make_job())).width == 200


async def test_into_a_file(process: ComposeProcess, make_job: Callable[..., ComposeJob], tmp_path: Path) -> None:
    job, target = make_job(), tmp_path / "made"
    async with ComposeClient(process.socket_path) as client:
        assert await client.compose_file(job, target) == target.stat().st_size
        assert target.read_bytes() == render(job).data
        assert target.stat().st_mode & 0o777 == 0o600
        pid = client.child_pid
        for taken in (target, tmp_path / "no" / "folder"):
            with pytest.raises(ComposeError) as raised:
                await client.compose_file(job, taken)
            assert (raised.value.code, raised.value.retryable) == ("output_not_written", True)
        await client.compose_file(job, tmp_path / "another")
        assert client.child_pid == pid


async def test_nobody_listens(tmp_path: Path, make_job: Callable[..., ComposeJob]) -> None:
    async with ComposeClient(tmp_path / "no.sock") as client:
        with pytest.raises(ComposeError) as raised:
            await client.compose(make_job())
    assert (raised.value.code, raised.value.retryable) == ("composer_unavailable", True)


async def test_a_long_description_does_not_travel(
    process: ComposeProcess, make_job: Callable[..., ComposeJob]
) -> None:
    job = make_job()
    fields = {f"field{number}": "x" * 100_000 for number in range(60)}
    long = ComposeJob(job.source, job.frame, False, job.design, job.size, fields)
    async with ComposeClient(process.socket_path) as client:
        assert await client.compose(long) == await client.compose(job)


async def test_a_pool_works_side_by_side(process: ComposeProcess, make_job: Callable[..., ComposeJob]) -> None:
    async with ComposePool(process.socket_path, 2, process) as pool:
        answers = await asyncio.gather(*(pool.compose(make_job()) for _ in range(5)), pool.inspect(make_job().frame))
        assert len({client.child_pid for client in pool._clients}) == 2
    assert len({answer.data for answer in answers[:5] if not isinstance(answer, PictureInfo)}) == 1
