"""scripts/deploy_runpod against a stand-in of RunPod's API that refuses what the published schema does not have."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from scripts.deploy_runpod import app
from scripts.deploying.config import IMAGE_CUDA
from tests.support.runpod_api import COMMIT, KEY, RunpodAccount, running_account

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parents[2]
IMAGE = "registry.example/shop/igen-gpu:1"
MODEL = f"https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0:{COMMIT}"


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


@pytest.fixture
async def account() -> AsyncIterator[RunpodAccount]:
    async with running_account() as account:
        yield account


async def deploy(account: RunpodAccount, *options: str, key: str | None = KEY, **variables: str) -> Ended:
    """The command as its own program runs it, in a thread beside the account."""
    environment = {**variables, "RUNPOD_API_KEY": key}
    command = ["--api", account.base, *options]
    result = await asyncio.to_thread(CliRunner().invoke, app, command, env=environment)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ended(result.exit_code, result.stdout, result.stderr)


def the_one(things: dict[str, dict[str, Any]]) -> dict[str, Any]:
    (thing,) = things.values()
    return thing


async def test_an_empty_account_gets_template_endpoint_and_cached_model(account: RunpodAccount) -> None:
    account.volumes.append({"id": "vol1", "name": "loras", "size": 20, "dataCenter": "EU-RO-1", "type": "STANDARD"})
    ended = await deploy(
        account,
        *("--image", IMAGE, "--volume", "loras", "--data-center", "EU-RO-1", "--min-cuda", "12.9"),
        *("--execution-timeout", "300", "--idle-timeout", "20", "--workers-max", "4", "--queue-delay", "2"),
        *("--env", "IGEN_MAX_BATCH=4", "--env-from", "BUCKET_SECRET_ACCESS_KEY"),
        BUCKET_SECRET_ACCESS_KEY="s3-secret",
    )
    assert ended.code == 0, ended.err
    template = the_one(account.templates)
    assert (template["name"], template["image"], template["disk"]) == ("igen", IMAGE, 20)
    assert (template["serverless"], template["startSsh"], template["startJupyter"]) == (True, False, False)
    endpoint = the_one(account.endpoints)
    assert endpoint["type"] == "QUEUE"
    assert endpoint["args"] == "worker"
    assert endpoint["gpu"]["pools"] == ["ADA_24", "ADA_48_PRO", "ADA_80_PRO"]
    assert endpoint["gpu"]["excludedTypes"] == ["NVIDIA L40", "NVIDIA RTX 6000 Ada Generation"]
    assert endpoint["gpu"]["minCudaVersion"] == "12.9"
    assert endpoint["workers"] == {"min": 0, "max": 4, "idleTimeout": 20}
    assert endpoint["scaling"] == {"type": "QUEUE_DELAY", "queueDelay": 2}
    assert (endpoint["timeout"], endpoint["flashboot"]) == (300_000, "FLASHBOOT")
    assert (endpoint["networkVolumes"], endpoint["dataCenterIds"]) == (["vol1"], ["EU-RO-1"])
    assert endpoint["env"]["BUCKET_SECRET_ACCESS_KEY"] == "s3-secret"
    assert endpoint["env"]["IGEN_MAX_BATCH"] == "4"
    assert account.models == {endpoint["id"]: [MODEL]}
    assert f"IGEN_BACKEND_URL=https://api.runpod.ai/v2/{endpoint['id']}" in ended.out
    assert "s3-secret" not in ended.out + ended.err


async def test_a_second_run_writes_nothing_and_a_third_writes_the_difference(account: RunpodAccount) -> None:
    assert (await deploy(account, "--image", IMAGE)).code == 0
    account.calls.clear()
    again = await deploy(account, "--image", IMAGE)
    assert account.writes == []
    assert "nothing was changed" in again.out

    changed = await deploy(account, "--image", IMAGE + "2", "--workers-max", "5", "--gpu", "H100 80GB HBM3")
    assert changed.code == 0, changed.err
    endpoint, template = the_one(account.endpoints), the_one(account.templates)
    assert endpoint["image"] == template["image"] == IMAGE + "2"
    assert endpoint["workers"]["max"] == 5
    assert endpoint["gpu"]["pools"] == ["ADA_80_PRO"]
    assert "excludedTypes" not in endpoint["gpu"]
    assert [(method, path, sorted(body)) for method, path, body in account.writes] == [
        ("PATCH", f"/v2/templates/{template['id']}", ["image"]),
        ("PATCH", f"/v2/serverless/{endpoint['id']}", ["gpu", "templateId", "workers"]),
    ]


async def test_what_was_set_once_can_be_taken_away(account: RunpodAccount) -> None:
    await deploy(account, "--image", IMAGE, "--env", "IGEN_MAX_BATCH=4", "--no-flashboot")
    assert the_one(account.endpoints)["flashboot"] == "OFF"
    assert the_one(account.endpoints)["gpu"]["minCudaVersion"] == "12.8", "the image's own, without the option"
    assert (await deploy(account, "--image", IMAGE, "--min-cuda", "")).code == 0
    endpoint = the_one(account.endpoints)
    assert endpoint["gpu"]["minCudaVersion"] is None
    assert "IGEN_MAX_BATCH" not in endpoint["env"]
    assert endpoint["flashboot"] == "FLASHBOOT"
    account.calls.clear()
    await deploy(account, "--image", IMAGE, "--min-cuda", "")
    assert account.writes == []


async def test_the_oldest_driver_is_the_one_that_the_image_needs(account: RunpodAccount) -> None:
    dockerfile = (Path(__file__).resolve().parents[2] / "Dockerfile.gpu").read_text(encoding="utf-8")
    assert f"nvidia/cuda:{IMAGE_CUDA}." in dockerfile
    ended = await deploy(account, "--image", IMAGE, "--min-cuda", "newest")
    assert (ended.code, account.calls) == (2, [])
    assert "'newest' is no CUDA version: give one as 12.8" in ended.err


async def test_another_model_replaces_the_cached_one_and_nothing_else(account: RunpodAccount) -> None:
    await deploy(account, "--image", IMAGE)
    before = dict(the_one(account.endpoints))
    ended = await deploy(account, "--image", IMAGE, "--model", f"https://huggingface.co/org/own-xl:{'a' * 40}")
    assert ended.code == 0, ended.err
    assert account.models[before["id"]] == [f"https://huggingface.co/org/own-xl:{'a' * 40}"]
    after = the_one(account.endpoints)
    drawn_with = {"IGEN_CHECKPOINT": "org/own-xl", "IGEN_CHECKPOINT_REVISION": "a" * 40}
    assert after == {**before, "env": {**before["env"], **drawn_with}}


async def test_a_file_without_a_model_takes_the_cached_one_away(account: RunpodAccount, tmp_path: Path) -> None:
    await deploy(account, "--image", IMAGE)
    config = tmp_path / "own.toml"
    config.write_text(re.sub(r"(?m)^model_refs = .*$", "model_refs = []", (ROOT / "runpod.toml").read_text()))
    ended = await deploy(account, "--image", IMAGE, "--config", str(config))
    assert ended.code == 0, ended.err
    assert list(account.models.values()) == [[]]
    assert "cached model taken away" in ended.out


async def test_a_mistyped_key_is_named_and_nothing_is_sent(account: RunpodAccount, tmp_path: Path) -> None:
    config = tmp_path / "own.toml"
    config.write_text((ROOT / "runpod.toml").read_text().replace("max_workers = 3", 'max_worker = "3"'))
    ended = await deploy(account, "--image", IMAGE, "--config", str(config))
    assert ended.code == 2
    assert "endpoint.max_worker: Extra inputs are not permitted" in ended.err
    assert account.calls == []


async def test_what_is_hardly_meant_is_remarked_upon(account: RunpodAccount) -> None:
    options = ("--image", "shop/igen-gpu", "--env", "IGEN_CHECKPOINT=tiny", "--workers-min", "1")
    ended = await deploy(account, *options)
    assert ended.code == 0, ended.err
    assert "note: shop/igen-gpu names no version" in ended.err
    assert "IGEN_CHECKPOINT is 'tiny'" in ended.err
    assert "active workers cost money" in ended.err
    assert (await deploy(account, "--image", IMAGE)).err == ""


async def test_a_load_balancing_endpoint(account: RunpodAccount) -> None:
    ended = await deploy(
        account, "--image", IMAGE, "--load-balancing", "--requests-per-worker", "6", "--name", "igen-lb"
    )
    assert ended.code == 0, ended.err
    endpoint = the_one(account.endpoints)
    assert (endpoint["type"], endpoint["args"]) == ("LOAD_BALANCER", "server")
    assert endpoint["scaling"] == {"type": "REQUEST_COUNT", "requestCount": 6}
    assert endpoint["ports"] == ["8001/http"]
    env = endpoint["env"]
    assert (env["PORT"], env["PORT_HEALTH"], env["IGEN_BIND"]) == ("8001", "8001", "0.0.0.0")
    assert f"IGEN_BACKEND_URL=https://{endpoint['id']}.api.runpod.ai/v2/igen" in ended.out
    assert "IGEN_BACKEND_KIND=selfhosted" in ended.out

    other = await deploy(account, "--image", IMAGE, "--name", "igen-lb")
    assert other.code == 1
    assert "of type LOAD_BALANCER, which RunPod cannot change to QUEUE" in other.err
    assert len(account.endpoints) == 1


async def test_a_dry_run_prints_the_calls_and_sends_none(account: RunpodAccount) -> None:
    ended = await deploy(
        account, "--dry-run", "--image", IMAGE, "--env", "API_TOKEN=abc", "--env-from", "PIN", PIN="4711-secret"
    )
    assert ended.code == 0, ended.err
    assert account.writes == []
    assert f"POST {account.base}/v2/templates" in ended.out
    assert f"POST {account.base}/v2/serverless" in ended.out
    assert f"POST {account.base}/graphql" in ended.out
    assert '"API_TOKEN": "****"' in ended.out
    assert '"PIN": "****"' in ended.out
    assert "4711-secret" not in ended.out
    assert KEY not in ended.out
    await deploy(account, "--image", IMAGE)
    writes = len(account.writes)
    update = await deploy(account, "--dry-run", "--image", IMAGE, "--workers-max", "2")
    assert f"PATCH {account.base}/v2/serverless/{the_one(account.endpoints)['id']}" in update.out
    assert '"max": 2' in update.out
    assert "POST" not in update.out.replace(f"POST {account.base}/graphql (a query: reads)", "")
    assert len(account.writes) == writes


def test_a_dry_run_needs_neither_key_nor_network() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RUNPOD_API_KEY"}
    command = [ROOT / "scripts" / "deploy_runpod", "--dry-run", "--api", "http://127.0.0.1:9"]
    ended = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    bodies = [json.loads(found) for found in re.findall(r"^\{$.*?^\}$", ended.stdout, re.DOTALL | re.MULTILINE)]
    assert [body.get("name") for body in bodies] == ["igen", "igen", None]
    assert "an empty one" in ended.stdout


async def test_delete_removes_both_and_then_finds_nothing(account: RunpodAccount) -> None:
    await deploy(account, "--image", IMAGE)
    refused = await deploy(account, "--delete")
    assert refused.code == 1
    assert account.endpoints, "nobody said yes"
    looked = await deploy(account, "--delete", "--dry-run")
    assert f"DELETE {account.base}/v2/serverless/" in looked.out
    assert account.endpoints
    gone = await deploy(account, "--delete", "--yes")
    assert gone.code == 0, gone.err
    assert account.endpoints == {}
    assert account.templates == {}
    assert "neither an endpoint nor a template 'igen'" in (await deploy(account, "--delete", "--yes")).out


@pytest.mark.parametrize(
    ("options", "key", "code", "says"),
    [
        (("--image", IMAGE), None, 2, "RUNPOD_API_KEY is not set"),
        (("--image", IMAGE), "rpa_wrong", 1, "does not accept the key in RUNPOD_API_KEY"),
        ((), KEY, 2, "RunPod cannot pull the image 'igen-gpu'"),
        (("--image", IMAGE, "--gpu", "RTX 9090"), KEY, 1, "no GPU type or pool 'RTX 9090'. There are: ADA_24 ("),
        (("--image", IMAGE, "--gpu", "NVIDIA GeForce RTX 3070"), KEY, 1, "no GPU type or pool"),
        (("--image", IMAGE, "--workers-max", "9"), KEY, 1, "lower max_workers in runpod.toml"),
        (("--image", IMAGE, "--workers-min", "4"), KEY, 2, "4 active workers are more than the 3 at most"),
        (("--image", IMAGE, "--volume", "x"), KEY, 1, "There is no network volume 'x'. There are: none."),
        (("--image", IMAGE, "--execution-timeout", "1"), KEY, 2, "between 5 seconds and 7 days"),
        (("--image", IMAGE, "--env", "NAME"), KEY, 2, "--env NAME: write NAME=VALUE"),
        (("--image", IMAGE, "--env-from", "NOT_HERE"), KEY, 2, "--env-from NOT_HERE: the variable is not set here"),
        (("--image", IMAGE, "--model", "sdxl"), KEY, 2, "'sdxl' is no Hugging Face model"),
        (("--image", IMAGE, "--config", "nowhere.toml"), KEY, 2, "nowhere.toml cannot be read"),
    ],
)
async def test_errors_are_said_in_plain_words(
    account: RunpodAccount, options: tuple[str, ...], key: str | None, code: int, says: str
) -> None:
    ended = await deploy(account, *options, key=key)
    assert ended.code == code, ended.err
    assert says in ended.err
    assert "Traceback" not in ended.err
    assert account.endpoints == {}


@pytest.mark.parametrize(
    ("status", "detail", "says"),
    [
        (403, "access denied", "may not do POST /v2/serverless: give it read and write access"),
        (400, "Insufficient balance to deploy", "The account cannot pay for this"),
        (503, "upstream", "Run the same command again: it continues"),
        (422, "bad value hunter2hunter2", "bad value ****"),
    ],
)
async def test_what_runpod_refuses_later_leaves_no_twin_behind(
    account: RunpodAccount, status: int, detail: str, says: str
) -> None:
    account.faults["POST", "/v2/serverless"] = [(status, detail, {})]
    options = ("--image", IMAGE, "--env", "MY_PASSWORD=hunter2hunter2")
    ended = await deploy(account, *options)
    assert ended.code == 1
    assert says in ended.err
    assert "hunter2" not in ended.err
    assert (await deploy(account, *options)).code == 0
    assert len(account.templates) == len(account.endpoints) == 1


async def test_a_lost_answer_makes_no_twin(account: RunpodAccount) -> None:
    account.lose_answers.add(("POST", "/v2/serverless"))
    ended = await deploy(account, "--image", IMAGE)
    assert ended.code == 1
    assert "Run the same command again" in ended.err
    assert (await deploy(account, "--image", IMAGE)).code == 0
    assert len(account.endpoints) == 1
    assert len(account.models) == 1


async def test_two_of_one_name_are_not_guessed_between(account: RunpodAccount) -> None:
    await deploy(account, "--image", IMAGE)
    endpoint = the_one(account.endpoints)
    account.endpoints["twin"] = {**endpoint, "id": "twin", "name": "igen -fb"}
    ended = await deploy(account, "--image", IMAGE, "--workers-max", "1")
    assert ended.code == 1
    assert f"2 endpoints called 'igen' ({endpoint['id']}, twin)" in ended.err


async def test_too_many_calls_are_waited_out(account: RunpodAccount) -> None:
    account.faults["GET", "/v2/serverless"] = [(429, "rate limit exceeded", {"Retry-After": "0"})] * 2
    assert (await deploy(account, "--image", IMAGE)).code == 0
    account.faults["GET", "/v2/serverless"] = [(429, "rate limit exceeded", {"Retry-After": "3600"})]
    ended = await deploy(account, "--image", IMAGE)
    assert ended.code == 1
    assert "takes no more calls for now" in ended.err


async def test_the_cached_model_can_fail_alone_and_the_next_run_sets_it(account: RunpodAccount) -> None:
    account.faults["POST", "/graphql"] = [(500, "boom", {})]
    ended = await deploy(account, "--image", IMAGE)
    assert ended.code == 1
    assert "The cached model could not be set." in ended.err
    assert len(account.endpoints) == 1
    assert (await deploy(account, "--image", IMAGE)).code == 0
    assert list(account.models.values()) == [[MODEL]]


async def test_the_key_goes_nowhere_in_the_clear(account: RunpodAccount) -> None:
    ended = await deploy(account, "--image", IMAGE, "--api", "http://api.example")
    assert ended.code == 1
    assert "over https only" in ended.err


def test_the_projects_own_file_has_runpods_keys_alone() -> None:
    found = tomllib.loads((ROOT / "runpod.toml").read_text())
    assert set(found) == {"name", "project", "endpoint", "runtime"}
    assert set(found["project"]) == {
        *("uuid", "base_image", "gpu_types", "gpu_count", "volume_mount_path", "ports", "container_disk_size_gb"),
        "env_vars",
    }
    assert set(found["endpoint"]) == {"active_workers", "max_workers", "flashboot", "idle_timeout", "model_refs"}
    assert set(found["runtime"]) == {"python_version", "handler_path", "requirements_path"}
    for name in ("handler_path", "requirements_path"):
        assert (ROOT / found["runtime"][name]).is_file()
