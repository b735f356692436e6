from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.support.fake_backend import Fault

if TYPE_CHECKING:
    from tests.gateway.conftest import RunningGateway, StartGateway
    from tests.support.fake_backend import FakeBackend

PROMPT = {"prompt": "A futuristic cityscape at sunset"}


@pytest.fixture
def database(either_database: str) -> str:
    return either_database


async def test_twenty_retries_at_once_are_one_job(gateway: RunningGateway, backend: FakeBackend) -> None:
    backend.seconds = 0.3
    replies = await asyncio.gather(*(gateway.generate(idempotency_key="one") for _ in range(20)))
    assert [reply.status for reply in replies] == [200] * 20
    assert len({reply.body for reply in replies}) == 1
    replayed = [reply.headers.get("Idempotency-Replayed") for reply in replies]
    assert (replayed.count(None), replayed.count("true")) == (1, 19)
    assert len(backend.submissions) == 1
    assert len(await gateway.rows()) == 1


async def test_twenty_retries_at_two_gateways_are_one_job(start_gateway: StartGateway, backend: FakeBackend) -> None:
    backend.seconds = 0.3
    gateways = [await start_gateway(), await start_gateway()]
    replies = await asyncio.gather(*(gateways[n % 2].generate(idempotency_key="one") for n in range(20)))
    assert [reply.status for reply in replies] == [200] * 20
    assert len({reply.body for reply in replies}) == 1
    assert len(backend.submissions) == 1


async def test_a_finished_answer_is_replayed_word_for_word(gateway: RunningGateway, backend: FakeBackend) -> None:
    first = await gateway.generate(idempotency_key="k 1")
    again = await gateway.generate(idempotency_key="k 1")
    assert (again.status, again.body) == (200, first.body)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    assert len(backend.submissions) == 1


async def test_the_same_meaning_in_other_words_is_the_same_request(
    gateway: RunningGateway, backend: FakeBackend
) -> None:
    await gateway.generate({**PROMPT, "guidance_scale": 2, "num_images": 1}, idempotency_key="k")
    again = await gateway.generate({"guidance_scale": 2.0, **PROMPT, "request_id": "other"}, idempotency_key="k")
    assert again.status == 200
    assert len(backend.submissions) == 1


async def test_another_body_under_the_same_key_is_422(gateway: RunningGateway, backend: FakeBackend) -> None:
    await gateway.generate(idempotency_key="k")
    conflict = await gateway.generate({"prompt": "something else"}, idempotency_key="k")
    assert (conflict.status, conflict.code) == (422, "idempotency_conflict")
    assert conflict.json["error"]["details"][0]["field"] == "Idempotency-Key"
    assert len(backend.submissions) == 1


async def test_another_body_is_422_while_the_first_runs(gateway: RunningGateway, backend: FakeBackend) -> None:
    backend.seconds = 0.6
    first = asyncio.create_task(gateway.generate(idempotency_key="k"))
    while not backend.jobs:
        await asyncio.sleep(0.02)
    assert (await gateway.generate({"prompt": "else"}, idempotency_key="k")).status == 422
    assert (await first).status == 200


async def test_keys_belong_to_their_owner(gateway: RunningGateway, backend: FakeBackend, other_key: str) -> None:
    mine = await gateway.generate(idempotency_key="k")
    theirs = await gateway.generate({"prompt": "theirs"}, idempotency_key="k", key=other_key)
    assert (mine.status, theirs.status) == (200, 200)
    assert mine.json["id"] != theirs.json["id"]


async def test_without_a_key_every_request_is_its_own(gateway: RunningGateway, backend: FakeBackend) -> None:
    await asyncio.gather(*(gateway.generate() for _ in range(3)))
    assert len(backend.submissions) == 3


async def test_a_finished_failure_is_replayed_too(gateway: RunningGateway, backend: FakeBackend) -> None:
    backend.fail_with = "out_of_memory: too large for this device"
    first = await gateway.generate(idempotency_key="k")
    backend.fail_with = None
    again = await gateway.generate(idempotency_key="k")
    assert (first.status, again.status) == (502, 502)
    assert again.headers["Idempotency-Replayed"] == "true"
    for reply in (first, again):
        reply.json["error"].pop("request_id")
    assert first.json == again.json
    assert len(backend.submissions) == 1


@pytest.mark.parametrize("fault", [Fault.FULL_429, Fault.LOADING_503])
async def test_a_job_that_was_never_taken_does_not_use_up_its_key(
    gateway: RunningGateway, backend: FakeBackend, fault: Fault
) -> None:
    backend.submit_faults.append(fault)
    refused = await gateway.generate(idempotency_key="k")
    assert (refused.status, refused.headers["Retry-After"]) == (503, "7")
    retried = await gateway.generate(idempotency_key="k")
    assert retried.status == 200
    assert [row.state for row in await gateway.rows()] == ["failed", "completed"]
