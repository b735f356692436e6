"""docs/deploy's pages for RunPod, followed literally: every command, with the stand-ins in RunPod's place."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from scripts.deploy_runpod import app
from tests.support.inference_rig import KEY as SERVER_KEY
from tests.support.inference_rig import open_rig
from tests.support.runpod_api import KEY, running_account

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = Path(__file__).parents[2] / "docs" / "deploy"
SERVERLESS = (DOCS / "runpod-serverless.md").read_text(encoding="utf-8")
POD = (DOCS / "runpod-pod.md").read_text(encoding="utf-8")
COMMAND = "scripts/deploy_runpod "
OF_OTHER_COMMANDS = {"--build-arg", "--install-only", "--no-framing"}


def blocks(page: str) -> Iterator[str]:
    for found in re.finditer(r"^```sh\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        yield found[1]


def block_with(page: str, text: str) -> str:
    (found,) = [block for block in blocks(page) if text in block]
    return found


async def shell(text: str, **variables: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "bash", "-euo", "pipefail", "-c", text, env={"PATH": "/usr/bin:/bin", **variables}, stdout=-1, stderr=-1
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_every_deployment_of_the_serverless_page_works_in_its_order() -> None:
    lines = [line for block in blocks(SERVERLESS) for line in block.splitlines() if line.startswith(COMMAND)]
    assert len(lines) >= 6
    async with running_account(worker_quota=8) as account:
        for line in lines:
            options = shlex.split(line, comments=True)[1:]
            command = ["--api", account.base, *options]
            answer = "y\n" if "--delete" in options else None
            result = await asyncio.to_thread(
                CliRunner().invoke, app, command, input=answer, env={"RUNPOD_API_KEY": KEY}
            )
            assert result.exit_code == 0, f"{line}\n{result.output}"
        assert [endpoint["name"] for endpoint in account.endpoints.values()] == ["igen-lb"], "igen was deleted"
        assert [template["name"] for template in account.templates.values()] == ["igen-lb"]


def test_every_option_that_the_page_names_is_there() -> None:
    known = set(re.findall(r"--[a-z-]+", CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output))
    named = set(re.findall(r"--[a-z][a-z-]+", SERVERLESS)) - OF_OTHER_COMMANDS
    assert named <= known
    assert known - named <= {"--help", "--config", "--yes", "--api"}, "what there is, the page tells"


def test_the_page_and_the_file_agree_on_the_defaults() -> None:
    result = CliRunner().invoke(app, ["--dry-run"], env={"RUNPOD_API_KEY": None})
    endpoint = next(
        body
        for text in re.findall(r"^\{$.*?^\}$", result.output, re.DOTALL | re.MULTILINE)
        if "gpu" in (body := json.loads(text))
    )
    row = dict(re.findall(r"^\| ([a-zA-Z ,]+?) \|.*\| ([^|]+?) \|$", SERVERLESS, re.MULTILINE))
    assert row["workers, least and most"] == f"{endpoint['workers']['min']}, {endpoint['workers']['max']}"
    assert row["seconds that an idle worker waits"] == str(endpoint["workers"]["idleTimeout"])
    assert row["seconds that one job may run"] == str(endpoint["timeout"] // 1000)
    assert row["seconds in the queue before a worker is added"] == f"{endpoint['scaling']['queueDelay']:g}"


async def test_the_pod_pages_calls_start_a_pod_and_remove_it() -> None:
    async with running_account() as account:
        call = block_with(POD, '"cloud"').replace("https://api.runpod.io", account.base)
        call = call.replace("export RUNPOD_API_KEY=...\n", "")
        made = json.loads(await shell(call, RUNPOD_API_KEY=KEY, IGEN_INFERENCE_KEY=SERVER_KEY))
        (pod,) = account.pods.values()
        assert made == pod
        assert pod["env"]["IGEN_INFERENCE_KEY"] == SERVER_KEY
        assert (pod["args"], pod["ports"]) == ("server", ["8001/http"])
        removal = block_with(POD, "DELETE").replace("https://api.runpod.io", account.base)
        await shell(removal.replace("<pod id>", pod["id"]), RUNPOD_API_KEY=KEY)
        assert account.pods == {}


async def test_the_pod_pages_checks_find_a_server_that_draws(tmp_path: Path) -> None:
    address = "https://<pod id>-8001.proxy.runpod.net"
    async with open_rig(tmp_path) as rig:
        ping = block_with(POD, "/ping").replace(address, rig.base)
        draw = block_with(POD, "/runsync").replace(address, rig.base)
        async with asyncio.timeout(60):
            while await shell(ping) != "200\n":
                await asyncio.sleep(0.05)
        answer: dict[str, Any] = json.loads(await shell(draw, IGEN_INFERENCE_KEY=SERVER_KEY))
        assert answer["status"] == "COMPLETED"
        assert answer["output"]["images"][0].startswith("data:image/")


@pytest.mark.parametrize("page", [SERVERLESS, POD], ids=["serverless", "pod"])
def test_links_of_the_pages_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page):
        assert target.startswith("https://") or (DOCS / target).exists(), target
