"""The collaborators of one job, made in the process that does it: connections do not survive a fork."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compositor import progress
from compositor.chunks import Chunks
from compositor.compose.client import ComposeClient
from compositor.compose.process import OWN_FOLDER_PREFIX
from compositor.progress import Reporter
from compositor.queue import Queues, connect
from compositor.runlease import RunLeases
from compositor.sources import SourceFetcher
from models.db import Database
from models.fetch import FetchPolicy, SafeFetcher, parse_allow_hosts
from models.store import open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from compositor.compose.process import ComposeProcess
    from compositor.settings import CompositorSettings
    from models.store import ObjectStore

FOLDER_PREFIX = "job-"
SOCKETS_PREFIX = "igen-worker-"


@dataclass(frozen=True, slots=True)
class Kit:
    """What jobs need. `folder` is this job's own and goes with it."""

    settings: CompositorSettings
    db: Database
    store: ObjectStore
    fetcher: SafeFetcher
    sources: SourceFetcher
    composer: ComposeClient
    chunks: Chunks
    leases: RunLeases
    reporter: Reporter
    queues: Queues
    folder: Path


@asynccontextmanager
async def open_kit(settings: CompositorSettings, process: ComposeProcess) -> AsyncIterator[Kit]:
    """Make the collaborators, and close them afterwards."""
    async with AsyncExitStack() as stack:
        db = Database(settings.database)
        stack.push_async_callback(db.close)
        policy = FetchPolicy(allow_hosts=parse_allow_hosts(settings.fetch_allow_hosts))
        fetcher = await stack.enter_async_context(SafeFetcher(policy))
        sources = SourceFetcher(
            fetcher, settings.fetch_per_host, 4 * settings.fetch_per_host, max_bytes=settings.source_max_bytes
        )
        composer = await stack.enter_async_context(ComposeClient(process.socket_path, process))
        publisher = progress.connect(settings.redis)
        stack.push_async_callback(publisher.aclose)
        queue_redis = connect(settings.redis)
        stack.callback(queue_redis.close)
        settings.work_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-", dir=settings.work_folder))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield Kit(
            settings=settings,
            db=db,
            store=open_store(settings.store),
            fetcher=fetcher,
            sources=sources,
            composer=composer,
            chunks=Chunks(db, lease_seconds=settings.chunk_lease_seconds),
            leases=RunLeases(db, lease_seconds=settings.chunk_lease_seconds),
            reporter=Reporter(db, publisher),
            queues=Queues(queue_redis),
            folder=folder,
        )


@contextmanager
def socket_folder() -> Iterator[Path]:
    """A private folder with a path short enough for a socket; forks of the caller leave it alone."""
    owner = os.getpid()
    folder = Path(tempfile.mkdtemp(prefix=f"{SOCKETS_PREFIX}{owner}-"))
    try:
        yield folder
    finally:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)


async def sweep_work_folder(folder: Path) -> None:
    """Remove what killed processes left: their jobs' folders, and those of their sockets, be they workers or not."""
    await asyncio.to_thread(_sweep, folder, FOLDER_PREFIX)
    for prefix in (SOCKETS_PREFIX, OWN_FOLDER_PREFIX):
        await asyncio.to_thread(_sweep, Path(tempfile.gettempdir()), prefix)


def _sweep(folder: Path, prefix: str) -> None:
    for left in folder.glob(f"{prefix}*"):
        pid = left.name.removeprefix(prefix).partition("-")[0]
        if pid.isdigit() and not _alive(int(pid)) and not any(map(_listens, left.glob("*.sock"))):
            shutil.rmtree(left, ignore_errors=True)  # a stranger's in the common folder stays: it is not ours to open


def _listens(path: Path) -> bool:
    """Whether a process has this socket, be it one of another container, whose ids we do not see."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
