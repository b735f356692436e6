"""The functions that RQ calls: an id in, collaborators made, a plain function called, the next job asked for.

They never raise for what a row can say: RQ's own retries are not used, since the reconciler asks again for whatever
the rows still want done.
"""

from __future__ import annotations

import asyncio
import gc
import shutil
import signal
import time
from typing import TYPE_CHECKING, Any

import uvloop
from redis.exceptions import RedisError

from compositor.chunkrows import ALL_DONE, FREE_COUNT, RUN_STANDING
from compositor.chunks import FAILED_TAKING
from compositor.errors import LeaseLostError, RunFailedError
from compositor.ingest import ingest as ingest_feed
from compositor.kit import open_kit
from compositor.materials import gather_materials
from compositor.names import OutputNamer
from compositor.publish import publish as publish_feed
from compositor.runlease import MOST_ATTEMPTS, RunLease
from compositor.snapshot import Snapshot
from compositor.webhook import send_webhook
from compositor.work import RunWork, work_on_chunk
from models.db import utc_now
from models.logs import get_logger
from models.store import StoreError
from models.tables import Run, RunState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.engine import Connection

    from compositor.chunks import ChunkLease
    from compositor.compose.process import ComposeProcess
    from compositor.kit import Kit
    from compositor.settings import CompositorSettings

SLICE_S = 10.0
"""How long one job takes chunk after chunk of a run, before it lets other runs have the worker."""
CHUNKS_AT_ONCE = 2
"""While the last pictures of one chunk are composed, those of the next are fetched."""
CHUNK_TIMEOUT_S = 600.0
LONGEST_PAUSE_S = 60

GC_EVERY = 20_000
"""Objects made between two looks for garbage in cycles, of which a job makes next to none in its seconds."""

ENOUGH = signal.SIGUSR1
"""Tells a job that its worker is to stop: it ends after the chunk in hand."""

log = get_logger(__name__)


class Hands:
    """What a worker's jobs use; the worker fills it before it forks."""

    settings: CompositorSettings | None = None
    process: ComposeProcess | None = None


def ingest(run_id: int) -> None:
    """Read a run's feed and begin with its chunks, sooner than the jobs for them which it asks for can."""

    async def work(kit: Kit) -> None:
        await ingest_run(kit, run_id)
        await compose_run(kit, run_id)

    _run(work)


def compose(run_id: int) -> None:
    """Work on a run's chunks for some seconds, and end the run with the last of them."""
    _run(lambda kit: compose_run(kit, run_id))


def publish(run_id: int) -> None:
    """End a run."""
    _run(lambda kit: publish_run(kit, run_id))


def webhook(run_id: int) -> None:
    """Tell of a run's end."""

    async def work(kit: Kit) -> None:
        await send_webhook(kit, run_id)

    _run(work)


async def ingest_run(kit: Kit, run_id: int) -> None:
    """Take a run, read its feed, and ask for its chunks to be worked on."""
    lease = await kit.leases.claim_ingest(run_id)
    if lease is None:
        return
    if await _carry(kit, lease, lambda: ingest_feed(kit, lease)):
        await _go_on(kit, run_id)


async def publish_run(kit: Kit, run_id: int) -> None:
    """Take a run whose chunks are done, and end it."""
    lease = await kit.leases.claim_publish(run_id)
    if lease is None:
        return
    await _carry(kit, lease, lambda: publish_feed(kit, lease))
    await _tell_end(kit, lease)


async def compose_run(kit: Kit, run_id: int) -> None:
    """Take chunk after chunk of a run until none is left or the time is up, then see to what comes next."""
    work = await open_run(kit, run_id)
    if work is None:
        await publish_run(kit, run_id)  # nothing, unless whoever was at it has died
        return
    turn = _Turn(time.monotonic() + SLICE_S)
    asyncio.get_running_loop().add_signal_handler(ENOUGH, turn.end)
    try:
        async with asyncio.TaskGroup() as together:
            for _ in range(CHUNKS_AT_ONCE):
                together.create_task(_take_chunks(kit, work, turn))
    finally:
        await _go_on(kit, run_id)


async def open_run(kit: Kit, run_id: int) -> RunWork | None:
    """What all chunks of a run need; None when it is not being composed."""
    async with kit.db.read() as session:
        run = await session.get(Run, run_id)
    if run is None or run.state != RunState.COMPOSING.value:
        return None
    snapshot = Snapshot.model_validate(run.snapshot)
    materials = await gather_materials(kit.store, kit.settings.work_folder / "cache", snapshot)
    sizes = snapshot.design.output_sizes(snapshot.width, snapshot.height)
    return RunWork(run, snapshot, materials, OutputNamer(snapshot), sizes)


class _Turn:
    """A run's turn with this worker."""

    def __init__(self, ends_at: float) -> None:
        self._ends_at = ends_at

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._ends_at

    def end(self) -> None:
        """Begin no other chunk."""
        self._ends_at = 0


