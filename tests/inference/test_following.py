"""Jobs that start from a picture: read at once where it stands in the request, else fetched while the job waits."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.support.fake_engine import FakeEngine, colour_of
from tests.support.inference_rig import base64_of
from tests.support.origin import Origin, answer_with

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.inference_rig import Rig

RED = base64_of(Image.new("RGB", (72, 64), "red"))
PNG = base64.b64decode(RED)


class Gate:
    """Answers with a picture when it is opened."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.asked = 0

    async def __call__(self, _: object, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        await self.open.wait()
        writer.write(answer_with(PNG))
        await writer.drain()


async def post(rig: Rig, path: str = "/run", **fields: Any) -> tuple[int, Any]:
    return await rig.call("POST", path, json={"input": {"prompt": "x", **fields}})


# ---- in the request


async def test_a_picture_in_the_request_is_drawn_upon(rig: Rig, decode: Callable[[str], Any]) -> None:
    status, body = await post(rig, "/runsync", image=RED, seed=5, strength=0.5)
    assert (status, body["status"]) == (200, "COMPLETED"), body
    picture = decode(body["output"]["images"][0])
    assert picture.size == (72, 64)
    assert (picture.getpixel((0, 0)), picture.getpixel((71, 0))) == ((255, 0, 0), colour_of(5))
    assert body["output"]["receipt"]["strength"] == 0.5
    assert len(body["output"]["receipt"]["init_sha256"]) == 64


async def test_a_mask_says_what_is_drawn_anew(rig: Rig, decode: Callable[[str], Any]) -> None:
    mask = Image.new("L", (72, 64), 0)
    mask.paste(255, (0, 0, 8, 64))
    _, body = await post(rig, "/runsync", init_image=RED, mask_image=base64_of(mask), seed=5)
    picture = decode(body["output"]["images"][0])
    assert (picture.getpixel((0, 0)), picture.getpixel((8, 0))) == (colour_of(5), (255, 0, 0))
    assert len(body["output"]["receipt"]["mask_sha256"]) == 64


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"image": "no base64"}, "input.image"),
        ({"image": RED[:80]}, "input.image"),
        ({"image": base64_of(Image.new("RGB", (64, 64)), "BMP")}, "input.image"),
        ({"image": RED, "mask": "QUJD"}, "input.mask"),
        ({"image": "https://example.org/a.png", "mask": "QUJD"}, "input.mask"),
        ({"image": "http://example.org/a.png"}, "input.image"),
        ({"image": "https://10.0.0.1/a.png"}, "input.image"),
        ({"image": RED, "strength": 0}, "input.strength"),
    ],
)
async def test_a_picture_that_cannot_be_used_is_a_wrong_field(rig: Rig, fields: dict[str, Any], field: str) -> None:
    status, body = await post(rig, **fields)
    assert status == 422, body
    assert [problem["field"] for problem in body["error"]["details"]] == [field]
    assert rig.engine.submitted == []
    assert len(rig.service.book) == 0


async def test_fifty_identical_submissions_with_a_picture_draw_once(rig: Rig) -> None:
    answers = await asyncio.gather(*(post(rig, "/runsync", image=RED, seed=1, request_id="k") for _ in range(50)))
    assert {(status, body["id"], body["status"]) for status, body in answers} == {(200, "k", "COMPLETED")}
    assert len(rig.engine.submitted) == 1
    other = base64_of(Image.new("RGB", (72, 64), "blue"))
    assert (await post(rig, image=other, seed=1, request_id="k"))[0] == 422


async def test_a_large_picture_fits_into_a_body(rig: Rig) -> None:
    noise = base64_of(Image.effect_noise((1800, 1800), 200).convert("RGB"), "PNG", compress_level=0)
    assert 12_000_000 < len(noise) < 14_000_000
    body = json.dumps({"input": {"prompt": "x", "image": noise, "width": 64, "height": 64}}).encode()
    status, answer = await rig.call("POST", "/runsync", data=io.BytesIO(body))
    assert (status, answer["status"]) == (200, "COMPLETED"), answer


# ---- from an address


@pytest.fixture
def fetching(make_rig: Callable[..., Any]) -> Callable[..., Any]:
    """`fetching(origin, engine)`: a rig that may fetch from the origin."""

    def make(origin: Origin, engine: FakeEngine | None = None, **changes: Any) -> Any:
        return make_rig(engine, fetch_allow_hosts=f"127.0.0.1:{origin.port}", **changes)

    return make


