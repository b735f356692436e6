"""The generator's image as a RunPod worker: its own command and variables, over the files that it holds."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.dockerfile import container_of, parse
from tests.support.runpod_platform import KEY, RunpodPlatform, running_platform
from tests.support.worker_trial import RESULT_BYTES, VARIABLES, try_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "Dockerfile.gpu"
KEPT = ("PATH", "LANG", "OMP_NUM_THREADS")
"""Of the test's own environment; a container has nothing else of its host's."""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """The image's /app: what the last stage copies out of the checkout, and nothing else of it."""
    folder = tmp_path / "app"
    folder.mkdir()
    copied = [step.words for step in parse(FILE)[-1].instructions if step.word == "COPY"]
    for source, target in (words for words in copied if not words[0].startswith("--from")):
        (folder / target).symlink_to(ROOT / source)
    return folder


@asynccontextmanager
async def container(app: Path, platform: RunpodPlatform, **more: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The image's command, with its variables, RunPod's, and a state folder of its own."""
    command, variables = container_of(FILE)
    home = app.parent / "state"
    home.mkdir(mode=0o700)
    environment = {
        **{name: os.environ[name] for name in KEPT if name in os.environ},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # stands for /opt/venv/bin
        **{name: value.replace("/var/lib/igen", str(home)) for name, value in variables.items()},
        **platform.environment(),
        **more,
    }
    with (app.parent / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, cwd=app, env=environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_image_starts_as_a_worker_where_runpod_hands_out_jobs(app: Path) -> None:
    async with running_platform(max_result_bytes=RESULT_BYTES) as platform:
        await try_worker(platform, lambda: container(app, platform, **VARIABLES))
        assert platform.keys == {KEY}
    log = (app.parent / "log").read_text()
    assert log.index("All fitness checks passed") < log.index('"job_accepted"')
    assert "Traceback" not in log


async def test_an_unfit_host_gets_no_job_and_runpod_hears_of_it(app: Path) -> None:
    """One of the SDK's own checks is made to fail, by asking for more memory than any machine has."""
    demands = {"RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "false", "RUNPOD_MIN_MEMORY_GB": "1000000"}
    async with running_platform() as platform, container(app, platform, **VARIABLES, **demands) as process:
        platform.offer("a", {"prompt": "x"})
        async with asyncio.timeout(300):
            assert await process.wait() == 1
        assert (platform.batch_sizes, platform.posts) == ([], [])
        assert [ping["status"] for ping in platform.pings] == ["unhealthy"]
