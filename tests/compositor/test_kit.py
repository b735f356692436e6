"""What killed processes leave behind goes; what living ones have stays."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from compositor.compose.process import OWN_FOLDER_PREFIX, ComposeProcess
from compositor.kit import FOLDER_PREFIX, SOCKETS_PREFIX, socket_folder, sweep_work_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.compositor_rig import Rig


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files, of this test alone; sockets are in it, whose paths may have 107 letters."""
    with tempfile.TemporaryDirectory(prefix="igen-test-", dir="/tmp") as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield Path(name)


@pytest.fixture
def dead_pid() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


async def test_folders_of_the_dead_go(tmp_path: Path, temporary: Path, dead_pid: int) -> None:
    work = tmp_path / "work"
    for folder, prefix in ((work, FOLDER_PREFIX), (temporary, SOCKETS_PREFIX), (temporary, OWN_FOLDER_PREFIX)):
        for pid in (dead_pid, os.getpid()):
            (folder / f"{prefix}{pid}-x").mkdir(parents=True)
        (folder / f"{prefix}strange").mkdir()
        (folder / "another").mkdir(exist_ok=True)
    await sweep_work_folder(work)
    mine = os.getpid()
    assert {path.name for path in work.iterdir()} == {f"job-{mine}-x", "job-strange", "another"}
    sockets = {f"igen-{whose}-{pid}" for whose in ("worker", "compose") for pid in (f"{mine}-x", "strange")}
    assert {path.name for path in temporary.iterdir()} == {*sockets, "another"}


async def test_a_socket_that_somebody_listens_on_stays(tmp_path: Path, temporary: Path, dead_pid: int) -> None:
    folder = temporary / f"{SOCKETS_PREFIX}{dead_pid}-x"
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "compose.sock"))
        listening.listen()
        await sweep_work_folder(tmp_path)
        assert folder.exists(), "a process of another container, say"
    await sweep_work_folder(tmp_path)
    assert not folder.exists()


async def test_a_gateways_own_folder_has_its_id_and_stays_while_it_lives(tmp_path: Path, temporary: Path) -> None:
    with ComposeProcess() as process:
        (folder,) = temporary.iterdir()
        assert folder.name.startswith(f"{OWN_FOLDER_PREFIX}{os.getpid()}-")
        await sweep_work_folder(tmp_path)
        assert process.socket_path.exists()
    assert not folder.exists()


def test_a_fork_leaves_its_parents_folder_alone(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as fork, socket_folder() as folder:
        fork.setattr(os, "getpid", lambda: 1)
    assert folder.exists(), "the block ended in another process than it began in"
    with socket_folder() as folder:
        assert folder.exists()
    assert not folder.exists()


async def test_a_killed_workers_socket_goes_with_the_next_sweep(rig: Rig, temporary: Path) -> None:
    rig.environment["TMPDIR"] = str(temporary)
    worker = rig.spawn("worker")
    async with asyncio.timeout(60):
        while not (sockets := list(temporary.glob(f"{SOCKETS_PREFIX}{worker.pid}-*/*.sock"))):
            await asyncio.sleep(0.05)
        worker.kill()
        worker.wait()
        left = sockets[0].parent
        while left.exists():  # until its composing process has noticed, and ended
            await sweep_work_folder(rig.home / "work")
            await asyncio.sleep(0.05)
