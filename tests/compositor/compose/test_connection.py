"""Two requests under way on one connection: whose fault is it, and what becomes of the other?"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest

from compositor.compose.client import ComposeClient
from compositor.compose.errors import ComposeError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from compositor.compose.client import ComposeProcess
    from compositor.compose.job import Composed, ComposeJob

Two = tuple["asyncio.Task[Composed]", "asyncio.Task[Composed]", int]


@pytest.fixture
async def client(process: ComposeProcess, make_job: Callable[..., ComposeJob]) -> AsyncIterator[ComposeClient]:
    async with ComposeClient(process.socket_path, process) as made:
        await made.compose(make_job())
        yield made


async def two_under_way(client: ComposeClient, make_job: Callable[..., ComposeJob], timeout_s: float = 30.0) -> Two:
    """Both are sent, and neither is answered: the process is stopped."""
    pid = client.child_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    first = asyncio.create_task(client.compose(make_job(placement={"padding": 1}), timeout_s))
    second = asyncio.create_task(client.compose(make_job(placement={"padding": 2})))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not first.done()
    assert not second.done()
    return first, second, pid


async def test_a_death_is_the_firsts_and_the_second_is_asked_again(
    client: ComposeClient, make_job: Callable[..., ComposeJob]
) -> None:
    first, second, pid = await two_under_way(client, make_job)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ComposeError) as raised:
        await first
    assert raised.value.code == "decoder_died"
    assert (await second).width == 200
    assert client.child_pid not in (None, pid)


async def test_a_death_after_the_firsts_answer_is_the_seconds(
    client: ComposeClient, make_job: Callable[..., ComposeJob]
) -> None:
    first = asyncio.create_task(client.compose(make_job()))
    second = asyncio.create_task(client.compose(make_job(sizes=[{"name": "a", "width": 8000, "height": 8000}])))
    assert (await first).width == 200
    assert client.child_pid is not None
    os.kill(client.child_pid, signal.SIGKILL)
    with pytest.raises(ComposeError) as raised:
        await second
    assert raised.value.code == "decoder_died"


async def test_a_first_that_takes_too_long_does_not_cost_the_second(
    client: ComposeClient, make_job: Callable[..., ComposeJob]
) -> None:
    first, second, pid = await two_under_way(client, make_job, timeout_s=0.2)
    with pytest.raises(ComposeError) as raised:
        await first
    assert raised.value.code == "decoder_timeout"
    assert (await second).width == 200
    os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("cancelled", [0, 1])
async def test_the_other_has_its_own_answer_when_one_is_cancelled(
    client: ComposeClient, make_job: Callable[..., ComposeJob], cancelled: int
) -> None:
    *two, pid = await two_under_way(client, make_job)
    two[cancelled].cancel()
    with pytest.raises(asyncio.CancelledError):
        await two[cancelled]
    os.kill(pid, signal.SIGCONT)
    other = await two[1 - cancelled]
    job = make_job(placement={"padding": 2 - cancelled})
    assert other == await client.compose(job)
    assert client.child_pid != pid, "whose answer to the cancelled one nobody waits for"
