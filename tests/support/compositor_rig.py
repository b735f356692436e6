"""A compositor to try: a real Redis, real workers and reconciler as processes, a loopback origin of products."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from aiohttp import web
from PIL import Image, ImageDraw
from sqlalchemy import func, select

from compositor.queue import enqueue_ingest
from compositor.runs import Counts, counts, start_run
from models.db import Database, utc_now
from models.store import open_store
from models.tables import Frame, Output, Run, RunChunk, RunItem, RunState, User
from scripts.supervise.redis_server import find_redis, prepare_redis

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
OWNER = "usr_00000000000000000000000001"


def jpeg(number: int, side: int = 240) -> bytes:
    """A picture that differs from number to number."""
    picture = Image.new("RGB", (side, side), (number * 37 % 256, number * 91 % 256, number * 11 % 256))
    ImageDraw.Draw(picture).text((20, 20), f"product {number}", fill="white")
    file = io.BytesIO()
    picture.save(file, "JPEG")
    return file.getvalue()


def frame_png(side: int = 200) -> bytes:
    """A frame with a hole in its middle."""
    picture = Image.new("RGBA", (side, side), (200, 20, 20, 255))
    ImageDraw.Draw(picture).rectangle((40, 40, side - 40, side - 40), fill=(0, 0, 0, 0))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@dataclass
class Shop:
    """The products' server: pictures with ETags, the feed, and whatever else an entry's address leads to."""

    pictures: dict[str, bytes] = field(default_factory=dict)
    feed: bytes = b""
    delay_s: float = 0
    feed_faults: list[int] = field(default_factory=list)
    """Statuses of the feed's next answers."""
    asked: list[str] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    hooks: list[dict[str, Any]] = field(default_factory=list)
    hook_status: int = 200
    port: int = 0
    _runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/feed.xml", self._feed)
        app.router.add_get("/p/{name}", self._picture)
        app.router.add_post("/hook", self._hook)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def stock(self, good: int, *, broken: bool = True) -> None:
        """Fill the shop with `good` products and, between them, some that cannot be framed."""
        self.pictures = {f"{number}.jpg": jpeg(number) for number in range(good)}
        entries = [self.entry(f"id{number}", self.url(f"/p/{number}.jpg")) for number in range(good)]
        if broken:
            self.pictures |= {
                "page.html": b"<!doctype html><html><body>Please accept cookies</body></html>",
                "cut.jpg": jpeg(1000)[:900],
                "noise.jpg": b"\xff\xd8\xff" + bytes(range(256)) * 4,
                "empty.jpg": b"",
            }
            bad = [
                self.entry(None, self.url("/p/0.jpg")),
                self.entry("id0", self.url("/p/1.jpg")),
                self.entry("no-picture", None),
                self.entry("relative", "/p/1.jpg"),
                self.entry("gone", self.url("/p/gone.jpg")),
                self.entry("page", self.url("/p/page.html")),
                self.entry("cut", self.url("/p/cut.jpg")),
                self.entry("noise", self.url("/p/noise.jpg")),
                self.entry("empty", self.url("/p/empty.jpg")),
                self.entry("metadata", "http://169.254.169.254/latest/meta-data/"),
                self.entry("file", "file:///etc/passwd"),
            ]
            for place, entry in enumerate(bad):
                entries.insert(min(3 * place + 2, len(entries)), entry)
        self.feed = feed_of(entries)

    @staticmethod
    def entry(product_id: str | None, link: str | None, title: str = "A product") -> str:
        parts = [] if product_id is None else [f"<g:id>{product_id}</g:id>"]
        parts += [f"<title>{title}</title>", "<g:price>10.00 EUR</g:price>"]
        parts += [] if link is None else [f"<g:image_link>{link}</g:image_link>"]
        return f"<entry>{''.join(parts)}</entry>"

    async def _feed(self, request: web.Request) -> web.Response:
        if self.feed_faults:
            return web.Response(status=self.feed_faults.pop(0))
        return web.Response(body=self.feed, content_type="application/xml")

    async def _picture(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        self.asked.append(name)
        await asyncio.sleep(self.delay_s)
        body = self.pictures.get(name)
        if body is None:
            return web.Response(status=404)
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        if request.headers.get("If-None-Match") == etag:
            return web.Response(status=304, headers={"ETag": etag})
        self.sent.append(name)
        kind = "text/html" if name.endswith("html") else "image/jpeg"
        return web.Response(body=body, headers={"ETag": etag, "Content-Type": kind})

    async def _hook(self, request: web.Request) -> web.Response:
        self.hooks.append(await request.json())
        return web.Response(status=self.hook_status)


BROKEN = 11
SKIPPED = 5
"""Of those: no id, id0 again, no picture, a relative address, file:."""


def feed_of(entries: list[str]) -> bytes:
    head = '<?xml version="1.0"?><feed xmlns:g="http://base.google.com/ns/1.0" xmlns="http://www.w3.org/2005/Atom">'
    return f"{head}<title>Shop</title>{''.join(entries)}</feed>".encode()


class RedisProcess:
    """A Redis that can be killed and started again, and keeps what it knew."""

    def __init__(self, home: Path) -> None:
        program = find_redis()
        assert program, "there is no redis-server"
        self._server = prepare_redis(program, home)
        self._log = (home / "redis.log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self._server.url

    async def start(self) -> None:
        self._process = subprocess.Popen(self._server.command, stdout=self._log, stderr=self._log)
        async with asyncio.timeout(20):
            while not await self._server.answers():
                await asyncio.sleep(0.02)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.kill()
        self._log.close()


class Rig:
    """Processes over one home. All are started by, and end with, the test."""

    def __init__(self, home: Path, database_url: str, shop: Shop, redis: RedisProcess, **settings: object) -> None:
        self.home = home
        self.shop = shop
        self.redis = redis
        self.database_url = database_url
        self.db = Database(database_url)
        self.store = open_store(f"file://{home}/store")
        self.processes: list[subprocess.Popen[bytes]] = []
        values = {
            "home": home,
            "database_url": database_url,
            "redis_url": redis.url,
            "store_url": f"file://{home}/store",
            "public_url": "http://pictures.example",
            "fetch_allow_hosts": f"127.0.0.1:{shop.port}",
            "chunk_size": 10,
            "chunk_lease_seconds": 2,
            **settings,
        }
        self.environment = {f"IGEN_{name.upper()}": str(value) for name, value in values.items()}

    def spawn(self, command: str) -> subprocess.Popen[bytes]:
        """Start `python -m compositor <command>`; its log goes to a file under home."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("IGEN_")}
        log = (self.home / f"{command}-{len(self.processes)}.log").open("ab")
        with log:
            process = subprocess.Popen(
                [sys.executable, "-m", "compositor", command],
                cwd=ROOT,
                env={**kept, **self.environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    async def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                await asyncio.to_thread(process.wait, 15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        await self.db.close()

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-6000:] for path in sorted(self.home.glob("*-*.log")))

    async def frame(self, **values: Any) -> Frame:
        """A frame of OWNER's whose feed is the shop's."""
        picture = frame_png()
        sha256 = hashlib.sha256(picture).hexdigest()
        await self.store.put("frames/test.png", picture, media_type="image/png")
        async with self.db.write() as session:
            if await session.get(User, OWNER) is None:
                session.add(User(id=OWNER, name="owner", created_at=utc_now()))
                await session.flush()
            row: dict[str, Any] = {
                "owner_id": OWNER,
                "name": "test",
                "revision": 1,
                "secret": "a secret",
                "picture_key": "frames/test.png",
                "picture_sha256": sha256,
                "width": 200,
                "height": 200,
                "transparent": True,
                "design": {},
                "feed_url": self.shop.url("/feed.xml"),
                "feed_mode": "replace",
                "created_at": utc_now(),
                "updated_at": utc_now(),
                **values,
            }
            frame = Frame(**row)
            session.add(frame)
        return frame

    async def start(self, frame: Frame) -> Run:
        run = await start_run(self.db, frame)
        await enqueue_ingest(self.redis.url, run.id)
        return run

    async def run(self, run_id: int) -> Run:
        async with self.db.read() as session:
            return await session.get_one(Run, run_id)

    async def until_over(self, run_id: int, seconds: float = 60) -> Run:
        return await self.until(run_id, lambda run: RunState(run.state).terminal, seconds)

    async def until(self, run_id: int, holds: Callable[[Run], bool], seconds: float = 60) -> Run:
        try:
            async with asyncio.timeout(seconds):
                while not holds(run := await self.run(run_id)):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            run = await self.run(run_id)
            found = await counts(self.db, run_id)
            raise AssertionError(f"{run.state} {found}\n{self.logs()}") from None
        return run

    async def items(self, run_id: int) -> dict[str | None, RunItem]:
        async with self.db.read() as session:
            query = select(RunItem).where(RunItem.run_id == run_id).order_by(RunItem.position)
            return {item.product_id: item for item in reversed(list(await session.scalars(query)))}

    async def outputs(self, run_id: int) -> list[Output]:
        async with self.db.read() as session:
            query = select(Output).where(Output.run_id == run_id).order_by(Output.position)
            return list(await session.scalars(query))

    async def check(self, run_id: int) -> Counts:
        """What must hold of any run at any time: its counts are those of its items, and they add up."""
        found = await counts(self.db, run_id)
        async with self.db.read() as session:
            states = select(RunItem.state, func.count()).where(RunItem.run_id == run_id).group_by(RunItem.state)
            real: dict[str, int] = {str(row[0]): int(row[1]) for row in await session.execute(states)}
            chunks = list(await session.scalars(select(RunChunk).where(RunChunk.run_id == run_id)))
        assert sum(chunk.size for chunk in chunks) == sum(real.values()) == found.total
        assert found.completed + found.failed + found.skipped + found.waiting == found.total
        if all(chunk.state == "done" for chunk in chunks):
            assert real.get("completed", 0) == found.completed
            assert real.get("failed", 0) == found.failed
            assert real.get("skipped", 0) == found.skipped
            assert real.get("waiting", 0) == 0
        return found
