"""Starts what `run_steps` built, as its own user on a read-only root, and asks it for a picture and a framed feed.

Then a backup and its restore by the gateway's image, and the generator's as a worker of RunPod's queue.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from tests.support.compositor_rig import frame_png
from tests.support.postgres import PostgresCluster, find_binaries
from tests.support.runpod_platform import running_platform
from tests.support.shop import Shop
from tests.support.stack import free_ports
from tests.support.topology import TcpRedis
from tests.support.worker_trial import RESULT_BYTES, VARIABLES, try_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from tests.deploy.run_steps import Image

KEY = "a-key-of-this-trial"
IN_ITS_OWN_MOUNTS = (
    'mount -t tmpfs -o mode=1777 tmpfs "$1/tmp" && mount -t tmpfs -o mode=1777,size=64m tmpfs "$1/dev/shm" && '
    'mount --bind "$2" "$1/var/lib/igen" && shift 2 && exec "$@"'
)


@contextlib.contextmanager
def started(
    root: Path,
    image: Image,
    state: Path,
    command: tuple[str, ...],
    variables: Mapping[str, str],
    *,
    ends: bool = False,
) -> Iterator[subprocess.Popen[bytes]]:
    """One program of an image: its user, its variables, a read-only root, `/tmp` and the state folder writable.

    `ends`: it may end by itself.
    """
    uid = image.user.partition(":")[0]
    settings = [f"{name}={value}" for name, value in {**image.environment, **variables}.items()]
    inner = ["chroot", f"--userspec={image.user}", str(root), "env", "-i", "-C", image.folder, *settings, *command]
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", IN_ITS_OWN_MOUNTS, "sh", str(root), str(state), *inner],
        start_new_session=True,
    )
    try:
        yield process
        if not ends:
            assert process.poll() is None, f"{command} ended by itself with {process.returncode}"
            running = Path(f"/proc/{process.pid}/status").read_text()
            assert f"\nUid:\t{uid}\t{uid}" in running, running
    finally:
        process.terminate()
        process.wait(60)


def run_once(root: Path, image: Image, state: Path, command: tuple[str, ...], **variables: str) -> None:
    """A command of an image that ends by itself."""
    settings = [f"{name}={value}" for name, value in {**image.environment, **variables}.items()]
    inner = ["chroot", f"--userspec={image.user}", str(root), "env", "-i", "-C", image.folder, *settings, *command]
    subprocess.run(
        ["unshare", "--mount", "sh", "-c", IN_ITS_OWN_MOUNTS, "sh", str(root), str(state), *inner], check=True
    )


async def until_answers(http: aiohttp.ClientSession, url: str, seconds: float = 120) -> None:
    """Wait for a 200."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(aiohttp.ClientError):
            async with http.get(url) as answer:
                if answer.status == 200:
                    return
        assert time.monotonic() < deadline, url
        await asyncio.sleep(0.1)


