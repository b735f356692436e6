"""Gateways that die, hang and stop: every row ends, each job runs once."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from sqlalchemy import update

from gateway.failures import GenerationError
from gateway.ledger import Lease, LeaseLostError, Ledger, NewGeneration
from models.db import Database, DatabaseError, utc_now
from models.tables import Generation
from tests.gateway.conftest import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.gateway.conftest import StartGateway
    from tests.support.fake_backend import FakeBackend


@pytest.fixture
def database(either_database: str) -> str:
    return either_database


@pytest.fixture
async def db(database: str, key: str) -> AsyncIterator[Database]:
    database_ = Database(database)
    yield database_
    await database_.close()


async def new_row(db: Database, ledger: Ledger, key: str, **values: Any) -> Generation:
    """A row as a gateway leaves it that died: open, its lease run out."""
    from gateway.keys import Keys

    caller = await Keys(db).find(key)
    assert caller is not None
    row, fresh = await ledger.open(
        NewGeneration(
            owner_id=caller.owner_id,
            key_id=caller.key_id,
            idempotency_key="k",
            request_hash="0" * 64,
            request_id="req_before",
            input={"prompt": "x", "seed": 4, "num_images": 1},
            backend=values.pop("backend", "http://nowhere"),
            backend_kind="selfhosted",
        )
    )
    assert fresh
    expired = {"lease_expires_at": utc_now() - timedelta(seconds=1), **values}
    async with db.write() as session:
        await session.execute(update(Generation).where(Generation.id == row.id).values(**expired))
    return row


async def state_of(db: Database, generation_id: str) -> tuple[str, str | None]:
    async with db.read() as session:
        row = await session.get(Generation, generation_id)
        assert row is not None
        return row.state, row.error_code


async def test_only_one_of_many_takes_a_row_over(db: Database, key: str) -> None:
    row = await new_row(db, Ledger(db, lease_seconds=10), key)
    ledgers = [Ledger(db, lease_seconds=10) for _ in range(8)]
    taken = await asyncio.gather(*(ledger.take_over(()) for ledger in ledgers))
    (winner,) = [rows[0] for rows in taken if rows]
    assert (winner.id, winner.fence) == (row.id, 2)


async def test_a_live_lease_is_left_alone(db: Database, key: str) -> None:
    await new_row(db, Ledger(db, lease_seconds=10), key, lease_expires_at=utc_now() + timedelta(seconds=5))
    assert await Ledger(db, lease_seconds=10).take_over(()) == []


async def test_a_writer_with_an_old_fence_is_refused_whatever_it_says(db: Database, key: str) -> None:
    first, second = Ledger(db, lease_seconds=10), Ledger(db, lease_seconds=10)
    row = await new_row(db, first, key)
    await second.take_over(())
    late = Lease(row.id, row.fence)
    for attempt in (
        first.mark_submitted(late),
        first.keep_backend_job(late, "x"),
        first.complete(late, {}, []),
        first.fail(late, GenerationError()),
        first.release(late),
    ):
        with pytest.raises(LeaseLostError):
            await attempt
    assert await first.renew([row.id]) == {row.id}
    assert await second.renew([row.id]) == set()
    assert (await state_of(db, row.id))[0] == "accepted"


async def test_an_ended_row_never_changes(db: Database, key: str) -> None:
    ledger = Ledger(db, lease_seconds=10)
    row = await new_row(db, ledger, key)
    lease = Lease(row.id, 1)
    await ledger.fail(lease, GenerationError())
    with pytest.raises(LeaseLostError):
        await ledger.complete(lease, {}, [])
    assert await state_of(db, row.id) == ("failed", "backend_failed")


async def test_a_row_that_was_never_sent_is_sent(
    db: Database, key: str, start_gateway: StartGateway, backend: FakeBackend
) -> None:
    row = await new_row(db, Ledger(db, lease_seconds=10), key)
    await start_gateway()

    async def completed() -> bool:
        return (await state_of(db, row.id))[0] == "completed"

    await until(completed)
    assert backend.submissions == [row.id]
    assert backend.jobs[row.id].headers["X-Request-ID"] == "req_before"


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"state": "submitted"}, "backend_lost"),
        ({"state": "submitted", "backend": "http://elsewhere/v2/igen"}, "backend_lost"),
        ({"state": "accepted", "created_at": utc_now() - timedelta(days=1)}, "generation_timeout"),
        ({"state": "submitted", "created_at": utc_now() - timedelta(days=1)}, "backend_lost"),
    ],
    ids=["unknown there", "backend changed", "too old to send", "too old and unknown"],
)
async def test_a_row_that_cannot_be_finished_fails_honestly_and_is_not_sent_again(
    db: Database, start_gateway: StartGateway, backend: FakeBackend, values: dict[str, Any], code: str
) -> None:
    gateway = await start_gateway()
    row = await new_row(db, Ledger(db, lease_seconds=10), gateway.key, **{"backend": backend.url, **values})

    async def failed() -> bool:
        return await state_of(db, row.id) == ("failed", code)

    await until(failed)
    assert backend.submissions == []


async def test_a_runpod_row_without_the_backends_id_is_submission_unknown(
    db: Database, key: str, start_gateway: StartGateway, backend: FakeBackend
) -> None:
    row = await new_row(db, Ledger(db, lease_seconds=10), key, state="submitted", backend=backend.url)
    await start_gateway(backend_kind="runpod")

    async def failed() -> bool:
        return await state_of(db, row.id) == ("failed", "submission_unknown")

    await until(failed)
    assert backend.submissions == []


async def test_another_gateway_finishes_what_a_dead_one_began(
    start_gateway: StartGateway, backend: FakeBackend
) -> None:
    backend.seconds = 2.5
    first, second = await start_gateway(), await start_gateway()
    asked = asyncio.create_task(first.generate(idempotency_key="k"))
    await until(lambda: backend.jobs)
    await first.crash()
    reply = await second.generate(idempotency_key="k")
    assert (reply.status, reply.headers["Idempotency-Replayed"]) == (200, "true")
    assert len(backend.submissions) == 1
    row = await second.row()
    assert (row.state, row.fence) == ("completed", 2)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)


async def test_a_gateway_that_slept_past_its_lease_does_no_harm(
    start_gateway: StartGateway, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.seconds = 2.5
    sleeper, waker = await start_gateway(), await start_gateway()
    asked = asyncio.create_task(sleeper.generate(idempotency_key="k"))
    await until(lambda: backend.jobs)

    async def nothing(_: object) -> set[str]:
        return set()

    monkeypatch.setattr(sleeper.services.ledger, "renew", nothing)
    monkeypatch.setattr(sleeper.services.ledger, "take_over", nothing)
    reply = await asked
    assert reply.status == 200
    row = await waker.row()
    assert (row.state, row.fence, row.lease_owner) == ("completed", 2, waker.services.ledger.owner)
    told = await waker.services.ledger.tell(row.id)
    assert told is not None
    assert len(told.pictures) == 1
    assert len(backend.submissions) == 1


async def test_a_row_that_could_not_be_closed_is_finished_later_from_the_backends_answer(
    start_gateway: StartGateway, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.forwarder.CLOSE_PAUSES_S", (0.01,))
    gateway = await start_gateway()
    ledger = gateway.services.ledger
    real, refusals = ledger.complete, [DatabaseError(), DatabaseError()]

    async def complete(*arguments: Any) -> None:
        if refusals:
            raise refusals.pop()
        await real(*arguments)

    monkeypatch.setattr(ledger, "complete", complete)
    reply = await gateway.generate()
    assert reply.status == 200
    assert not refusals
    row = await gateway.row()
    assert (row.state, row.fence) == ("completed", 2)
    assert backend.drawn == {row.id: 1}


async def test_on_sigterm_readiness_ends_callers_are_answered_and_the_rest_is_given_back(
    start_gateway: StartGateway, backend: FakeBackend
) -> None:
    backend.seconds = 4
    stopping, staying = await start_gateway(drain_seconds=0.5), await start_gateway()
    asked = asyncio.create_task(stopping.generate(idempotency_key="k"))
    await until(lambda: backend.jobs)
    ready = stopping.http.get(stopping.url + "/healthz")
    async with ready as answer:  # a connection that stays open
        assert answer.status == 200
    stopping.server.handle_exit(signal.SIGTERM, None)
    reply = await asked
    assert (reply.status, reply.code) == (503, "still_running")
    assert reply.headers["Retry-After"]
    assert reply.json["id"] == next(iter(backend.jobs))
    replay = await staying.generate(idempotency_key="k")
    assert replay.status == 200
    assert len(backend.submissions) == 1


async def test_a_job_that_ends_in_time_is_answered_while_draining(
    start_gateway: StartGateway, backend: FakeBackend
) -> None:
    backend.seconds = 0.6
    gateway = await start_gateway(drain_seconds=5)
    asked = asyncio.create_task(gateway.generate())
    await until(lambda: backend.jobs)
    gateway.server.handle_exit(signal.SIGTERM, None)
    assert (await asked).status == 200


class GatewayProcess:
    """`python -m gateway`, as the supervisor starts it."""

    def __init__(self, environment: dict[str, str], port: int) -> None:
        self._environment = environment
        self.url = f"http://127.0.0.1:{port}"
        self.process: asyncio.subprocess.Process

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway", env=self._environment, stderr=asyncio.subprocess.DEVNULL
        )
        await until(self._alive, seconds=60)

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()

    async def _alive(self) -> bool:
        assert self.process.returncode is None
        async with aiohttp.ClientSession() as http:
            with suppress(aiohttp.ClientError):
                async with http.get(self.url + "/healthz") as answer:
                    return answer.status == 200
        return False


@pytest.fixture
async def gateway_process(
    database: str, key: str, backend: FakeBackend, tmp_path: Path
) -> AsyncIterator[GatewayProcess]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "IGEN_HOME": str(tmp_path),
        "IGEN_DATABASE_URL": database,
        "IGEN_BACKEND_URL": backend.url,
        "IGEN_BACKEND_KEY": backend.key,
        "IGEN_PORT": str(port),
        "IGEN_LEASE_SECONDS": "1",
        "IGEN_DRAIN_SECONDS": "1",
    }
    running = GatewayProcess(environment, port)
    await running.start()
    yield running
    if running.process.returncode is None:
        running.process.terminate()
        await running.process.wait()


async def only_generation(url: str, key: str) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers) as http, http.get(url + "/api/generations/") as answer:
        (one,) = (await answer.json())["generations"]
        return dict(one)


@pytest.mark.parametrize("forgets", [False, True], ids=["backend lives", "backend restarts too"])
async def test_kill_9_in_mid_request_ends_the_row_after_a_restart(
    gateway_process: GatewayProcess, key: str, backend: FakeBackend, *, forgets: bool
) -> None:
    backend.seconds = 1.0
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as http:
        asked = asyncio.create_task(http.post(gateway_process.url + "/api/generate/", json={"prompt": "x"}))
        await until(lambda: backend.jobs)
        await gateway_process.kill()
        with pytest.raises(aiohttp.ClientError):
            await asked
    if forgets:
        await backend.kill()
        await backend.start()
    await gateway_process.start()

    async def ended() -> bool:
        return (await only_generation(gateway_process.url, key))["status"] != "running"

    await until(ended, seconds=15)
    row = await only_generation(gateway_process.url, key)
    if forgets:
        assert (row["status"], row["error"]["code"]) == ("error", "backend_lost")
    else:
        assert row["status"] == "success"
        async with aiohttp.ClientSession() as http, http.get(row["image_url"]) as picture:
            assert picture.status == 200
    assert len(backend.submissions) == 1


async def test_sigterm_ends_the_process_with_0(gateway_process: GatewayProcess) -> None:
    gateway_process.process.terminate()
    assert await asyncio.wait_for(gateway_process.process.wait(), 15) == 0
