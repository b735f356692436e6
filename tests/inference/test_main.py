"""The server as a process of its own: exit codes, signals, logs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.support.inference_rig import KEY, free_socket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parents[2]


@dataclass
class Server:
    """A server process with its log in a file."""

    process: asyncio.subprocess.Process
    http: aiohttp.ClientSession
    base: str
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]

    async def ping(self) -> int:
        try:
            async with self.http.get(self.base + "/ping") as answer:
                return answer.status
        except aiohttp.ClientError:
            return 0

    async def until_ping(self, *statuses: int) -> int:
        async with asyncio.timeout(90):
            while (status := await self.ping()) not in statuses:
                await asyncio.sleep(0.05)
        return status

    async def post(self, path: str, **fields: Any) -> tuple[int, Any]:
        async with self.http.post(self.base + "/v2/igen" + path, json={"input": {"prompt": "x", **fields}}) as answer:
            return answer.status, await answer.json()

    async def until_running(self) -> None:
        """Wait until a job is being drawn."""
        async with asyncio.timeout(90):
            while True:
                async with self.http.get(self.base + "/v2/igen/health") as answer:
                    if (await answer.json())["jobs"]["inProgress"]:
                        return
                await asyncio.sleep(0.02)

    async def exit_code(self) -> int:
        async with asyncio.timeout(90):
            return await self.process.wait()


@asynccontextmanager
async def serving(home: Path, script: dict[str, Any], **variables: str) -> AsyncIterator[Server]:
    listener = free_socket()
    port = listener.getsockname()[1]
    listener.close()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("IGEN_")},
        "IGEN_HOME": str(home),
        "IGEN_INFERENCE_PORT": str(port),
        "IGEN_INFERENCE_KEY": KEY,
        "FAKE_ENGINE": json.dumps(script),
        **variables,
    }
    log_file = home / "log"
    with log_file.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.fake_process", "server", cwd=ROOT, env=environment, stderr=log
        )
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http:
        try:
            yield Server(process, http, f"http://127.0.0.1:{port}", log_file)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def test_sigterm_lets_jobs_finish_and_exits_cleanly(tmp_path: Path) -> None:
    async with serving(tmp_path, {"step_s": 0.05}) as server:
        await server.until_ping(200)
        running = asyncio.create_task(server.post("/runsync", num_inference_steps=50, request_id="k"))
        await server.until_running()
        server.process.send_signal(signal.SIGTERM)
        assert await server.until_ping(503) == 503, "it still answers, and says that it is not ready"
        status, body = await server.post("/run")
        assert (status, body["error"]["code"]) == (503, "shutting_down")
        status, body = await running
        assert (status, body["status"]) == (200, "COMPLETED")
        assert await server.exit_code() == 0
        assert not [event for event in server.events() if event["event"] == "job_lost"]


async def test_sigterm_past_the_deadline_names_the_lost_jobs(tmp_path: Path) -> None:
    async with serving(tmp_path, {"step_s": 0.1}, IGEN_DRAIN_S="0.5") as server:
        await server.until_ping(200)
        for number in range(3):
            await server.post("/run", num_inference_steps=150, request_id=f"job{number}")
        server.process.send_signal(signal.SIGTERM)
        assert await server.exit_code() == 0
        lost = {event["job_id"] for event in server.events() if event["event"] == "job_lost"}
        assert lost == {"job0", "job1", "job2"}


async def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path, {"step_s": 0.1}, IGEN_DRAIN_S="60") as server:
        await server.until_ping(200)
        await server.post("/run", num_inference_steps=150)
        server.process.send_signal(signal.SIGTERM)
        await server.until_ping(503)
        server.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(40):
            await server.process.wait()


async def test_a_result_that_nobody_fetched_is_named(tmp_path: Path) -> None:
    async with serving(tmp_path, {"step_s": 0.02}, IGEN_DRAIN_S="2") as server:
        await server.until_ping(200)
        await server.post("/run", num_inference_steps=30, request_id="unfetched")
        server.process.send_signal(signal.SIGTERM)
        assert await server.exit_code() == 0
        assert [event["job_id"] for event in server.events() if event["event"] == "result_lost"] == ["unfetched"]


async def test_after_a_kill_the_next_process_knows_nothing_and_works(tmp_path: Path) -> None:
    async with serving(tmp_path, {"step_s": 0.05}) as server:
        await server.until_ping(200)
        running = asyncio.create_task(server.post("/runsync", num_inference_steps=100, request_id="k"))
        await server.until_running()
        server.process.kill()
        try:
            await running
        except aiohttp.ClientError:
            pass
        else:
            raise AssertionError("the caller must see that its connection broke")
    async with serving(tmp_path, {}) as server:
        await server.until_ping(200)
        async with server.http.get(server.base + "/v2/igen/status/k") as answer:
            assert answer.status == 404
        assert (await server.post("/runsync", request_id="k"))[1]["status"] == "COMPLETED"


async def test_a_checkpoint_that_cannot_be_loaded_ends_the_process_with_one_clear_line(tmp_path: Path) -> None:
    async with serving(tmp_path, {"load_s": 0.5, "load_error": "no checkpoint is called 'nope'"}) as server:
        assert await server.until_ping(204) == 204
        assert await server.exit_code() == 1
        (line,) = [event for event in server.events() if event["level"] == "error"]
        assert line["event"] == "checkpoint_not_loaded"
        assert line["reason"] == "no checkpoint is called 'nope'"
        assert "Traceback" not in server.log


async def test_a_broken_engine_ends_the_process_with_an_error(tmp_path: Path) -> None:
    async with serving(tmp_path, {"step_s": 0.1, "break_after_s": 1.0}) as server:
        await server.until_ping(200)
        status, body = await server.post("/runsync", num_inference_steps=150)
        assert (status, body["status"]) == (200, "FAILED")
        assert await server.exit_code() == 1


async def test_a_stop_while_loading_does_not_wait_for_the_load(tmp_path: Path) -> None:
    async with serving(tmp_path, {"load_s": 60}) as server:
        await server.until_ping(204)
        server.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(40):
            await server.process.wait()


async def test_behind_runpods_load_balancer_it_serves_without_a_key_of_its_own(tmp_path: Path) -> None:
    behind_runpod = {"IGEN_INFERENCE_AUTH": "platform", "IGEN_INFERENCE_KEY": ""}
    async with serving(tmp_path, {"load_s": 2}, **behind_runpod, RUNPOD_ENDPOINT_ID="ep1") as server:
        assert await server.until_ping(204, 200) == 204
        assert await server.until_ping(200) == 200
        server.http.headers["Authorization"] = "Bearer a-key-of-runpods"
        answer = await server.post("/runsync")
        assert (answer[0], answer[1]["status"]) == (200, "COMPLETED")
    async with serving(tmp_path, {}, **behind_runpod, RUNPOD_POD_ID="pod1") as server:
        assert await server.exit_code() == 2
        assert "IGEN_INFERENCE_AUTH: 'platform' is accepted in a worker of RunPod serverless only" in server.log


async def test_without_a_key_it_does_not_start(tmp_path: Path) -> None:
    async with serving(tmp_path, {}, IGEN_INFERENCE_KEY="") as server:
        assert await server.exit_code() == 2
        assert server.log.count("\n") == 1
        assert "IGEN_INFERENCE_KEY" in server.log


@pytest.mark.parametrize("variable", ["IGEN_SAFETY_HOOK", "IGEN_WATERMARK_HOOK"])
async def test_a_hook_that_cannot_be_loaded_is_named_and_nothing_is_served(tmp_path: Path, variable: str) -> None:
    async with serving(tmp_path, {}, **{variable: "no_such_module_here:factory"}) as server:
        assert await server.exit_code() == 2
        assert f"{variable}: no_such_module_here:factory cannot be loaded" in server.log


async def test_a_broken_file_of_styles_is_named_and_nothing_is_served(tmp_path: Path) -> None:
    (tmp_path / "styles.json").write_text("{")
    async with serving(tmp_path, {}) as server:
        assert await server.exit_code() == 2
        assert "styles.json: not JSON" in server.log


async def test_serving_without_a_key_is_a_choice_for_loopback(tmp_path: Path) -> None:
    open_server = {"IGEN_INFERENCE_KEY": "", "IGEN_INFERENCE_AUTH": "none"}
    async with serving(tmp_path, {}, **open_server, IGEN_BIND="0.0.0.0") as server:
        assert await server.exit_code() == 2
        assert "IGEN_INFERENCE_AUTH" in server.log
    async with serving(tmp_path, {}, **open_server) as server:
        await server.until_ping(200)
        assert (await server.post("/runsync"))[1]["status"] == "COMPLETED"


async def test_a_taken_port_is_an_error_not_a_hang(tmp_path: Path) -> None:
    listener = free_socket()
    listener.listen()
    port = listener.getsockname()[1]
    async with serving(tmp_path, {}, IGEN_INFERENCE_PORT=str(port)) as server:
        assert await server.exit_code() != 0
        assert str(port) in server.log
    listener.close()


async def test_every_line_of_a_job_carries_its_ids_and_no_line_a_prompt_or_the_key(tmp_path: Path) -> None:
    async with serving(tmp_path, {}, IGEN_LOG_LEVEL="debug") as server:
        await server.until_ping(200)
        async with server.http.post(
            server.base + "/v2/igen/runsync",
            json={"input": {"prompt": "a secret garden", "request_id": "job-1"}},
            headers={"X-Request-ID": "gateway-7"},
        ) as answer:
            assert (await answer.json())["status"] == "COMPLETED"
        lines = [event for event in server.events() if event.get("job_id") == "job-1"]
        assert {line["event"] for line in lines} >= {"job_accepted", "job_ended"}
        assert {line["request_id"] for line in lines} == {"gateway-7"}
        assert "secret garden" not in server.log
        assert KEY not in server.log
        assert "base64" not in server.log
