"""The product on a GPU: RunPod's worker loop, two processes on one card, what `auto` chooses. Bundled checkpoint."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from inference.engine.factory import EngineOptions, open_engine
from tests.support.checkpoints import CATALOGUE
from tests.support.runpod_platform import running_platform

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).parents[2]
DRAW = """
import hashlib, json, queue, sys
from pathlib import Path
from inference.engine.factory import EngineOptions, open_engine
from inference.engine.types import Completed, EngineJob, Failed, PictureDone, PictureSpec

engine = open_engine(EngineOptions("tiny", search=(Path(sys.argv[1]),), device=sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
events = queue.SimpleQueue()
specs = tuple(PictureSpec("a red circle", "", 128, 128, 8, 5.0, seed, "euler") for seed in range(4))
engine.submit(EngineJob("job", specs), events.put)
digests = {}
while True:
    event = events.get()
    if isinstance(event, PictureDone):
        digests[event.index] = hashlib.sha256(event.pixels.tobytes()).hexdigest()
    if isinstance(event, Failed):
        raise SystemExit(str(event.error))
    if isinstance(event, Completed):
        break
engine.close()
print(json.dumps(digests))
"""


async def test_a_runpod_job_is_drawn_end_to_end(device: torch.device, tmp_path: Path) -> None:
    pytest.importorskip("runpod", reason="the worker needs the product's packages, see docs/performance.md")
    async with running_platform() as platform:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("IGEN_", "BUCKET_"))}
        environment |= {**platform.environment(), "IGEN_HOME": str(tmp_path), "IGEN_DEVICE": device.type}
        with (tmp_path / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "inference.runpod_worker", cwd=ROOT, env=environment, stdout=log, stderr=log
            )
        drawn, ended = (asyncio.ensure_future(each) for each in (platform.result("job-1", 150), process.wait()))
        try:
            platform.offer("job-1", {"prompt": "a red circle on a blue background", "seed": 7})
            await asyncio.wait((drawn, ended), return_when=asyncio.FIRST_COMPLETED)
            assert drawn.done(), (tmp_path / "log").read_text()[-2000:]
            result = drawn.result()
        finally:
            drawn.cancel()
            with suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
    assert "output" in result, (result, (tmp_path / "log").read_text()[-2000:])
    picture = Image.open(io.BytesIO(base64.b64decode(result["output"]["image_url"].partition(",")[2])))
    assert picture.size == (128, 128)
    assert result["output"]["receipt"]["device"] == ("cpu" if device.type == "cpu" else _card())


def _card() -> str:
    import torch

    return torch.cuda.get_device_name()


def test_two_processes_draw_the_same_on_one_card(device: torch.device) -> None:
    command = [sys.executable, "-c", DRAW, str(CATALOGUE), device.type]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:  # both are there before either draws
            process.stdin.write("\n")
            process.stdin.flush()
        answers = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    first, second = (json.loads(answer.splitlines()[-1]) for answer in answers)
    assert len(first) == 4
    assert first == second or device.type == "cuda", (
        "each process chooses its kernels, so on CUDA rounding may differ"
    )


@pytest.mark.gpu
def test_auto_chooses_by_measurement() -> None:
    engine = open_engine(EngineOptions("tiny", search=(Path(CATALOGUE),), device="cuda"))
    try:
        assert engine.info.attention in {"sdpa", "cudnn", "flash", "efficient", "xformers"}
        assert engine.info.dtype == "float16"
    finally:
        engine.close()
