from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING

import pytest

from gateway.answers import tell
from tests.gateway.conftest import until
from tests.support.fake_backend import png

if TYPE_CHECKING:
    from tests.gateway.conftest import RunningGateway, StartGateway
    from tests.support.fake_backend import FakeBackend

PROMPT = {"prompt": "A futuristic cityscape at sunset"}


@pytest.fixture
def database(either_database: str) -> str:
    return either_database


async def test_a_prompt_becomes_a_stored_picture(gateway: RunningGateway, backend: FakeBackend) -> None:
    reply = await gateway.generate({**PROMPT, "seed": 7, "width": 128, "height": 72})
    assert reply.status == 200
    answer = reply.json
    assert answer["status"] == "success"
    assert answer["image_url"].startswith("http://pictures.example/media/generated/")
    assert answer["image_url"].endswith(".png")
    assert answer["images"] == [
        {
            "url": answer["image_url"],
            "media_type": "image/png",
            "seed": 7,
            "width": 128,
            "height": 72,
            "bytes": len(png(128, 72, 7)),
            "flagged": False,
        }
    ]
    assert (answer["seed"], answer["seeds"], answer["width"], answer["height"]) == (7, [7], 128, 72)
    assert (answer["checkpoint"], answer["demonstration"], answer["ignored"]) == ("fake", True, [])
    assert answer["timings"]["run_s"] == 0.1
    assert answer["timings"]["total_s"] >= 0
    picture = await gateway.request("GET", answer["image_url"].removeprefix("http://pictures.example"), key=None)
    assert picture.body == png(128, 72, 7)
    (job,) = backend.jobs.values()
    assert job.id == answer["id"] == reply.headers["X-Generation-ID"]
    assert job.input == {**PROMPT, "seed": 7, "width": 128, "height": 72, "request_id": answer["id"]}
    row = await gateway.row()
    assert (row.state, row.fence, row.backend_kind) == ("completed", 1, "selfhosted")


async def test_both_spellings_of_the_address_answer_without_redirect(gateway: RunningGateway) -> None:
    for path in ("/api/generate", "/api/generate/"):
        assert (await gateway.request("POST", path, json=PROMPT)).status == 200


async def test_every_field_of_the_job_input_is_taken_at_the_top(
    gateway: RunningGateway, backend: FakeBackend
) -> None:
    fields = {
        "prompt": "a red circle",
        "negative_prompt": "",
        "width": 64,
        "height": 64,
        "num_inference_steps": 3,
        "guidance_scale": 2.5,
        "seed": 0,
        "num_images": 2,
        "scheduler": "euler",
        "strict": True,
        "strength": 0.5,
        "refiner_inference_steps": 1,
        "high_noise_frac": 0.1,
        "request_id": "mine",
    }
    reply = await gateway.generate(fields)
    assert reply.status == 200
    assert [image["seed"] for image in reply.json["images"]] == [0, 1]
    assert reply.headers["X-Request-ID"] == "mine"
    (job,) = backend.jobs.values()
    assert job.input == {**fields, "request_id": job.id}
    assert job.headers["X-Request-ID"] == "mine"


@pytest.mark.parametrize("sent", [{}, {"seed": -1}, {"seed": None}])
async def test_the_gateway_chooses_and_records_a_seed(
    sent: dict[str, int | None], gateway: RunningGateway, backend: FakeBackend
) -> None:
    answers = [(await gateway.generate({**PROMPT, **sent})).json for _ in range(2)]
    assert answers[0]["seed"] != answers[1]["seed"]
    assert [row.input["seed"] for row in await gateway.rows()] == [answer["seed"] for answer in answers]
    assert [job.input["seed"] for job in backend.jobs.values()] == [answer["seed"] for answer in answers]
    key = {"Idempotency-Key": "the-same"}
    first, again = [await gateway.generate({**PROMPT, **sent}, headers=key) for _ in range(2)]
    assert (first.json["id"], first.json["seed"]) == (again.json["id"], again.json["seed"])


async def test_request_ids(gateway: RunningGateway, backend: FakeBackend) -> None:
    given = await gateway.generate(headers={"X-Request-ID": "abc-1.2_3"})
    assert given.headers["X-Request-ID"] == "abc-1.2_3"
    (job,) = backend.jobs.values()
    assert job.headers["X-Request-ID"] == "abc-1.2_3"
    assert (await gateway.row()).request_id == "abc-1.2_3"
    for bad in ("a b", "x" * 200, "<script>", ""):
        made = await gateway.request("GET", "/", headers={"X-Request-ID": bad})
        assert made.headers["X-Request-ID"].startswith("req_")


async def test_beyond_the_places_callers_get_503_with_retry_after(
    start_gateway: StartGateway, backend: FakeBackend
) -> None:
    gateway = await start_gateway(max_inflight=2)
    backend.seconds = 0.6
    replies = await asyncio.gather(*(gateway.generate() for _ in range(6)))
    assert sorted(reply.status for reply in replies) == [200, 200, 503, 503, 503, 503]
    for reply in replies:
        if reply.status == 503:
            assert reply.code == "gateway_full"
            assert int(reply.headers["Retry-After"]) > 0
    assert len(await gateway.rows()) == 2
    assert (await gateway.generate()).status == 200


