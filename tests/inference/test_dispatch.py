"""What may happen to a job between acceptance and oblivion, over real HTTP with a clock of the test's own."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from inference.engine.types import EngineError
from tests.support.fake_engine import FakeEngine

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.inference_rig import Rig

SWEEP = 0.6  # a little more than two sweeps


# ---- exactly once


@pytest.mark.parametrize("by_header", [True, False])
async def test_fifty_identical_submissions_draw_once(rig: Rig, *, by_header: bool) -> None:
    headers = {"Idempotency-Key": "k1"} if by_header else {}
    wanted = {"prompt": "x", "seed": 1} if by_header else {"prompt": "x", "seed": 1, "request_id": "k1"}
    answers = await asyncio.gather(
        *(rig.call("POST", "/runsync", json={"input": wanted}, headers=headers) for _ in range(50))
    )
    assert {status for status, _ in answers} == {200}
    assert {body["id"] for _, body in answers} == {"k1"}
    assert {body["status"] for _, body in answers} == {"COMPLETED"}
    assert len({json.dumps(body["output"], sort_keys=True) for _, body in answers}) == 1
    assert len(rig.engine.submitted) == 1
    assert len(rig.engine.drawn) == 1


async def test_a_random_seed_is_drawn_once_for_a_key(rig: Rig) -> None:
    first = await rig.call("POST", "/runsync", json={"input": {"prompt": "x", "request_id": "k"}})
    again = await rig.call("POST", "/runsync", json={"input": {"prompt": "x"}}, headers={"Idempotency-Key": "k"})
    assert first[1]["output"] == again[1]["output"]


async def test_run_and_runsync_share_the_keys(rig: Rig) -> None:
    assert (await rig.run(request_id="k"))["id"] == "k"
    status, body = await rig.call("POST", "/runsync", json={"input": {"prompt": "a red circle", "request_id": "k"}})
    assert (status, body["id"], body["status"]) == (200, "k", "COMPLETED")
    assert len(rig.engine.submitted) == 1


async def test_the_same_key_with_another_input_is_refused(rig: Rig) -> None:
    await rig.run(request_id="k")
    for change in ({"prompt": "other"}, {"prompt": "a red circle", "seed": 4}):
        status, body = await rig.call("POST", "/run", json={"input": {"request_id": "k", **change}})
        assert status == 422
        assert "another input" in body["error"]["message"]


async def test_header_and_field_must_agree(rig: Rig) -> None:
    status, body = await rig.call(
        "POST", "/run", json={"input": {"prompt": "x", "request_id": "a"}}, headers={"Idempotency-Key": "b"}
    )
    assert status == 422
    assert [problem["field"] for problem in body["error"]["details"]] == ["Idempotency-Key", "input.request_id"]
    same = await rig.run("x", request_id="a", headers={"Idempotency-Key": "a"})
    assert same["id"] == "a"


@pytest.mark.parametrize("key", ["", "a b", "../x", "-a", "ä", "x" * 129])
async def test_a_key_that_cannot_be_an_id_is_refused(rig: Rig, key: str) -> None:
    status, body = await rig.call("POST", "/run", json={"input": {"prompt": "x"}}, headers={"Idempotency-Key": key})
    assert status == 422
    assert body["error"]["details"][0]["field"] == "Idempotency-Key"


async def test_jobs_without_a_key_are_all_drawn(rig: Rig) -> None:
    ids = {(await rig.run(seed=1))["id"] for _ in range(5)}
    assert len(ids) == 5
    assert len(rig.engine.submitted) == 5


# ---- cancel


async def test_cancel_stops_the_engine_at_a_step(rig: Rig) -> None:
    job_id = (await rig.run(num_inference_steps=150))["id"]
    await rig.until(job_id, "IN_PROGRESS")
    assert await rig.call("POST", f"/cancel/{job_id}") == (200, {"id": job_id, "status": "CANCELLED"})
    async with asyncio.timeout(2):
        while not rig.engine.cancelled:
            await asyncio.sleep(0.005)
    assert rig.engine.drawn == []
    assert (await rig.call("GET", f"/status/{job_id}"))[1]["status"] == "CANCELLED"


async def test_cancel_in_the_same_breath_as_submit_leaves_nothing_running(rig: Rig) -> None:
    """The task that follows the job has not taken its first step then."""
    dispatcher = rig.service.ready()
    rig.engine.hold()
    for number in range(20):
        job_id = (await rig.run(request_id=f"j{number}"))["id"]
        dispatcher.cancel(job_id)
    rig.engine.release()
    async with asyncio.timeout(2):
        while len(rig.engine.cancelled) < 20:
            await asyncio.sleep(0.005)
    assert rig.engine.drawn == []


async def test_a_waiting_runsync_hears_of_the_cancel(rig: Rig) -> None:
    rig.engine.hold()
    waiting = asyncio.create_task(rig.call("POST", "/runsync", json={"input": {"prompt": "x", "request_id": "k"}}))
    await asyncio.sleep(0.2)
    await rig.call("POST", "/cancel/k")
    status, body = await waiting
    assert (status, body["status"]) == (200, "CANCELLED")


async def test_cancelling_a_finished_job_changes_nothing(rig: Rig) -> None:
    job_id = (await rig.run())["id"]
    await rig.until(job_id, "COMPLETED")
    assert (await rig.call("POST", f"/cancel/{job_id}"))[1] == {"id": job_id, "status": "COMPLETED"}
    assert (await rig.call("GET", f"/status/{job_id}"))[1]["output"]["images"]


# ---- retry and purge


async def test_retry_draws_a_failed_job_again_under_its_id(make_rig: Callable[..., Any]) -> None:
    engine = FakeEngine(failures={"flaky": EngineError("once")})
    async with make_rig(engine) as rig:
        job_id = (await rig.run("flaky"))["id"]
        assert (await rig.until(job_id, "FAILED"))["error"] == "engine_error: once"
        engine._failures.clear()
        assert await rig.call("POST", f"/retry/{job_id}") == (200, {"id": job_id, "status": "IN_QUEUE"})
        done = await rig.until(job_id, "COMPLETED")
        assert "error" not in done
        assert (await rig.call("GET", "/health"))[1]["jobs"]["retried"] == 1
        seeds = {job.pictures[0].seed for job in engine.submitted}
        assert len(seeds) == 1, "a retry keeps the seed that was drawn at random"


async def test_only_failed_jobs_can_be_retried(rig: Rig) -> None:
    done = (await rig.run())["id"]
    await rig.until(done, "COMPLETED")
    rig.engine.hold()
    waiting, cancelled = (await rig.run())["id"], (await rig.run())["id"]
    await rig.call("POST", f"/cancel/{cancelled}")
    for job_id, state in ((done, "COMPLETED"), (waiting, "IN_QUEUE"), (cancelled, "CANCELLED")):
        status, body = await rig.call("POST", f"/retry/{job_id}")
        assert (status, body["error"]["code"]) == (400, "not_retryable")
        assert state in body["error"]["message"]


async def test_purge_removes_only_what_waits(make_rig: Callable[..., Any]) -> None:
    engine = FakeEngine(capacity=1, step_s=0.01)
    async with make_rig(engine) as rig:
        running = (await rig.run(num_inference_steps=60))["id"]
        await rig.until(running, "IN_PROGRESS")
        waiting = [(await rig.run())["id"] for _ in range(5)]
        assert await rig.call("POST", "/purge-queue") == (200, {"removed": 5, "status": "completed"})
        for job_id in waiting:
            assert (await rig.call("GET", f"/status/{job_id}"))[1]["status"] == "CANCELLED"
        await rig.until(running, "COMPLETED")
        assert len(engine.drawn) == 1
        assert (await rig.call("POST", "/purge-queue"))[1]["removed"] == 0


# ---- time


async def test_a_result_of_run_is_kept_half_an_hour(rig: Rig) -> None:
    job_id = (await rig.run())["id"]
    await rig.until(job_id, "COMPLETED")
    rig.clock.advance(1799)
    assert (await rig.call("GET", f"/status/{job_id}"))[0] == 200
    rig.clock.advance(1)
    assert (await rig.call("GET", f"/status/{job_id}"))[0] == 404


async def test_a_result_of_runsync_is_kept_a_minute_five_at_most(rig: Rig) -> None:
    short, longer = [(await rig.call("POST", "/runsync", json={"input": {"prompt": "x"}}))[1]["id"] for _ in range(2)]
    assert (await rig.call("GET", f"/status/{longer}?ttl=86400000"))[0] == 200
    rig.clock.advance(60)
    assert (await rig.call("GET", f"/status/{short}"))[0] == 404
    rig.clock.advance(239)
    assert (await rig.call("GET", f"/status/{longer}"))[0] == 200
    rig.clock.advance(1)
    assert (await rig.call("GET", f"/status/{longer}"))[0] == 404


async def test_a_ttl_shortens_too_but_not_for_a_caller_with_a_key(rig: Rig) -> None:
    free, keyed = (await rig.run())["id"], (await rig.run(request_id="k"))["id"]
    for job_id in (free, keyed):
        await rig.until(job_id, "COMPLETED")
        await rig.call("GET", f"/status/{job_id}?ttl=6000")
    rig.clock.advance(6)
    assert (await rig.call("GET", f"/status/{free}"))[0] == 404
    assert (await rig.call("GET", f"/status/{keyed}"))[0] == 200


@pytest.mark.parametrize("ttl", ["0", "-1", "soon"])
async def test_a_ttl_must_be_a_positive_number(rig: Rig, ttl: str) -> None:
    job_id = (await rig.run())["id"]
    status, body = await rig.call("GET", f"/status/{job_id}?ttl={ttl}")
    assert (status, body["error"]["details"][0]["field"]) == (422, "ttl")


async def test_a_keyed_runsync_can_be_repeated_for_half_an_hour(rig: Rig) -> None:
    wanted = {"json": {"input": {"prompt": "x", "request_id": "k"}}}
    first = (await rig.call("POST", "/runsync", **wanted))[1]
    rig.clock.advance(1799)
    assert (await rig.call("POST", "/runsync", **wanted))[1]["output"] == first["output"]
    assert len(rig.engine.drawn) == 1


async def test_policy_ttl_deletes_an_unfinished_job(rig: Rig) -> None:
    rig.engine.hold()
    wanted = {"input": {"prompt": "x", "num_inference_steps": 150}, "policy": {"ttl": 10_000}}
    job_id = (await rig.call("POST", "/run", json=wanted))[1]["id"]
    waiting = asyncio.create_task(rig.call("POST", "/runsync", json={**wanted, "policy": {"ttl": 10_001}}))
    await asyncio.sleep(0.2)
    rig.clock.advance(9)
    await asyncio.sleep(SWEEP)
    assert (await rig.call("GET", f"/status/{job_id}"))[0] == 200
    rig.clock.advance(2)
    status, body = await waiting
    assert (status, body["error"]["code"]) == (404, "not_found")
    assert (await rig.call("GET", f"/status/{job_id}"))[0] == 404
    rig.engine.release()
    async with asyncio.timeout(2):
        while len(rig.engine.cancelled) < 2:
            await asyncio.sleep(0.005)
    assert rig.engine.drawn == []


async def test_execution_timeout_counts_from_the_start_and_stops_the_engine(make_rig: Callable[..., Any]) -> None:
    engine = FakeEngine(step_s=0.02)
    async with make_rig(engine) as rig:
        engine.hold()
        wanted = {"input": {"prompt": "x", "num_inference_steps": 150}, "policy": {"executionTimeout": 5000}}
        job_id = (await rig.call("POST", "/run", json=wanted))[1]["id"]
        rig.clock.advance(3600)
        await asyncio.sleep(SWEEP)
        assert (await rig.call("GET", f"/status/{job_id}"))[1]["status"] == "IN_QUEUE"
        engine.release()
        await rig.until(job_id, "IN_PROGRESS")
        rig.clock.advance(5)
        timed_out = await rig.until(job_id, "TIMED_OUT")
        assert timed_out["error"].startswith("timed_out: ")
        assert timed_out["executionTime"] >= 5000
        async with asyncio.timeout(2):
            while not engine.cancelled:
                await asyncio.sleep(0.005)
        assert (await rig.call("POST", f"/retry/{job_id}"))[1]["status"] == "IN_QUEUE"
        await rig.call("POST", f"/cancel/{job_id}")


# ---- stream


async def test_stream_hands_everything_out_once(rig: Rig) -> None:
    job_id = (await rig.run(seed=9, num_images=3, num_inference_steps=20))["id"]
    chunks: list[Any] = []
    for number in range(500):
        method = "POST" if number % 2 else "GET"
        status, body = await rig.call(method, f"/stream/{job_id}")
        assert status == 200
        assert set(body) == {"status", "stream"}
        chunks += [chunk["output"] for chunk in body["stream"]]
        if body["status"] == "COMPLETED" and not body["stream"]:
            break
        await asyncio.sleep(0.005)
    pictures = [chunk["picture"] for chunk in chunks if "picture" in chunk]
    assert sorted((picture["index"], picture["seed"]) for picture in pictures) == [(0, 9), (1, 10), (2, 11)]
    steps = [chunk["progress"]["step"] for chunk in chunks if "progress" in chunk]
    assert steps == sorted(set(steps))
    result = (await rig.call("GET", f"/status/{job_id}"))[1]["output"]
    assert {picture["image"] for picture in pictures} == set(result["images"])


async def test_two_readers_of_a_stream_share_it(rig: Rig) -> None:
    job_id = (await rig.run(num_images=4))["id"]
    await rig.until(job_id, "COMPLETED")
    answers = await asyncio.gather(*(rig.call("GET", f"/stream/{job_id}") for _ in range(10)))
    pictures = [chunk for _, body in answers for chunk in body["stream"] if "picture" in chunk["output"]]
    assert len(pictures) == 4


async def test_a_cancelled_stream_says_so_once_and_then_ends_readers_that_go_on(rig: Rig) -> None:
    rig.engine.hold()
    job_id = (await rig.run())["id"]
    await rig.call("POST", f"/cancel/{job_id}")
    assert (await rig.call("GET", f"/stream/{job_id}"))[1]["status"] == "CANCELLED"
    body = (await rig.call("GET", f"/stream/{job_id}"))[1]
    assert (body["status"], body["stream"]) == ("FAILED", [])
    assert body["error"].startswith("cancelled: ")
    assert (await rig.call("GET", f"/status/{job_id}"))[1]["status"] == "CANCELLED"


async def test_a_picture_over_the_chunk_limit_is_announced_without_its_pixels(make_rig: Callable[..., Any]) -> None:
    async with make_rig(FakeEngine(noise=True), stream_chunk_bytes=1000) as rig:
        job_id = (await rig.run(seed=5))["id"]
        await rig.until(job_id, "COMPLETED")
        chunks = [chunk["output"] for chunk in (await rig.call("GET", f"/stream/{job_id}"))[1]["stream"]]
        assert [set(chunk["picture"]) for chunk in chunks if "picture" in chunk] == [{"index", "seed", "omitted"}]


# ---- memory


async def test_results_over_the_memory_bound_are_dropped_and_say_so(make_rig: Callable[..., Any]) -> None:
    async with make_rig(FakeEngine(noise=True), max_results_mb=1) as rig:
        ids = []
        for number in range(8):  # about 130 kB of PNG each, twice in base64
            ids.append((await rig.run(request_id=f"k{number}", width=208, height=208))["id"])
            async with asyncio.timeout(5):
                while not rig.service.book.find(ids[-1]).state.terminal:
                    await asyncio.sleep(0.005)
            assert rig.service.book.bytes_held <= 1_000_000
        first = (await rig.call("GET", f"/status/{ids[0]}"))[1]
        assert first["status"] == "COMPLETED"
        assert first["error"].startswith("result_evicted: ")
        assert "output" not in first
        again = await rig.call(
            "POST",
            "/run",
            json={"input": {"prompt": "a red circle", "request_id": "k0", "width": 208, "height": 208}},
        )
        assert again[1]["id"] == "k0"
        assert len(rig.engine.submitted) == 8


async def test_a_result_larger_than_all_memory_for_results_fails_clearly(make_rig: Callable[..., Any]) -> None:
    async with make_rig(FakeEngine(noise=True), max_results_mb=1) as rig:
        status, body = await rig.call(
            "POST", "/runsync", json={"input": {"prompt": "x", "width": 512, "height": 512}}
        )
        assert (status, body["status"]) == (200, "FAILED")
        assert body["error"].startswith("result_too_large: ")


async def test_too_many_remembered_jobs_are_refused(make_rig: Callable[..., Any]) -> None:
    async with make_rig(max_jobs=10) as rig:
        for number in range(10):
            await rig.run(request_id=f"k{number}")
            await rig.until(f"k{number}", "COMPLETED")
        async with rig.http.post(rig.queue + "/run", json={"input": {"prompt": "x"}}) as answer:
            body = await answer.json()
            assert (answer.status, body["error"]["code"]) == (429, "too_many_jobs")
            assert int(answer.headers["Retry-After"]) > 1000


# ---- previews and deadlines


async def test_a_stream_holds_the_newest_preview_of_each_picture(rig: Rig, decode: Callable[[str], Any]) -> None:
    wanted = {"num_images": 2, "num_inference_steps": 150, "preview_every": 10, "seed": 300}
    job_id = (await rig.run(**wanted))["id"]
    seen: dict[int, list[int]] = {0: [], 1: []}
    while (body := (await rig.call("GET", f"/stream/{job_id}"))[1])["status"] != "COMPLETED":
        previews = [chunk["output"]["preview"] for chunk in body["stream"] if "preview" in chunk["output"]]
        assert len({preview["index"] for preview in previews}) == len(previews) <= 2
        for preview in previews:
            assert set(preview) == {"index", "seq", "step", "steps", "image"}
            assert (preview["step"] % 10, preview["steps"]) == (0, 150)
            assert decode(preview["image"]).size == (8, 8)
            seen[preview["index"]].append(preview["seq"])
        await asyncio.sleep(0.03)
    assert all(numbers and numbers == sorted(set(numbers)) for numbers in seen.values())


async def test_the_progress_names_the_newest_preview(rig: Rig) -> None:
    job_id = (await rig.run(num_inference_steps=150, preview_every=5))["id"]
    async with asyncio.timeout(10):
        while (await rig.call("GET", f"/status/{job_id}"))[1]["output"]["progress"]["preview_seq"] < 3:
            await asyncio.sleep(0.01)
    await rig.call("POST", f"/cancel/{job_id}")


async def test_previews_that_nobody_reads_take_little_memory_and_go_with_the_job(rig: Rig) -> None:
    job_id = (await rig.run(num_inference_steps=150, preview_every=1))["id"]
    record = rig.service.book.find(job_id)
    await rig.until(job_id, "COMPLETED")
    assert len(record.previews) == 1
    assert rig.service.book.bytes_held == record.result_bytes
    rig.service.book.remove(record)
    assert rig.service.book.bytes_held == 0


async def test_what_cannot_begin_in_time_is_refused_at_once(rig: Rig) -> None:
    rig.engine.wait_s = 90.5
    async with rig.http.post(rig.queue + "/run", json={"input": {"prompt": "x", "deadline_s": 30}}) as answer:
        body = await answer.json()
        assert (answer.status, answer.headers["Retry-After"]) == (429, "61")
        assert (body["error"]["code"], body["error"]["retryable"]) == ("deadline_unreachable", True)
        assert "in about 90 s" in body["error"]["message"]
    status, _ = await rig.call("POST", "/run", json={"input": {"prompt": "x"}, "policy": {"ttl": 30_000}})
    assert status == 429, "the job would be over before it begins"
    assert (await rig.run(deadline_s=100))["status"] == "IN_QUEUE"
    assert b'igen_jobs_refused_total{reason="deadline_unreachable"} 2.0' in rig.service.metrics.render()


async def test_a_job_that_was_not_begun_in_time_fails_and_may_be_retried(rig: Rig) -> None:
    rig.engine.hold()
    job_id = (await rig.run(deadline_s=30))["id"]
    rig.clock.advance(29)
    await asyncio.sleep(SWEEP)
    assert (await rig.call("GET", f"/status/{job_id}"))[1]["status"] == "IN_QUEUE"
    rig.clock.advance(2)
    failed = await rig.until(job_id, "FAILED")
    assert failed["error"] == "deadline_missed: drawing did not begin within 30 s"
    assert (await rig.call("POST", f"/retry/{job_id}"))[1]["status"] == "IN_QUEUE"
    rig.engine.release()
    await rig.until(job_id, "COMPLETED")


async def test_a_job_that_has_begun_has_no_deadline_any_more(make_rig: Callable[..., Any]) -> None:
    async with make_rig(FakeEngine(step_s=0.02)) as rig:
        job_id = (await rig.run(deadline_s=5, num_inference_steps=100))["id"]
        await rig.until(job_id, "IN_PROGRESS")
        rig.clock.advance(10)
        await asyncio.sleep(SWEEP)
        await rig.until(job_id, "COMPLETED")
