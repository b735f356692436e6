"""Attack 23 and its relatives: whatever a picture does to its decoder, the listening process lives on."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from compositor.compose import protocol
from compositor.compose.client import ComposeClient, ComposeProcess
from compositor.compose.errors import ComposeError
from compositor.compose.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Callable

    from compositor.compose.job import ComposeJob

SMALL = {"memory_bytes": 1024 * 2**20, "cpu_s": 1, "wall_s": 20.0}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


async def gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while alive(pid):
            await asyncio.sleep(0.02)


async def failed(client: ComposeClient, job: ComposeJob, timeout_s: float = 30.0) -> ComposeError:
    with pytest.raises(ComposeError) as raised:
        await client.compose(job, timeout_s)
    return raised.value


async def killed_while_it_works(client: ComposeClient, job: ComposeJob, number: int) -> ComposeError:
    """Stop the child so that it surely is at work, then end it by a signal."""
    assert client.child_pid is not None
    os.kill(client.child_pid, signal.SIGSTOP)
    task = asyncio.create_task(failed(client, job))
    await asyncio.sleep(0.1)
    os.kill(client.child_pid, number)
    os.kill(client.child_pid, signal.SIGCONT)
    return await task


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
async def test_a_dying_decoder_costs_one_product(
    process: ComposeProcess, make_job: Callable[..., ComposeJob], number: int
) -> None:
    async with ComposeClient(process.socket_path) as client, ComposeClient(process.socket_path) as neighbour:
        good = await client.compose(make_job())
        await neighbour.compose(make_job())
        first, others = client.child_pid, neighbour.child_pid
        error = await killed_while_it_works(client, make_job(), number)
        assert (error.code, error.retryable) == ("decoder_died", True)
        assert await client.compose(make_job()) == good
        assert client.child_pid != first
        await neighbour.compose(make_job())
        assert neighbour.child_pid == others, "another connection never noticed"


async def test_memory_is_bounded(tmp_path: Path, make_job: Callable[..., ComposeJob]) -> None:
    large = tmp_path / "large.png"
    Image.new("L", (7000, 7000)).save(large, compress_level=1)
    with ComposeProcess(limits=Limits(**{**SMALL, "memory_bytes": 700 * 2**20, "cpu_s": 20})) as process:  # type: ignore[arg-type]
        async with ComposeClient(process.socket_path) as client:
            hungry = make_job(
                placement={"fit": "cover", "shadow": {}, "rotation": 45},
                sizes=[{"name": "a", "width": 8192, "height": 8192}],
            )
            from compositor.compose.job import ComposeJob

            job = ComposeJob(large, hungry.frame, False, hungry.design, hungry.design.sizes[0])
            error = await failed(client, job)
            assert error.code in ("too_much_memory", "decoder_died")
            await client.compose(make_job())


async def test_processor_time_is_bounded(make_job: Callable[..., ComposeJob]) -> None:
    sizes = [{"name": "a", "width": 8192, "height": 8192}]
    slow = make_job(sizes=sizes, output={"kind": "webp", "exact": True})
    with ComposeProcess(limits=Limits(cpu_s=1, wall_s=60.0)) as process:
        async with ComposeClient(process.socket_path) as client:
            error = await failed(client, slow)
            assert error.code == "decoder_died"
            await client.compose(make_job())


async def test_a_caller_stops_waiting_and_the_decoder_is_ended(
    process: ComposeProcess, make_job: Callable[..., ComposeJob]
) -> None:
    async with ComposeClient(process.socket_path) as client:
        await client.compose(make_job())
        pid = client.child_pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        started = time.monotonic()
        error = await failed(client, make_job(), timeout_s=0.3)
        assert (error.code, error.retryable) == ("decoder_timeout", True)
        assert time.monotonic() - started < 2
        await client.compose(make_job())
        os.kill(pid, signal.SIGCONT)
        await gone(pid)


async def test_a_child_ends_with_its_connection(process: ComposeProcess, make_job: Callable[..., ComposeJob]) -> None:
    client = ComposeClient(process.socket_path)
    await client.compose(make_job())
    pid = client.child_pid
    assert pid is not None
    await client.close()
    await gone(pid)


async def test_a_fault_of_ours_is_an_answer(process: ComposeProcess, make_job: Callable[..., ComposeJob]) -> None:
    async with ComposeClient(process.socket_path) as client:
        with pytest.raises(ComposeError) as raised:
            await client._ask({"do": "compose", "job": {}}, 5)
        assert raised.value.code == "compose_failed"
        pid = client.child_pid
        await client.compose(make_job())
        assert client.child_pid == pid


async def test_rubbish_on_the_socket_ends_its_own_child_only(
    process: ComposeProcess, make_job: Callable[..., ComposeJob]
) -> None:
    for rubbish in (b"\xff\xff\xff\xff", b"\0\0\0\3abc", b"\0"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(process.socket_path))
            assert "pid" in protocol.receive(connection)
            connection.sendall(rubbish)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(10)
            assert connection.recv(10) == b""
    async with ComposeClient(process.socket_path) as client:
        await client.compose(make_job())
