from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from compositor.compose.client import ComposeClient, ComposeProcess
from compositor.compose.process import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from compositor.compose.job import ComposeJob


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while alive(pid):
        assert time.monotonic() < deadline, "still there"
        time.sleep(0.02)


async def test_a_killed_process_is_started_again_by_its_client(make_job: Callable[..., ComposeJob]) -> None:
    with ComposeProcess() as process:
        async with ComposeClient(process.socket_path, process) as client:
            before = await client.compose(make_job())
            await client.close()
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            wait_until_gone(process.pid)
            assert await client.compose(make_job()) == before


def test_ensure_leaves_a_living_process_alone() -> None:
    with ComposeProcess() as process:
        pid = process.pid
        process.ensure()
        assert process.pid == pid
    assert pid is not None
    assert not alive(pid)
    assert not process.socket_path.parent.exists()


def test_it_is_told_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGEN_BACKEND_KEY", "a secret")
    with ComposeProcess() as process:
        assert b"a secret" not in Path(f"/proc/{process.pid}/environ").read_bytes()


def test_ctrl_c_is_for_its_owner() -> None:
    with ComposeProcess() as process:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.2)
        assert alive(process.pid)


def test_it_dies_with_its_owner(tmp_path: Path) -> None:
    code = (
        "import time; from pathlib import Path; from compositor.compose.client import ComposeProcess\n"
        "p = ComposeProcess(Path('.')); p.start(); print(p.pid, flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert alive(pid)
        owner.kill()
    wait_until_gone(pid)


def test_a_fork_of_the_owner_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with ComposeProcess() as process:
        monkeypatch.setattr(os, "getpid", lambda: 1)
        held = process._process
        process.stop()
        monkeypatch.undo()
        assert held is not None
        assert alive(held.pid)
        process._process = held
