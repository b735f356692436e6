from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from tests.support.inference_rig import Rig


async def scrape(rig: Rig) -> dict[tuple[str, ...], float]:
    async with aiohttp.ClientSession() as http, http.get(rig.base + "/metrics") as answer:
        assert answer.status == 200
        assert answer.content_type == "text/plain"
        text = await answer.text()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_jobs_pictures_queue_and_steps_are_shown(rig: Rig) -> None:
    await rig.call("POST", "/runsync", json={"input": {"prompt": "x", "num_images": 3}})
    rig.engine.hold()
    waiting = (await rig.run())["id"]
    seen = await scrape(rig)
    assert seen["igen_jobs_ended_total", "COMPLETED"] == 1
    assert seen["igen_jobs_ended_total", "FAILED"] == 0
    assert seen["igen_jobs_accepted_total",] == 2
    assert seen["igen_pictures_total",] == 3
    assert seen["igen_picture_batch_size_count",] == 3
    assert seen["igen_jobs", "IN_QUEUE"] == 1
    assert seen["igen_queue_depth",] == 1
    assert seen["igen_step_seconds",] == 0.002
    assert seen["igen_engine_up",] == 1
    assert seen["igen_job_run_seconds_count",] == 1
    await rig.call("POST", f"/cancel/{waiting}")
    assert (await scrape(rig))["igen_jobs_ended_total", "CANCELLED"] == 1


async def test_two_servers_in_one_process_count_apart(rig: Rig) -> None:
    """Nothing is registered in prometheus-client's global registry."""
    from prometheus_client import REGISTRY

    assert not [name for name in REGISTRY._names_to_collectors if name.startswith("igen")]
