"""Two gateways, three workers and all that they need, as real processes behind nginx; then each of them killed.

scripts/smoke tries the whole through nginx, at first and after every reboot.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import pytest_asyncio
from lxml import etree

from scripts.calling.access import find_access
from scripts.smoke import PROMPT, Request, smoke
from scripts.smoking.steps import Steps
from tests.support.compositor_rig import frame_png
from tests.support.gateway_process import plain_environment
from tests.support.shop import Shop
from tests.support.topology import ROOT, Topology

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

PRODUCTS = 160
STATES = ("completed", "completed_with_failures", "failed", "cancelled")
SMOKE_STEPS = [
    *("alive", "ready", "key", "generate", "picture", "replay"),
    *("frame", "run", "outputs", "output feed", "clean up", "delete"),
]
PROCESSES = ("gateway-0", "gateway-1", "worker-0", "worker-1", "worker-2", "reconcile", "nginx")
SERVERS = ("redis", "s3", "postgres")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop() -> AsyncIterator[Shop]:
    async with Shop() as running:
        running.add(PRODUCTS, (160, 120))
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def topology(tmp_path_factory: pytest.TempPathFactory, shop: Shop) -> AsyncIterator[Topology]:
    made = Topology(tmp_path_factory.mktemp("topology"), shop.host)
    await asyncio.to_thread(made.__enter__)
    yield made
    await asyncio.to_thread(made.__exit__)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(topology: Topology) -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(headers=topology.headers, timeout=timeout) as session:
        yield session


async def call(http: aiohttp.ClientSession, method: str, url: str, **options: Any) -> tuple[int, Any]:
    async with http.request(method, url, **options) as answer:
        is_json = answer.content_type == "application/json"
        return answer.status, await answer.json() if is_json else await answer.read()


async def patiently(http: aiohttp.ClientSession, url: str, seconds: float = 90) -> Any:
    """A GET through nginx that may meet parts that are just starting again."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            status, body = await call(http, "GET", url)
        except aiohttp.ClientError as problem:
            status, body = 0, repr(problem)
        if status == 200:
            return body
        assert time.monotonic() < deadline, (status, body)
        await asyncio.sleep(0.2)


async def start_run(http: aiohttp.ClientSession, topology: Topology, shop: Shop, name: str) -> tuple[str, int]:
    """A frame's address and its run's id."""
    design = {"placement": {"box": {"x": 40, "y": 40, "width": 120, "height": 120}}, "output": {"quality": len(name)}}
    data = aiohttp.FormData()
    data.add_field("name", name)
    data.add_field("picture", io.BytesIO(frame_png()), filename="frame.png", content_type="image/png")
    data.add_field("feed", shop.feed, filename="feed.xml", content_type="application/xml")
    data.add_field("design", json.dumps(design))
    status, frame = await call(http, "POST", f"{topology.url}/api/frames", data=data)
    assert status == 201, frame
    address = f"/api/frames/{frame['id']}"
    status, run = await call(http, "POST", f"{topology.url}{address}/runs")
    assert status == 202, run
    return address, run["id"]


