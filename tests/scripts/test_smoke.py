"""What the smoke test says of deployments with something wrong; a sound one is in tests/e2e/test_operators.py."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from scripts.smoking.drawing import picture_size
from scripts.smoking.origin import OriginError, origin
from scripts.smoking.steps import StepError, Steps
from tests.support.fake_backend import Fault, png
from tests.support.gateway_process import GatewayProcess, plain_environment
from tests.support.stack import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scripts.smoking.steps import Outcome

COMMAND = Path(__file__).resolve().parents[2] / "scripts" / "smoke"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with GatewayProcess(tmp_path_factory.mktemp("home")) as process:
        yield process


def smoke(url: str, key: str, *options: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = subprocess.run(
        [COMMAND, url, "--json", *options],
        env=plain_environment(IGEN_API_KEY=key),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, {step["name"]: step for step in json.loads(done.stdout)["steps"]}


def test_drawing_passes_and_a_run_without_a_queue_fails_and_is_cleaned_up(gateway: GatewayProcess) -> None:
    code, steps = smoke(gateway.url, gateway.key)
    assert code == 1
    assert [name for name, step in steps.items() if step["state"] == "failed"] == ["run"]
    assert "IGEN_REDIS_URL" in steps["run"]["told"]
    assert steps["outputs"]["state"] == "skipped"
    assert steps["delete"]["state"] == "ok"
    assert gateway.rows("SELECT COUNT(*) FROM frames WHERE deleted_at IS NULL") == [(0,)]
    assert gateway.rows("SELECT COUNT(*) FROM generations WHERE deleted_at IS NULL") == [(0,)]
    assert set(gateway.backend.drawn.values()) == {1}


def test_a_wrong_key_is_said_and_nothing_is_drawn(gateway: GatewayProcess) -> None:
    before = len(gateway.backend.submissions)
    code, steps = smoke(gateway.url, "igen_wrong", "--no-framing")
    assert code == 1
    assert steps["alive"]["state"] == "ok"
    assert "401" in steps["key"]["told"]
    assert steps["generate"]["told"] == "needs: key"
    assert len(gateway.backend.submissions) == before


def test_a_backend_that_fails_is_told_with_its_code(gateway: GatewayProcess) -> None:
    gateway.backend.submit_faults.append(Fault.INVALID_422)
    code, steps = smoke(gateway.url, gateway.key, "--no-framing")
    assert code == 1
    assert "invalid_input" in steps["generate"]["told"]
    assert steps["replay"]["state"] == "skipped"
    assert "delete" not in steps


def test_nothing_there() -> None:
    code, steps = smoke(f"http://127.0.0.1:{free_ports(1)[0]}", "igen_key")
    assert code == 1
    assert "no connection" in steps["alive"]["told"]
    assert {step["state"] for name, step in steps.items() if name != "alive"} == {"skipped"}


async def test_steps_fail_skip_and_go_on() -> None:
    shown: list[Outcome] = []
    steps = Steps(shown.append)

    async def fails() -> str:
        raise StepError("broken")

    async def passes() -> str:
        return "fine"

    await steps.take("first", fails)
    await steps.take("second", passes, after="first")
    await steps.take("third", passes)
    assert [(outcome.name, outcome.state) for outcome in shown] == [
        ("first", "failed"),
        ("second", "skipped"),
        ("third", "ok"),
    ]
    assert steps.failed


def test_half_a_picture_is_none() -> None:
    assert picture_size(png(20, 10)) == (20, 10)
    for data in (png(300, 300)[:60], b"<html>", b""):
        with pytest.raises(StepError, match="no whole picture"):
            picture_size(data)


async def test_an_origin_that_cannot_be() -> None:
    for address in ("here", "127.0.0.1:http", "203.0.113.1:80"):
        with pytest.raises(OriginError, match="--origin"):
            async with origin(address):
                pass
