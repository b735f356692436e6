"""The server's life: loading, ready, draining, gone. HTTP asks here what it may do."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from contextlib import AsyncExitStack
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from inference.bounds import Bounds
from inference.dispatch import Dispatcher
from inference.engine.types import EngineError
from inference.errors import LoadingError, ShuttingDownError, UnhealthyError
from inference.handler import PictureHandler
from inference.hooks import load_hooks
from inference.info import describe_server
from inference.jobs import JobBook
from inference.metrics import Metrics
from inference.pictures import PictureEncoder
from inference.preparing import Preparer
from inference.sources import PictureSources, decoding_threads
from inference.styles import Styles
from inference.uploads import Deliveries
from inference.webhooks import Webhooks
from models.fetch import FetchPolicy, SafeFetcher, parse_allow_hosts
from models.logs import get_logger
from models.wire import Health, JobState

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference.engine.types import Engine, EngineStats
    from inference.settings import InferenceSettings

log = get_logger(__name__)

SWEEP_S = 0.25
LINGER_S = 5.0  # results that a drain has just finished may still be fetched for this long
RETRY_WHILE_LOADING_S = 5


class Phase(StrEnum):
    """Where in its life the server is."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Service:
    """Builds everything around the engine once that is loaded."""

    def __init__(
        self,
        settings: InferenceSettings,
        open_engine: Callable[[], Engine],
        on_fatal: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take collaborators; nothing starts yet.

        Args:
            settings: the operator's choices.
            open_engine: loads a checkpoint and warms it up; blocks, so it runs on a thread of its own.
            on_fatal: called once when the process should end with an error; the reason is in the log.
            clock: seconds that never go back.

        Raises:
            SettingsError: a hook or a file of styles cannot be loaded.

        """
        self.settings = settings
        self.styles = Styles(settings.home)
        self.bounds = Bounds.of(settings)
        self._hooks = load_hooks(settings)
        self.phase = Phase.LOADING
        self.metrics = Metrics()
        self.book = JobBook(max_jobs=settings.max_jobs, max_bytes=settings.max_results_mb * 1_000_000, clock=clock)
        self.dispatcher: Dispatcher | None = None
        self._open_engine = open_engine
        self._on_fatal = on_fatal
        self._engine: Engine | None = None
        self._encoder = PictureEncoder()
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._webhooks: Webhooks | None = None
        self._worker_id = f"igen-{uuid.uuid4().hex[:12]}"
        self.metrics.watch(self.book, self._stats)

    @property
    def loading(self) -> bool:
        """Whether the loader's thread is still at work, whatever the phase."""
        return self._engine is None and self.phase is not Phase.FAILED

    async def start(self) -> None:
        """Open the way outside and begin to load."""
        policy = FetchPolicy(allow_hosts=parse_allow_hosts(self.settings.fetch_allow_hosts))
        fetcher = await self._stack.enter_async_context(SafeFetcher(policy))
        deliveries = await self._stack.enter_async_context(Deliveries(self.settings, policy, fetcher, self._encoder))
        self._webhooks = Webhooks(fetcher, self.settings, lambda outcome: self.metrics.webhooks.labels(outcome).inc())
        pool = decoding_threads()
        self._stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        sources = PictureSources(fetcher, policy, self.bounds, pool)
        self._tasks.append(asyncio.create_task(self._load(deliveries, self._webhooks, sources)))

    def ready(self) -> Dispatcher:
        """The queue, for anything that may happen while draining too.

        Raises:
            LoadingError: not ready yet.
            UnhealthyError: about to be replaced.

        """
        if self.dispatcher is None and self.phase in (Phase.LOADING, Phase.DRAINING):
            raise LoadingError(retry_after_s=RETRY_WHILE_LOADING_S)
        if self.dispatcher is None or self.phase is Phase.FAILED:
            raise UnhealthyError(retry_after_s=RETRY_WHILE_LOADING_S)
        return self.dispatcher

    def accepting(self) -> Dispatcher:
        """The queue, for new work.

        Raises:
            LoadingError, UnhealthyError: as `ready`.
            ShuttingDownError: draining.

        """
        dispatcher = self.ready()
        if self.phase is Phase.DRAINING:
            raise ShuttingDownError(retry_after_s=RETRY_WHILE_LOADING_S)
        return dispatcher

    def engine(self) -> Engine:
        """The engine.

        Raises:
            LoadingError, UnhealthyError: as `ready`.

        """
        return self.ready().handler.engine

    async def info(self) -> dict[str, Any]:
        """What is loaded, what may be named, and what is accepted.

        Raises:
            LoadingError, UnhealthyError: as `ready`.

        """
        engine = self.engine()
        return await asyncio.to_thread(describe_server, engine, self.styles, self.bounds, self.settings.max_waiting)

    def health(self) -> Health:
        """RunPod's `/health`, with one worker: this process."""
        running = self.book.count(JobState.IN_PROGRESS)
        ready = self.phase in (Phase.READY, Phase.DRAINING) and self.dispatcher is not None
        return Health(
            jobs={
                "completed": self.book.ended[JobState.COMPLETED],
                "failed": self.book.ended[JobState.FAILED] + self.book.ended[JobState.TIMED_OUT],
                "inProgress": running,
                "inQueue": self.book.count(JobState.IN_QUEUE),
                "retried": self.book.retried,
            },
            workers={
                "idle": int(ready and not running),
                "running": int(ready and bool(running)),
                "initializing": int(self.phase is Phase.LOADING),
                "ready": int(ready),
                "throttled": 0,
                "unhealthy": int(self.phase is Phase.FAILED),
            },
        )

    async def drain(self) -> None:
        """Take no new jobs, let the others finish until the deadline, and give their callers a moment to fetch."""
        if self.phase is Phase.FAILED:
            return
        self.phase = Phase.DRAINING
        begun = self.book.clock()
        log.info("draining", jobs=sum(1 for _ in self.book.active()), deadline_s=self.settings.drain_s)
        if self.dispatcher is None:
            return
        await self.dispatcher.wait_idle(self.settings.drain_s)
        await self.dispatcher.close()
        until = time.monotonic() + min(LINGER_S, self.settings.drain_s)
        while self.book.unfetched(begun) and time.monotonic() < until:  # noqa: ASYNC110 - once, for seconds
            await asyncio.sleep(0.05)
        for record in self.book.unfetched(begun):
            log.warning("result_lost", job_id=record.id, request_id=record.correlation_id)

    async def close(self) -> None:
        """Stop everything; jobs still under way are named in the log."""
        self.phase = Phase.FAILED if self.phase is Phase.FAILED else Phase.DRAINING
        if self.dispatcher is not None:
            await self.dispatcher.close()
            await self.dispatcher.wait_idle(min(LINGER_S, self.settings.drain_s))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._webhooks is not None:
            await self._webhooks.close()
        await self._stack.aclose()
        if self._engine is not None:
            await asyncio.to_thread(self._engine.close)
        self._encoder.close()

    async def _load(self, deliveries: Deliveries, webhooks: Webhooks, sources: PictureSources) -> None:
        log.info("loading", checkpoint=self.settings.checkpoint, device=self.settings.device)
        begun = time.monotonic()
        try:
            self._engine = await call_in_daemon_thread(self._open_engine, "igen-load")
        except EngineError as problem:
            log.error("checkpoint_not_loaded", checkpoint=self.settings.checkpoint, reason=str(problem))  # noqa: TRY400 - the message is complete; a traceback would bury it
            self._fail()
            return
        except Exception:
            log.exception("checkpoint_not_loaded", checkpoint=self.settings.checkpoint)
            self._fail()
            return
        self.dispatcher = Dispatcher(
            handler=PictureHandler(self._engine, self._encoder, self._hooks),
            preparer=Preparer(self._engine, self.bounds, sources, self.styles),
            book=self.book,
            deliveries=deliveries,
            webhooks=webhooks,
            metrics=self.metrics,
            settings=self.settings,
            worker_id=self._worker_id,
        )
        if self.phase is Phase.LOADING:
            self.phase = Phase.READY
        info = self._engine.info
        log.info("ready", checkpoint=info.checkpoint, device=info.device, seconds=round(time.monotonic() - begun, 1))
        self._tasks.append(asyncio.create_task(self._sweep_forever(self.dispatcher, self._engine)))

    async def _sweep_forever(self, dispatcher: Dispatcher, engine: Engine) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                dispatcher.sweep()
            except Exception:
                log.exception("sweep_broke")  # the next one may not; without sweeps nothing would ever time out
            if not engine.stats().healthy and self.phase is not Phase.FAILED:
                log.critical("engine_unhealthy", jobs=sum(1 for _ in self.book.active()))
                self.phase = Phase.FAILED
                await dispatcher.close(UnhealthyError().as_plain_string())  # callers hear of it before the end
                self._fail()

    def _fail(self) -> None:
        self.phase = Phase.FAILED
        self._on_fatal()

    def _stats(self) -> EngineStats | None:
        return None if self._engine is None else self._engine.stats()


async def call_in_daemon_thread(work: Callable[[], Engine], name: str) -> Engine:
    """Run blocking work on a thread that ends with it, and does not hold up the process's end as asyncio's would.

    That it ends matters: torch keeps a team of OpenMP threads for each thread that used it, and with two teams alive
    there are more threads than cores, libgomp stops spinning at barriers, and the engine draws at half its speed.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Engine] = loop.create_future()

    def settle(result: Engine | None, problem: Exception | None) -> None:
        if future.done():  # nobody waits any more
            if result is not None:
                result.close()
        elif problem is not None:
            future.set_exception(problem)
        elif result is not None:
            future.set_result(result)

    def run() -> None:
        result, problem = None, None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - carried to the event loop, which logs it
            problem = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, problem)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await future
