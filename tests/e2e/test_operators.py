"""Operators' commands before the whole product: real drawing, real workers, a real queue."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.support.gateway_process import plain_environment, wait_until
from tests.support.stack import Stack, free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(600)

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
STEPS = [
    "alive",
    "ready",
    "key",
    "generate",
    "picture",
    "replay",
    "frame",
    "run",
    "outputs",
    "output feed",
    "clean up",
    "delete",
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole product, whose workers may fetch from its own gateway."""
    allowed: dict[str, str] = {}
    made = Stack(tmp_path_factory.mktemp("igen"), allowed)
    made._extra["IGEN_FETCH_ALLOW_HOSTS"] = f"127.0.0.1:{made.port}"
    made._extra["IGEN_PUBLIC_URL"] = made.address
    try:
        made.start()
        yield made
    finally:
        code = made.stop()
    assert code == 0, made.output


def command(stack: Stack, name: str, *arguments: str | Path, folder: Path, **how: Any) -> subprocess.Popen[str]:
    environment = plain_environment(
        IGEN_HOME=str(stack.home), IGEN_PORT=str(stack.port), IGEN_INFERENCE_PORT=str(stack.inference_port)
    )
    return subprocess.Popen(
        [SCRIPTS / name, *arguments], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, **how
    )


def smoke(stack: Stack, folder: Path, *options: str) -> tuple[int, dict[str, dict[str, Any]]]:
    process = command(stack, "smoke", stack.address, "--json", *options, folder=folder)
    out, _ = process.communicate(timeout=300)
    return process.returncode, {step["name"]: step for step in json.loads(out)["steps"]}


def test_smoke_passes_every_step_and_leaves_no_frame(stack: Stack, tmp_path: Path) -> None:
    code, steps = smoke(stack, tmp_path)
    assert code == 0, steps
    assert list(steps) == STEPS
    assert {step["state"] for step in steps.values()} == {"ok"}
    assert all(step["seconds"] > 0 for step in steps.values())
    with closing(sqlite3.connect(stack.home / "igen.db")) as database:
        (left,) = database.execute("SELECT COUNT(*) FROM generations WHERE deleted_at IS NULL").fetchone()
    assert left == 0
    code, steps = smoke(stack, tmp_path, "--no-framing")
    assert code == 0
    assert "frame" in steps
    assert "run" not in steps


def test_smoke_says_that_workers_may_not_fetch(stack: Stack, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    code, steps = smoke(stack, tmp_path, "--origin", f"127.0.0.1:{port}")
    assert code == 1
    assert steps["run"]["state"] == "failed"
    assert "IGEN_FETCH_ALLOW_HOSTS" in steps["run"]["told"]
    assert steps["outputs"]["state"] == "skipped"
    assert steps["clean up"]["state"] == "ok"


def test_generate_killed_twice_draws_each_prompt_once(stack: Stack, tmp_path: Path) -> None:
    count = 12
    prompts = [{"prompt": f"a red circle, no. {n}", "seed": n, "num_inference_steps": 8} for n in range(count)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    arguments = ("generate", "--file", "prompts.jsonl", "--out", "out", "--concurrency", "3")
    for reached in (2, 6):
        process = command(stack, *arguments, folder=tmp_path)
        wait_until(
            lambda reached=reached: len(list(tmp_path.glob("out/*.png"))) >= reached, 120, f"{reached} pictures"
        )
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = command(stack, *arguments, folder=tmp_path)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    pictures = sorted(tmp_path.glob("out/*.png"))
    assert len(pictures) == count
    for path in pictures:
        with Image.open(path) as picture:
            picture.load()
    assert drawn(stack) == count


def drawn(stack: Stack) -> int:
    """Generations of those prompts, as the gateway's rows have them."""
    with closing(sqlite3.connect(stack.home / "igen.db")) as database:
        query = "SELECT COUNT(*) FROM generations WHERE input LIKE '%a red circle, no.%'"
        return int(database.execute(query).fetchone()[0])


def test_backup_beside_it_and_restore_elsewhere(stack: Stack, tmp_path: Path) -> None:
    process = command(stack, "backup", "--out", "b.tar", folder=tmp_path)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    environment = plain_environment(IGEN_HOME=str(tmp_path / "other"))
    subprocess.run([SCRIPTS / "restore", "b.tar"], cwd=tmp_path, env=environment, check=True, timeout=120)
    assert (tmp_path / "other" / "igen.db").is_file()


def test_the_doctor_finds_nothing_wrong(stack: Stack, tmp_path: Path) -> None:
    process = command(stack, "doctor", "--json", folder=tmp_path)
    out, _ = process.communicate(timeout=120)
    told = json.loads(out)["findings"]
    assert [finding for finding in told if finding["state"] == "fault"] == []
    assert process.returncode == 0
    sound = {finding["part"] for finding in told if finding["state"] == "ok"}
    assert {"database", "redis", "workers", "reconciler", "store", "backend", "fonts", "ports"} <= sound