async def drive(gateway_root: Path, gateway: Image, gpu_root: Path, gpu: Image) -> None:
    """A picture from the generator's image; a picture and a framed feed from the gateway's."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as home, ExitStack() as stack:
        states = [Path(home, name) for name in ("gateway", "gpu")]
        for state in states:
            state.mkdir(mode=0o700)
            os.chown(state, 10001, 10001)
        Path(home).chmod(0o755)
        port, inference_port, health_port, redis_port, postgres_port = free_ports(5)
        redis = stack.enter_context(TcpRedis(Path(home), redis_port))
        postgres = PostgresCluster(find_binaries(), postgres_port)
        stack.callback(postgres.stop)
        async with aiohttp.ClientSession() as http, Shop() as shop:
            begun = time.monotonic()
            variables = {"IGEN_INFERENCE_KEY": KEY, "PORT": str(inference_port), "PORT_HEALTH": str(health_port)}
            stack.enter_context(started(gpu_root, gpu, states[1], gpu.command, variables))
            await until_answers(http, f"http://127.0.0.1:{health_port}/ping")
            print(f"-- gpu: /ping 200 after {time.monotonic() - begun:.1f} s")
            run_once(gpu_root, gpu, states[1], gpu.health, **variables)
            backend = f"http://127.0.0.1:{inference_port}/v2/igen"
            await _draw_directly(http, backend)
            variables = {
                "IGEN_PORT": str(port),
                "IGEN_BACKEND_URL": backend,
                "IGEN_BACKEND_KEY": KEY,
                "IGEN_REDIS_URL": redis.url,
                "IGEN_DATABASE_URL": postgres.create_database(),
                "IGEN_FETCH_ALLOW_HOSTS": shop.host,
            }
            run_once(gateway_root, gateway, states[0], ("python", "-m", "gateway", "init"), **variables)
            compositor = [("python", "-m", "compositor", name) for name in ("worker", "reconcile")]
            for command in (gateway.command, *compositor):
                stack.enter_context(started(gateway_root, gateway, states[0], command, variables))
            begun = time.monotonic()
            await until_answers(http, f"http://127.0.0.1:{port}/readyz")
            print(f"-- gateway: /readyz 200 after {time.monotonic() - begun:.1f} s")
            run_once(gateway_root, gateway, states[0], gateway.health, **variables)
            key = (states[0] / "first-key").read_text().strip()
            http.headers["Authorization"] = f"Bearer {key}"
            await _draw_and_frame(http, f"http://127.0.0.1:{port}", shop)
            save = ("python", "-m", "scripts.backup", "--out", "/var/lib/igen/saved.tar")
            run_once(gateway_root, gateway, states[0], save, **variables)
        elsewhere = {"IGEN_DATABASE_URL": postgres.create_database(), "IGEN_STORE_URL": "file:///var/lib/igen/other"}
        put_back = ("python", "-m", "scripts.restore", "/var/lib/igen/saved.tar")
        run_once(gateway_root, gateway, states[0], put_back, **elsewhere)
        print("-- gateway: backup and restore, PostgreSQL's by its own client")
        await _work_for_runpod(gpu_root, gpu, states[1])


async def _work_for_runpod(root: Path, image: Image, state: Path) -> None:
    """The same command as before; RunPod's variables make a worker of it."""

    class Worker:
        def __init__(self, process: subprocess.Popen[bytes]) -> None:
            self.terminate = process.terminate
            self._wait = process.wait

        async def wait(self) -> int:
            return await asyncio.to_thread(self._wait)

    async with running_platform(max_result_bytes=RESULT_BYTES) as platform:

        @contextlib.asynccontextmanager
        async def start() -> AsyncIterator[Worker]:
            variables = {**platform.environment(), **VARIABLES}
            with started(root, image, state, image.command, variables, ends=True) as process:
                yield Worker(process)

        print(f"-- gpu: five jobs, a cancel, a result too large, SIGTERM: {await try_worker(platform, start)}")


async def _draw_directly(http: aiohttp.ClientSession, backend: str) -> None:
    body = {"input": {"prompt": "a red circle", "num_inference_steps": 4}}
    async with http.post(f"{backend}/runsync", json=body, headers={"Authorization": f"Bearer {KEY}"}) as answer:
        told = await answer.json()
    assert told["status"] == "COMPLETED", told
    picture = base64.b64decode(told["output"]["images"][0].partition(",")[2])
    assert picture.startswith(b"\x89PNG")
    print(f"-- gpu: a picture of {len(picture)} bytes")


async def _draw_and_frame(http: aiohttp.ClientSession, url: str, shop: Shop) -> None:
    async with http.post(f"{url}/api/generate/", json={"prompt": "a blue star", "num_inference_steps": 4}) as answer:
        told = await answer.json()
        assert answer.status == 200, told
    print(f"-- gateway: drew {told['image_url']}")
    shop.add(12)
    data = aiohttp.FormData()
    data.add_field("name", "trial")
    data.add_field("picture", frame_png(), filename="frame.png", content_type="image/png")
    data.add_field("feed", shop.feed, filename="feed.xml", content_type="application/xml")
    data.add_field("design", json.dumps({"placement": {"box": {"x": 40, "y": 40, "width": 120, "height": 120}}}))
    async with http.post(f"{url}/api/frames", data=data) as answer:
        frame = await answer.json()
        assert answer.status == 201, frame
    async with http.post(f"{url}/api/frames/{frame['id']}/runs") as answer:
        assert answer.status in (200, 201, 202), await answer.text()
    deadline = time.monotonic() + 90
    while True:
        async with http.get(f"{url}/api/frames/{frame['id']}/progress") as answer:
            told = await answer.json()
        if told.get("state") in ("completed", "failed", "cancelled"):
            break
        assert time.monotonic() < deadline, told
        await asyncio.sleep(0.3)
    print(f"-- gateway and worker: framed {told}")
    assert told["state"] == "completed"