async def check_run(http: aiohttp.ClientSession, topology: Topology, address: str, run: int) -> None:
    """Every product has one picture, which is there, and the published feed names each once."""
    told = await patiently(http, f"{topology.url}{address}/runs/{run}")
    assert (told["state"], told["completed"], told["total"], told["waiting"]) == ("completed", PRODUCTS, PRODUCTS, 0)
    frame = await patiently(http, f"{topology.url}{address}")
    feed = etree.fromstring(await patiently(http, frame["output_feed"]["xml"]))
    links = [each.text for each in feed.iter("{http://base.google.com/ns/1.0}image_link")]
    assert len(set(links)) == len(links) == PRODUCTS
    for link in links[:: PRODUCTS // 6]:
        assert link is not None
        assert link.startswith(f"{topology.url}/media/outputs/")
        assert (await patiently(http, link)).startswith(b"\xff\xd8\xff")


async def watch(http: aiohttp.ClientSession, url: str) -> list[dict[str, Any]]:
    """What the WebSocket tells until the run is over."""
    told = []
    async with http.ws_connect(url) as socket:
        while True:
            message = await socket.receive_json(timeout=60)
            told.append(message)
            if message.get("state") in STATES:
                return told


async def until_ready(http: aiohttp.ClientSession, topology: Topology) -> None:
    """Until both gateways see all that they need."""
    deadline = time.monotonic() + 90
    for gateway in topology.gateways:
        while (told := await patiently(http, f"{gateway}/readyz"))["status"] != "ready":
            assert time.monotonic() < deadline, told
            await asyncio.sleep(0.2)


async def smoke_again(topology: Topology) -> None:
    """What scripts/smoke does, without another Python to start."""
    steps = Steps(lambda _: None)
    await smoke(Request(find_access(topology.url, topology.key), PROMPT, None, framing=True, run_s=120), steps)
    told = {outcome.name: (outcome.state, outcome.told) for outcome in steps.outcomes}
    assert list(told) == SMOKE_STEPS, told
    assert {state for state, _ in told.values()} == {"ok"}, (told, topology.logs())


async def test_smoke_passes_through_nginx_with_its_websocket(http: aiohttp.ClientSession, topology: Topology) -> None:
    process = await asyncio.create_subprocess_exec(
        *(str(ROOT / "scripts" / "smoke"), topology.url, "--json"),
        env=plain_environment(IGEN_API_KEY=topology.key, IGEN_HOME=str(topology.folder / "nobodys")),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 300)
    steps = {step["name"]: (step["state"], step["told"]) for step in json.loads(out)["steps"]}
    assert process.returncode == 0, steps
    assert list(steps) == SMOKE_STEPS
    assert {state for state, _ in steps.values()} == {"ok"}, steps
    seen = [json.loads(line) for line in topology.programs["nginx"].log.splitlines() if line.startswith("{")]
    asked = {(line["method"], line["path"].split("/")[1], line["status"]) for line in seen}
    assert {("GET", "ws", 101), ("POST", "api", 202), ("GET", "media", 200), ("DELETE", "api", 204)} <= asked
    for gateway in topology.gateways:
        _, listed = await call(http, "GET", f"{gateway}/api/generations/")
        assert listed["generations"] == [], "it deleted what it drew"


async def test_a_picture_is_drawn_and_comes_back_through_nginx(
    http: aiohttp.ClientSession, topology: Topology
) -> None:
    body = {"prompt": "a red circle", "num_inference_steps": 4}
    status, told = await call(http, "POST", f"{topology.url}/api/generate/", json=body)
    assert status == 200, told
    assert told["image_url"].startswith(f"{topology.url}/media/generated/")
    status, picture = await call(http, "GET", told["image_url"])
    assert (status, picture[:4]) == (200, b"\x89PNG")
    for gateway in topology.gateways:
        status, listed = await call(http, "GET", f"{gateway}/api/generations/")
        assert [row["id"] for row in listed["generations"]] == [told["id"]]
    assert told["image_url"].rpartition("/")[2] not in topology.programs["nginx"].log


async def test_nginx_hides_metrics_and_bounds_bodies(http: aiohttp.ClientSession, topology: Topology) -> None:
    status, _ = await call(http, "GET", f"{topology.url}/metrics")
    assert status == 404
    status, text = await call(http, "GET", f"{topology.gateways[0]}/metrics")
    assert (status, b"igen_gateway_requests_total" in text) == (200, True)
    status, _ = await call(http, "POST", f"{topology.url}/api/frames/1/runs", data=io.BytesIO(b" " * 3_000_000))
    assert status == 413
    status, told = await call(http, "GET", f"{topology.url}/readyz")
    assert (status, told["status"]) == (200, "ready")


async def test_the_same_key_at_both_gateways_is_one_job(http: aiohttp.ClientSession, topology: Topology) -> None:
    async def drawn() -> float:
        _, text = await call(http, "GET", f"{topology.inference_url}/metrics")
        lines = [line for line in text.decode().splitlines() if line.startswith("igen_jobs_accepted_total ")]
        return float(lines[0].split()[1])

    before = await drawn()
    body = {"prompt": "a blue star", "num_inference_steps": 12}
    asked = [
        call(http, "POST", f"{url}/api/generate/", json=body, headers={"Idempotency-Key": "one"})
        for url in topology.gateways * 3
    ]
    answers = await asyncio.gather(*asked)
    assert {status for status, _ in answers} == {200}, answers
    assert len({told["id"] for _, told in answers}) == 1
    assert await drawn() == before + 1


async def test_progress_is_right_from_either_gateway_and_nothing_is_done_twice(
    http: aiohttp.ClientSession, topology: Topology, shop: Shop
) -> None:
    shop.sent.clear()
    address, run = await start_run(http, topology, shop, "calm")
    socket = f"/ws/progress/{address.rpartition('/')[2]}/"
    watched = await asyncio.gather(*(watch(http, url + socket) for url in (topology.url, *topology.gateways)))
    for told in watched:
        processed = [message["processed"] for message in told]
        assert processed == sorted(processed)
        assert (told[-1]["processed"], told[-1]["total"], told[-1]["failed"]) == (PRODUCTS, PRODUCTS, 0)
        assert {message["total"] for message in told if message["state"] == "composing"} <= {PRODUCTS}
    await check_run(http, topology, address, run)
    assert len(shop.sent) == len(set(shop.sent)) == PRODUCTS


@pytest.mark.parametrize("part", [*PROCESSES, *SERVERS])
async def test_a_killed_part_comes_back_and_nothing_is_lost(
    http: aiohttp.ClientSession, topology: Topology, shop: Shop, part: str
) -> None:
    address, run = await start_run(http, topology, shop, f"without {part}")
    await until_processed(http, topology, address, 20)
    await asyncio.to_thread(topology.restart, part)
    told = await until_over(http, topology, address, run)
    assert not told["failed"], f"nothing is given up while {part} is away for a moment: {told}"
    await check_run(http, topology, address, run)
    await until_ready(http, topology)
    await smoke_again(topology)


async def until_processed(http: aiohttp.ClientSession, topology: Topology, address: str, count: int) -> None:
    deadline = time.monotonic() + 60
    while (await patiently(http, f"{topology.gateways[1]}{address}/progress"))["processed"] < count:
        assert time.monotonic() < deadline, topology.logs()
        await asyncio.sleep(0.02)


async def until_over(http: aiohttp.ClientSession, topology: Topology, address: str, run: int) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while (told := await patiently(http, f"{topology.url}{address}/runs/{run}"))["state"] not in STATES:
        assert time.monotonic() < deadline, (told, topology.logs())
        await asyncio.sleep(0.2)
    over: dict[str, Any] = told
    return over


async def test_the_generator_killed_in_mid_request(http: aiohttp.ClientSession, topology: Topology) -> None:
    body = {"prompt": "a purple circle", "num_inference_steps": 100, "num_images": 4}
    asked = asyncio.create_task(call(http, "POST", f"{topology.url}/api/generate/", json=body))
    deadline = time.monotonic() + 60
    while (
        b'igen_jobs{state="IN_PROGRESS"} 1.0' not in (await call(http, "GET", f"{topology.inference_url}/metrics"))[1]
    ):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    await asyncio.to_thread(topology.restart, "inference")
    status, told = await asked
    assert status in (502, 503), told
    assert told["error"]["code"]
    while True:
        body = {"prompt": "a red circle", "num_inference_steps": 3}
        status, told = await call(http, "POST", f"{topology.url}/api/generate/", json=body)
        if status == 200:
            break
        assert status in (502, 503), told
        assert time.monotonic() < deadline + 60
        await asyncio.sleep(0.5)
    await smoke_again(topology)
