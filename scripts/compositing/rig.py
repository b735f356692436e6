"""What whole runs are measured on: real workers, Redis and database, and a shop in a process of its own."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compositor.design import Box, Design, OutputFormat, Placement
from compositor.queue import enqueue_ingest
from compositor.runs import counts, start_run
from models.db import Database, utc_now
from models.migrations import upgrade
from models.store import open_store
from models.tables import Frame, Run, RunState, User
from scripts.compositing import bare, peers, products
from scripts.supervise.redis_server import find_redis, prepare_redis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from compositor.runs import Counts

ROOT = Path(__file__).resolve().parents[2]
PIXELS = 24
"""Different pictures; every product has bytes of its own nevertheless."""
PER_HOST = 8
START_S = 30
POLL_S = 0.02
SETTLE_S = 0.5


@dataclass(frozen=True, slots=True)
class Took:
    """One run: what it cost from its request to its end, and what became of its products."""

    cost: bare.Cost
    counts: Counts


class Bench:
    """Processes over one folder, which end with the block that entered this."""

    def __init__(self, home: Path, count: int, database_url: str | None) -> None:
        self.count = count
        self._home = home
        self._processes = ExitStack()
        self._workers: list[int] = []
        self._pixels = home / "pixels"
        self.paths = products.write_products(self._pixels, min(count, PIXELS))
        self.frame = products.write_frame(home / "frame.png")
        self.db = Database(database_url or f"sqlite:///{home}/igen.db")
        self._url = database_url or f"sqlite:///{home}/igen.db"
        self.store = open_store(f"file://{home}/store")
        self.design = design()
        self._revision = 0

    async def start(self) -> None:
        """The shop, Redis and the database; no workers yet."""
        shop = self._spawn([sys.executable, "-m", "scripts.compositing.origin", str(self._pixels), str(self.count)])
        assert shop.stdout is not None
        self.host = f"127.0.0.1:{int(shop.stdout.readline())}"
        program = find_redis()
        if program is None:
            raise FileNotFoundError("redis-server")
        server = prepare_redis(program, self._home)
        self._redis = server.url
        self._spawn(list(server.command))
        async with asyncio.timeout(START_S):
            while not await server.answers():  # noqa: ASYNC110 - as below
                await asyncio.sleep(POLL_S)
        await upgrade(self.db)

    async def close(self) -> None:
        """End everything, workers first."""
        await asyncio.to_thread(self._processes.close)
        await self.db.close()

    async def worker(self) -> None:
        """One worker more."""
        ready = self._home / f"ready-{secrets.token_hex(4)}"
        values = {
            "HOME": self._home / "igen",
            "DATABASE_URL": self._url,
            "REDIS_URL": self._redis,
            "STORE_URL": f"file://{self._home}/store",
            "PUBLIC_URL": "http://pictures.example",
            "FETCH_ALLOW_HOSTS": self.host,
            "FETCH_PER_HOST": PER_HOST,
        }
        extra = {f"IGEN_{name}": str(value) for name, value in values.items()}
        worker = self._spawn([sys.executable, "-m", "compositor", "worker", "--ready", str(ready)], extra)
        self._workers.append(worker.pid)
        async with asyncio.timeout(START_S):
            while not ready.exists():  # noqa: ASYNC110 - it comes from another process
                await asyncio.sleep(POLL_S)

    async def shop(self, delay_ms: int, changed: int = 0) -> None:
        """Set the shop's delay, and how many of its products have another picture than at first."""
        address = f"http://{self.host}/set/{delay_ms}/{changed}"
        await asyncio.to_thread(lambda: urllib.request.urlopen(address).close())

    async def new_frame(self) -> Frame:
        """A frame whose owner has never fetched anything."""
        owner, now = f"usr_{secrets.token_hex(13)}", utc_now()
        data = self.frame.read_bytes()
        sha256 = secrets.token_hex(32)
        key = f"frames/{sha256}.png"
        await self.store.put(key, data, media_type="image/png")
        async with self.db.write() as session:
            session.add(User(id=owner, name=owner, created_at=now))
            await session.flush()
            frame = Frame(
                owner_id=owner,
                name="bench",
                revision=1,
                secret=secrets.token_hex(16),
                picture_key=key,
                picture_sha256=sha256,
                width=products.FRAME_SIDE,
                height=products.FRAME_SIDE,
                transparent=False,
                design=self.design.model_dump(mode="json"),
                feed_url=f"http://{self.host}/feed.xml",
                feed_mode="replace",
                created_at=now,
                updated_at=now,
            )
            session.add(frame)
        return frame

    async def run(self, frame: Frame) -> Took:
        """Start a run and wait for its end; RuntimeError unless every product has its picture."""
        started, spent = utc_now(), self._spent_s()
        run = await start_run(self.db, frame)
        await enqueue_ingest(self._redis, run.id)
        while not RunState(run.state).terminal:
            await asyncio.sleep(POLL_S)
            async with self.db.read() as session:
                run = await session.get_one(Run, run.id)
        found = await counts(self.db, run.id)
        if found.completed != self.count or run.finished_at is None:
            raise RuntimeError(f"run {run.id} ended as {run.state}: {found}")
        await asyncio.sleep(SETTLE_S)  # for jobs that came too late to do anything
        cost = bare.Cost((run.finished_at - started).total_seconds(), self._spent_s() - spent)
        return Took(cost, found)

    async def composing(self, processes: int) -> bare.Cost:
        """Composing as many products alone."""
        paths = [self.paths[number % len(self.paths)] for number in range(self.count)]
        return await asyncio.to_thread(bare.composing, paths, self.frame, self.design, products.FRAME_SIDE, processes)

    async def asking(self, processes: int) -> bare.Cost:
        """Asking for as many pictures alone."""
        tags = [(f"http://{self.host}/{number}.jpg", f'"{number}-0"') for number in range(self.count)]
        return await asyncio.to_thread(bare.asking, self.host, tags, PER_HOST, processes)

    def _spent_s(self) -> float:
        """Processor time of the workers and all that they started, in seconds."""
        return bare.tree_cpu_s(self._workers)

    def _spawn(self, command: list[str], extra: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("IGEN_")}
        log = self._processes.enter_context((self._home / "processes.log").open("ab"))
        process = subprocess.Popen(
            command, cwd=ROOT, env={**kept, **(extra or {})}, stdout=subprocess.PIPE, stderr=log, bufsize=0
        )
        self._processes.callback(_end, process)
        return process


def design() -> Design:
    """The products' box in the frame, JPEG quality 90."""
    x, y, width, height = products.BOX
    placement = Placement(box=Box(x=x, y=y, width=width, height=height))
    return Design(placement=placement, output=OutputFormat(quality=peers.QUALITY))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(START_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


@asynccontextmanager
async def opened(count: int, database_url: str | None) -> AsyncIterator[Bench]:
    """A bench in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="igen-bench-") as folder:
        bench = Bench(Path(folder), count, database_url)
        try:
            await bench.start()
            yield bench
        finally:
            await bench.close()
