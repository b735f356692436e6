"""Five hundred requests of every kind against the real server's process: nothing is left over, nothing is lost."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from PIL import Image

from tests.support.inference_rig import KEY, base64_of, free_socket
from tests.support.real_engine import PROMPT, furnish, largest_difference, needs_checkpoint, pixels_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [needs_checkpoint, pytest.mark.slow, pytest.mark.timeout(900)]  # a minute on a quiet machine

ROOT = Path(__file__).parents[2]
ROUND = 250
"""Requests in one round: 50 are cancelled, 12 or 13 are malformed, the others are fetched. There are two."""
CLIENTS = 12
SLACK_MB = 16
"""By which the process may be larger after the second round than after the first, which is the warm-up.

That is 64 kB for each request, the size of one small picture with its file; malloc's arenas alone make it a few MB
more or less.
"""
END = {"COMPLETED", "CANCELLED", "FAILED", "TIMED_OUT"}
SOURCE = base64_of(Image.new("RGB", (64, 64), "blue"))
MASK = base64_of(Image.linear_gradient("L").resize((64, 64)))
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"width": 96, "height": 64, "n": 2},
    {"width": 128, "height": 128, "preview_every": 1},
    {"scheduler": "dpmpp_2m_sde"},
    {"scheduler": "unipc", "guidance_scale": 1.0},
    {"image": SOURCE, "strength": 0.6},
    {"image": SOURCE, "mask": MASK, "strength": 1.0, "output_format": "webp"},
    {"hires": {"scale": 1.5, "steps": 2}},
    {"loras": [{"name": "red"}], "output_format": "jpeg"},
    {"loras": [{"name": "blue", "scale": 0.5}, {"name": "red"}]},
    {"checkpoint": "second"},
    {"refiner": "polish", "high_noise_frac": 0.5},
    {"style": "cinematic", "prompt": "(a red circle:1.3), [blue] " + "word " * 90},
    {"strict": True},
)
MALFORMED: tuple[dict[str, Any], ...] = (
    {"prompt": ""},
    {"width": 65},
    {"num_inference_steps": 0},
    {"image": "bm90IGEgcGljdHVyZQ=="},
    {"mask": MASK},
    {"loras": [{"name": "../../etc/passwd"}]},
    {"scheduler": "nope", "checkpoint": "nope"},
    {"unheard_of": 1},
    {"image": "https://127.0.0.1/x.png"},
    {"seed": 2**32},
)


@dataclass
class Answers:
    """What callers were told, each request once."""

    ends: Counter[str] = field(default_factory=Counter)
    refused: int = 0

    @property
    def accepted(self) -> int:
        return self.ends.total()


@dataclass
class Program:
    """`python -m inference`, and a caller with the key."""

    process: asyncio.subprocess.Process
    base: str
    http: aiohttp.ClientSession

    async def call(self, method: str, path: str, **kwargs: Any) -> tuple[int, Any]:
        async with self.http.request(method, f"{self.base}/v2/igen{path}", **kwargs) as answer:
            return answer.status, await answer.json()

    async def draw(self, **fields: Any) -> Any:
        wanted = {"prompt": PROMPT, "seed": 5, "num_inference_steps": 3, **fields}
        status, body = await self.call("POST", "/runsync?wait=300000", json={"input": wanted})
        assert (status, body.get("status")) == (200, "COMPLETED"), body
        return body["output"]

    async def figures(self) -> dict[str, float]:
        """Every figure of `/metrics` by its name and labels."""
        async with self.http.get(f"{self.base}/metrics") as answer:
            lines = [line for line in (await answer.text()).splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    async def quiet(self) -> dict[str, float]:
        """The figures once every job is over and every result forgotten."""
        async with asyncio.timeout(120):
            while True:
                figures = await self.figures()
                if not figures["igen_jobs_remembered"] and not figures["igen_pictures_running"]:
                    return figures
                await asyncio.sleep(0.2)

    def resident_mb(self) -> float:
        return int(self._status("VmRSS").split()[0]) / 1024

    def threads(self) -> int:
        return int(self._status("Threads"))

    def files(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    def _status(self, name: str) -> str:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{name}:"))


@asynccontextmanager
async def program(home: Path) -> AsyncIterator[Program]:
    listener = free_socket()
    port = listener.getsockname()[1]
    listener.close()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("IGEN_")},
        "IGEN_HOME": str(home),
        "IGEN_INFERENCE_PORT": str(port),
        "IGEN_INFERENCE_KEY": KEY,
        "IGEN_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        # results go soon, so that what is left is what leaks
        "IGEN_RESULT_TTL_S": "3",
        "IGEN_SYNC_RESULT_TTL_S": "3",
    }
    with (home / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "inference", cwd=ROOT, env=environment, stdout=log, stderr=log
        )
    try:
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http:
            made = Program(process, f"http://127.0.0.1:{port}", http)
            await until_ready(made)
            yield made
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def until_ready(server: Program) -> None:
    async with asyncio.timeout(120):
        while True:
            assert server.process.returncode is None, "the server ended"
            try:
                async with server.http.get(f"{server.base}/ping") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)


def requests_of(round_: int) -> list[tuple[str, dict[str, Any]]]:
    """What is sent in one round: the same kinds in both, shuffled in another way, with other seeds."""
    kinds = ["cancel"] * (ROUND // 5) + ["malformed"] * (ROUND // 20 + round_ % 2)
    kinds += ["fetch", "stream", "sync"] * ROUND
    sent = []
    for number, how in enumerate(kinds[:ROUND]):
        fields = {"prompt": PROMPT, "width": 64, "height": 64, "seed": number + round_}
        fields["num_inference_steps"] = 2 + number % 3
        fields |= MALFORMED[number % len(MALFORMED)] if how == "malformed" else KINDS[number % len(KINDS)]
        sent.append((how, fields))
    random.Random(round_).shuffle(sent)
    return sent


async def one(server: Program, how: str, fields: dict[str, Any], chance: random.Random, answers: Answers) -> None:
    path = "/runsync?wait=300000" if how == "sync" else "/run"
    status, body = await server.call("POST", path, json={"input": fields})
    if how == "malformed":
        assert (status, body["error"]["code"]) == (422, "invalid_input"), (fields, body)
        answers.refused += 1
        return
    assert status == 200, (how, fields, body)
    job = body["id"]
    if how == "cancel":
        await asyncio.sleep(chance.choice((0.0, 0.02, 0.1, 0.3)))
        status, body = await server.call("POST", f"/cancel/{job}")
        assert status == 200, body
        assert body["status"] in {"CANCELLED", "COMPLETED"}, body
    async with asyncio.timeout(300):
        while body["status"] not in END:
            await asyncio.sleep(0.05)
            status, body = await server.call("GET", f"/{'stream' if how == 'stream' else 'status'}/{job}")
            assert status == 200, body
    if how == "stream":
        status, body = await server.call("GET", f"/status/{job}")
    answers.ends[body["status"]] += 1
    if body["status"] == "COMPLETED" and how != "cancel":
        assert len(body["output"]["images"]) == fields.get("n", 1)
        assert body["output"]["seeds"][0] == fields["seed"]
        assert pixels_of(body["output"]).ndim == 3


async def play(server: Program, round_: int) -> Answers:
    """One round by clients that each take the next request when their last is answered."""
    answers, left, chance = Answers(), requests_of(round_), random.Random(round_)

    async def client() -> None:
        while left:
            how, fields = left.pop()
            await one(server, how, fields, chance, answers)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return answers


async def test_five_hundred_requests_leave_nothing_behind(tmp_path: Path) -> None:
    furnish(tmp_path)
    async with program(tmp_path) as server:
        begun = time.monotonic()
        first = await server.draw(strict=True)
        told = [await play(server, 0)]
        await server.quiet()
        warm = (server.resident_mb(), server.files(), server.threads())
        told.append(await play(server, 1))
        figures = await server.quiet()
        after = (server.resident_mb(), server.files(), server.threads())
        print(f"{time.monotonic() - begun:.0f} s; MB, files, threads: {warm}, then {after}; {told}")

        # every answer accounted for, by the callers and by the server
        for answers in told:
            assert answers.accepted + answers.refused == ROUND
            assert set(answers.ends) <= {"COMPLETED", "CANCELLED"}
            assert answers.ends["CANCELLED"] > 0
        ends = told[0].ends + told[1].ends + Counter({"COMPLETED": 1})
        for state in END:
            assert figures[f'igen_jobs_ended_total{{state="{state}"}}'] == ends[state], state
        assert figures["igen_jobs_accepted_total"] == ends.total()
        # no slot and no place in a queue stays taken
        left = ("igen_queue_depth", "igen_pictures_running", "igen_result_bytes", 'igen_jobs{state="IN_QUEUE"}')
        assert {name: figures[name] for name in left} == dict.fromkeys(left, 0.0)
        assert figures["igen_engine_healthy"] == 1
        # and it draws as at first
        assert largest_difference(first, await server.draw(strict=True)) == 0

        assert after[0] <= warm[0] + SLACK_MB
        assert after[1] <= warm[1] + CLIENTS  # kept-alive connections come and go
        assert after[2] <= warm[2] + 1

        server.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            assert await server.process.wait() == 0
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert "job_lost" not in log