async def _take_chunks(kit: Kit, work: RunWork, turn: _Turn) -> None:
    while not turn.over:
        lease = await kit.chunks.claim(work.run.id)
        if lease is None or not await take_chunk(kit, work, lease):
            return


async def take_chunk(kit: Kit, work: RunWork, lease: ChunkLease) -> bool:
    """Work on a chunk; False when it could not be finished here."""
    folder = kit.folder / f"{lease.number}-{lease.fence}"
    await asyncio.to_thread(folder.mkdir)
    try:
        async with asyncio.timeout(CHUNK_TIMEOUT_S):
            await work_on_chunk(kit, work, lease, folder)
    except LeaseLostError:
        log.warning("chunk_lost", run_id=lease.run_id, chunk=lease.number, fence=lease.fence)
        return False
    except Exception as problem:  # the edge of one chunk: whatever it was, somebody shall take the chunk again
        log.exception("chunk_failed", run_id=lease.run_id, chunk=lease.number, attempts=lease.attempts)
        away = isinstance(problem, (StoreError, OSError))
        await kit.chunks.release(lease, pause_s=_outage_pause(lease.attempts) if away else 0.0)
        return False
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    return True


def _outage_pause(attempts: int) -> float:
    """Seconds before a chunk that the store or disk would not take is tried again: 2, 4, 8 ... 60."""
    return float(min(LONGEST_PAUSE_S, 2 ** (1 + attempts // FAILED_TAKING)))


async def _go_on(kit: Kit, run_id: int) -> None:
    """What comes next for a run that is being composed: its end, now, or another turn to ask for. Rows say which."""
    which = {"of_run": run_id, "of_now": utc_now()}

    def look(connection: Connection) -> tuple[int, bool, Any]:
        left = int(connection.scalar(FREE_COUNT, which) or 0)
        over = not left and connection.scalar(ALL_DONE, which) is not None
        return left, over, connection.execute(RUN_STANDING, which).first()

    left, over, run = await kit.db.read_at_once(look)
    if run is None:
        return  # its frame was deleted meanwhile
    await kit.reporter.report(run.frame_id, run_id, None, force=True)
    if over:
        await publish_run(kit, run_id)
    elif left and run.state == RunState.COMPOSING.value:
        await _ask_for_turns(kit, run_id, left)


async def _ask_for_turns(kit: Kit, run_id: int, left: int) -> None:
    try:
        await asyncio.to_thread(kit.queues.compose, run_id, left)
    except RedisError as problem:  # the reconciler will ask
        log.warning("enqueue_failed", run_id=run_id, reason=str(problem))


async def _carry(kit: Kit, lease: RunLease, work: Callable[[], Awaitable[object]]) -> bool:
    """Do the work of a run's lease; True when it came to its end. A failure that stays one ends the run."""
    run_id = lease.run.id
    try:
        await kit.reporter.report(lease.run.frame_id, run_id, None, force=True)
        await work()
    except LeaseLostError:
        log.warning("run_lost", run_id=run_id, fence=lease.fence)
        return False
    except RunFailedError as problem:
        await _fail(kit, lease, problem.code, problem.message)
        return False
    except Exception:  # the edge of one run's step: it is tried again, some times
        log.exception("run_step_failed", run_id=run_id, attempts=lease.attempts)
        if lease.attempts < MOST_ATTEMPTS:
            await kit.leases.release(lease)
        else:
            await _fail(kit, lease, "internal_error", "The run could not be carried on. The failure has been logged.")
        return False
    return True


async def _fail(kit: Kit, lease: RunLease, code: str, message: str) -> None:
    log.warning("run_failed", run_id=lease.run.id, code=code, reason=message)
    ended = {"state": RunState.FAILED.value, "finished_at": utc_now(), "lease_owner": None, "lease_expires_at": None}
    try:
        await kit.leases.change(lease, **ended, error_code=code, error=message[:1024])
    except LeaseLostError:
        return
    await _tell_end(kit, lease)


async def _tell_end(kit: Kit, lease: RunLease) -> None:
    run = lease.run
    await kit.reporter.report(run.frame_id, run.id, None, force=True)
    if not Snapshot.model_validate(run.snapshot).webhook_url:
        return
    try:
        await asyncio.to_thread(kit.queues.webhook, run.id)
    except RedisError as problem:
        log.warning("enqueue_failed", run_id=run.id, reason=str(problem))


def _run(work: Callable[[Kit], Awaitable[None]]) -> None:
    settings, process = Hands.settings, Hands.process
    if settings is None or process is None:
        raise RuntimeError("jobs run in a worker of `python -m compositor worker`")

    gc.freeze()  # what the worker had imported is never garbage: it need not be looked through again and again
    gc.set_threshold(GC_EVERY, 20, 20)

    async def whole() -> None:
        async with open_kit(settings, process) as kit:
            await work(kit)

    uvloop.run(whole())