async def test_the_callers_own_generations_can_be_looked_at(
    gateway: RunningGateway, backend: FakeBackend, other_key: str
) -> None:
    made = [(await gateway.generate()).json for _ in range(3)]
    backend.fail_with = "out_of_memory: the picture is too large for this device"
    failed = await gateway.generate()

    page = (await gateway.request("GET", "/api/generations/?limit=2")).json
    assert [row["id"] for row in page["generations"]] == [failed.json["id"], made[2]["id"]]
    rest = (await gateway.request("GET", f"/api/generations?limit=9&before={page['next_before']}")).json
    assert [row["id"] for row in rest["generations"]] == [made[1]["id"], made[0]["id"]]
    assert rest["next_before"] is None

    one = (await gateway.request("GET", f"/api/generations/{made[0]['id']}")).json
    assert {**made[0], "input": one["input"]} == one
    assert one["input"]["prompt"] == PROMPT["prompt"]
    bad = (await gateway.request("GET", f"/api/generations/{failed.json['id']}")).json
    assert (bad["status"], bad["error"]["code"]) == ("error", "backend_failed")

    assert (await gateway.request("GET", f"/api/generations/{made[0]['id']}", key=other_key)).status == 404
    assert (await gateway.request("GET", "/api/generations/", key=other_key)).json["generations"] == []


async def test_a_running_generation_says_so(gateway: RunningGateway, backend: FakeBackend) -> None:
    backend.seconds = 1
    asked = asyncio.create_task(gateway.generate())
    while not backend.jobs:
        await asyncio.sleep(0.02)
    (job_id,) = backend.jobs
    looked = (await gateway.request("GET", f"/api/generations/{job_id}")).json
    assert (looked["status"], looked["id"]) == ("running", job_id)
    assert (await asked).json["id"] == job_id


SMALL = {"prompt": "x", "seed": 9, "width": 64, "height": 64}


async def delete(gateway: RunningGateway, generation_id: str, **options: str) -> int:
    return (await gateway.request("DELETE", f"/api/generations/{generation_id}", **options)).status


def path_of(generation: dict[str, str]) -> str:
    return generation["image_url"].removeprefix("http://pictures.example")


def stored(gateway: RunningGateway) -> int:
    store = gateway.settings.home / "store"
    return len([path for name in ("objects", "inputs") for path in (store / name).rglob("*") if path.is_file()])


async def test_a_deleted_generation_is_gone_with_its_pictures_and_its_line_stays(
    gateway: RunningGateway, backend: FakeBackend
) -> None:
    body = {**SMALL, "num_images": 2, "image": base64.b64encode(png(64, 64, 1)).decode()}
    made = (await gateway.generate(body, idempotency_key="k")).json
    other = (await gateway.generate()).json
    assert stored(gateway) == 4
    assert await delete(gateway, made["id"]) == 204
    for address in (f"/api/generations/{made['id']}", f"/api/generations/{made['id']}/events", path_of(made)):
        assert (await gateway.request("GET", address)).status == 404
    assert (await gateway.request("POST", "/api/verify", json={"generation": made["id"]})).status == 404
    listed = (await gateway.request("GET", "/api/generations/")).json["generations"]
    assert [row["id"] for row in listed] == [other["id"]]
    await until(lambda: stored(gateway) == 1)
    assert (await gateway.request("GET", path_of(other))).status == 200

    assert await delete(gateway, made["id"]) == 204, "again"
    row = (await gateway.rows())[0]
    assert (row.id, row.state, row.input["num_images"]) == (made["id"], "completed", 2)
    again = await gateway.generate(body, idempotency_key="k")
    assert (again.status, again.code, again.json["id"]) == (410, "generation_deleted", made["id"])
    assert backend.drawn[made["id"]] == 1
    told = await gateway.services.ledger.tell(made["id"])
    assert told is not None
    assert tell(told, "")["error"]["code"] == "generation_deleted", "for those who watched it"


async def test_only_the_owner_deletes(gateway: RunningGateway, other_key: str) -> None:
    made = (await gateway.generate(SMALL)).json
    assert await delete(gateway, made["id"], key=other_key) == 404
    for nobodys in (f"{made['id'][:-1]}_", "gen_00000000000000000000000000", "1", "%00"):
        assert await delete(gateway, nobodys) == 404
    refused = await gateway.request("DELETE", f"/api/generations/{made['id']}", key=None)
    assert refused.status == 401
    assert (await gateway.request("GET", path_of(made))).status == 200
    assert await delete(gateway, f"{made['id']}/") == 204


async def test_a_picture_that_two_generations_share_goes_with_the_second(gateway: RunningGateway) -> None:
    first, second = [(await gateway.generate(SMALL)).json for _ in range(2)]
    assert stored(gateway) == 1
    assert await delete(gateway, first["id"]) == 204
    await gateway.services.sweeper.sweep()
    assert (await gateway.request("GET", path_of(first))).status == 404
    assert (await gateway.request("GET", path_of(second))).body == png(64, 64, 9)
    assert await delete(gateway, second["id"]) == 204
    await until(lambda: stored(gateway) == 0)
    third = (await gateway.generate(SMALL)).json
    assert (await gateway.request("GET", path_of(third))).body == png(64, 64, 9)


async def test_a_generation_under_way_is_not_deleted(gateway: RunningGateway, backend: FakeBackend) -> None:
    backend.seconds = 1
    asked = asyncio.create_task(gateway.generate(SMALL))
    await until(lambda: backend.jobs)
    (job_id,) = backend.jobs
    refused = await gateway.request("DELETE", f"/api/generations/{job_id}")
    assert (refused.status, refused.code, refused.json["error"]["retryable"]) == (409, "generation_running", True)
    assert int(refused.headers["Retry-After"]) > 0
    assert (await asked).status == 200
    assert await delete(gateway, job_id) == 204


async def test_a_failed_generation_can_be_deleted(gateway: RunningGateway, backend: FakeBackend) -> None:
    backend.fail_with = "out_of_memory: the picture is too large for this device"
    failed = (await gateway.generate(SMALL)).json["id"]
    assert await delete(gateway, failed) == 204
    assert (await gateway.request("GET", "/api/generations/")).json["generations"] == []
    assert (await gateway.row()).state == "failed"