async def test_a_job_waits_in_the_queue_while_its_picture_is_fetched(
    fetching: Callable[..., Any], decode: Callable[[str], Any]
) -> None:
    gate = Gate()
    async with Origin({"/a": gate}) as origin, fetching(origin) as rig:
        wanted = {"image_url": origin.url("/a"), "request_id": "k", "seed": 5}
        first = await post(rig, **wanted)
        again = await asyncio.gather(*(post(rig, **wanted) for _ in range(10)))
        assert {(status, body["id"], body["status"]) for status, body in [first, *again]} == {(200, "k", "IN_QUEUE")}
        assert rig.engine.submitted == []
        gate.open.set()
        body = await rig.until("k", "COMPLETED")
        assert decode(body["output"]["images"][0]).getpixel((0, 0)) == (255, 0, 0)
        assert gate.asked == 1
        assert len(rig.engine.submitted) == 1


async def test_a_random_seed_survives_the_fetch(fetching: Callable[..., Any]) -> None:
    async with Origin({"/a": answer_with(PNG)}) as origin, fetching(origin) as rig:
        job_id = (await post(rig, image=origin.url("/a"), num_images=2))[1]["id"]
        output = (await rig.until(job_id, "COMPLETED"))["output"]
        assert output["seeds"] == [output["seed"], output["seed"] + 1]


async def test_a_failed_fetch_ends_the_job_with_the_reason_and_a_retry_fetches_again(
    fetching: Callable[..., Any],
) -> None:
    async with Origin() as origin, fetching(origin) as rig:
        job_id = (await post(rig, image=origin.url("/a")))[1]["id"]
        failed = await rig.until(job_id, "FAILED")
        assert failed["error"] == "invalid_input: input.image: cannot be fetched: the address answers 404"
        origin.answers["/a"] = answer_with(PNG)
        assert (await rig.call("POST", f"/retry/{job_id}"))[0] == 200
        await rig.until(job_id, "COMPLETED")


async def test_a_cancel_ends_the_fetch(fetching: Callable[..., Any]) -> None:
    gate = Gate()
    async with Origin({"/a": gate}) as origin, fetching(origin) as rig:
        job_id = (await post(rig, image=origin.url("/a")))[1]["id"]
        while not gate.asked:
            await asyncio.sleep(0.01)
        assert (await rig.call("POST", f"/cancel/{job_id}"))[1]["status"] == "CANCELLED"
        gate.open.set()
        assert await rig.service.ready().wait_idle(5)
        assert rig.engine.submitted == []


async def test_what_is_wrong_with_the_fetched_picture_ends_the_job(fetching: Callable[..., Any]) -> None:
    async with (
        Origin({"/a": answer_with(PNG)}) as origin,
        fetching(origin, max_hires_pixels=4096, max_pixels=8192) as rig,
    ):
        job_id = (await post(rig, image=origin.url("/a"), hires={"scale": 4.0}))[1]["id"]
        assert (await rig.until(job_id, "FAILED"))["error"].startswith("invalid_input: input.hires: 288x256: at most")


async def test_jobs_that_fetch_count_against_the_queue(fetching: Callable[..., Any]) -> None:
    gate = Gate()
    async with Origin({"/a": gate}) as origin, fetching(origin, max_waiting=2) as rig:
        answers = [await post(rig, image=origin.url("/a")) for _ in range(3)]
        assert [status for status, _ in answers] == [200, 200, 429]
        assert answers[2][1]["error"]["code"] == "queue_full"
        gate.open.set()
        for _, body in answers[:2]:
            await rig.until(body["id"], "COMPLETED")


async def test_a_fetched_job_waits_for_room_in_the_engine(fetching: Callable[..., Any]) -> None:
    engine = FakeEngine(max_waiting=1, capacity=1)
    async with Origin({"/a": answer_with(PNG)}) as origin, fetching(origin, engine) as rig:
        engine.hold()
        await rig.run()
        job_id = (await post(rig, image=origin.url("/a")))[1]["id"]
        await asyncio.sleep(0.4)
        assert (await rig.call("GET", f"/status/{job_id}"))[1]["status"] == "IN_QUEUE"
        engine.release()
        await rig.until(job_id, "COMPLETED")


async def test_the_pictures_of_failed_jobs_are_let_go_when_memory_is_short(
    fetching: Callable[..., Any],
) -> None:
    from inference.engine.types import EngineError

    engine = FakeEngine(failures={"x": EngineError("it broke")})
    large = base64_of(Image.new("RGB", (640, 640)))
    async with Origin() as origin, fetching(origin, engine, max_results_mb=2) as rig:
        ids = [(await post(rig, image=large))[1]["id"] for _ in range(3)]
        for job_id in ids:
            await rig.until(job_id, "FAILED")
        assert rig.service.book.bytes_held <= 2_000_000
        status, body = await rig.call("POST", f"/retry/{ids[0]}")
        assert status == 400
        assert "no longer kept" in body["error"]["message"]
        assert (await rig.call("POST", f"/retry/{ids[-1]}"))[0] == 200
