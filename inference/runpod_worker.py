"""The generator as a RunPod serverless worker: the server's handler under the SDK's `serverless.start`.

`python -m inference.runpod_worker`

The SDK takes jobs, hears of cancels and timeouts, and sends what `Worker.handle` returns. Three things it leaves to
its user are done here: progress that cannot land after the result, a result's size, and errors without tracebacks.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
import sys
from typing import TYPE_CHECKING, Any

import structlog
from pydantic import ValidationError

from inference.__main__ import EXIT_SETTINGS, open_engine
from inference.answers import encode
from inference.bounds import Bounds
from inference.engine.types import EngineError
from inference.errors import ResultTooLargeError
from inference.handler import PictureHandler
from inference.hooks import load_hooks
from inference.pictures import PictureEncoder
from inference.preparing import Preparer
from inference.runpod_fitness import engine_draws
from inference.runpod_progress import ProgressReporter, SdkPlatform
from inference.settings import InferenceSettings, check_settings
from inference.sources import PictureSources, decoding_threads
from inference.styles import Styles
from inference.uploads import Deliveries
from models.errors import FieldProblem, IgenError, InvalidInputError
from models.fetch import FetchPolicy, SafeFetcher, parse_allow_hosts
from models.logs import configure_logging, get_logger
from models.settings import SettingsError, load_settings
from models.wire import S3Config, invalid_input, parse_input

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference.engine.types import Engine
    from inference.plan import Plan
    from inference.runpod_progress import Platform
    from models.wire import JobInput

log = get_logger(__name__)

SYNC_RESULT_MB = 20.0  # RunPod's limits of a result, by how the job came
ASYNC_RESULT_MB = 10.0
EXIT_ENGINE = 1
SAFE_ID = re.compile(r"[^A-Za-z0-9_-]")


class Worker:
    """Handles the SDK's jobs on one engine. Nothing here is bound to an event loop: the SDK makes its own."""

    def __init__(self, engine: Engine, settings: InferenceSettings, platform: Platform | None) -> None:
        """Take collaborators; `platform` None sends no progress.

        Raises:
            SettingsError: a hook or a file of styles cannot be loaded.

        """
        self._engine = engine
        self._settings = settings
        self._platform = platform
        self._encoder = PictureEncoder()
        self._handler = PictureHandler(engine, self._encoder, load_hooks(settings))
        self._bounds = Bounds.of(settings)
        self._styles = Styles(settings.home)
        self._decoders = decoding_threads()
        self._policy = FetchPolicy(allow_hosts=parse_allow_hosts(settings.fetch_allow_hosts))
        self._attempts = itertools.count(1)
        self._capacity = engine.stats().capacity

    def concurrency(self, current: int) -> int:
        """The SDK's `concurrency_modifier`: as many jobs at once as the engine has slots, always."""
        del current
        return self._capacity

    async def handle(self, job: dict[str, Any]) -> dict[str, Any]:
        """The SDK's handler: an output, or `{"error": "code: message"}`.

        Raises:
            asyncio.CancelledError: RunPod stopped the job; the engine stops at its next step.

        """
        structlog.contextvars.bind_contextvars(job_id=job["id"], request_id=_correlation_id(job))
        reporter = ProgressReporter(self._platform, job, self._settings.worker_progress_s)
        log.info("job_accepted")
        try:
            output = await self._draw(job, reporter)
        except asyncio.CancelledError:
            log.info("job_ended", state="CANCELLED")
            raise
        except IgenError as problem:
            log.warning("job_ended", state="FAILED", error=problem.as_plain_string())
            output = {"error": problem.as_plain_string()}
        except Exception:
            log.exception("job_broke")
            output = {"error": IgenError().as_plain_string()}
        else:
            log.info("job_ended", state="COMPLETED")
        finally:
            await reporter.close()
        self._stop_if_unhealthy()
        return output

    async def _draw(self, job: dict[str, Any], reporter: ProgressReporter) -> dict[str, Any]:
        if not isinstance(job.get("input"), dict):
            raise InvalidInputError.for_field("input", "must be an object")
        wanted = parse_input(job["input"])
        async with (
            SafeFetcher(self._policy) as fetcher,
            Deliveries(self._settings, self._policy, fetcher, self._encoder) as deliveries,
        ):
            delivery = deliveries.choose(_s3_config(job.get("s3Config"), deliveries))
            plan = await self._plan(SAFE_ID.sub("-", str(job["id"]))[:128], wanted, fetcher)
            # RunPod may hand the same id out again while its first attempt is still ending
            drawing = self._handler.submit(plan, attempt=next(self._attempts), start_within_s=plan.job.start_within_s)
            output = (await self._handler.finish(drawing, reporter, delivery)).model_dump(mode="json")
        await reporter.close()
        limit_mb = self._limit_mb(str(job["id"]))
        await self._encoder.run(lambda given: check_size(given, limit_mb), output)
        return output

    async def _plan(self, job_id: str, wanted: JobInput, fetcher: SafeFetcher) -> Plan:
        sources = PictureSources(fetcher, self._policy, self._bounds, self._decoders)
        plan = await Preparer(self._engine, self._bounds, sources, self._styles).draft(job_id, wanted)
        return plan if plan.prepare is None else await plan.prepare()

    def _limit_mb(self, job_id: str) -> float:
        by_kind = SYNC_RESULT_MB if job_id.startswith("sync-") else ASYNC_RESULT_MB
        return self._settings.worker_result_mb or by_kind

    def _stop_if_unhealthy(self) -> None:
        """Let RunPod replace a worker whose device fails call after call. SIGTERM lets the SDK finish its jobs."""
        if not self._engine.stats().healthy:
            log.critical("engine_unhealthy")
            os.kill(os.getpid(), signal.SIGTERM)


def check_size(output: dict[str, Any], limit_mb: float) -> None:
    """Refuse a result that RunPod would refuse, where its caller can still be told why.

    Raises:
        ResultTooLargeError: the JSON is larger than `limit_mb` (1 MB = 10^6 bytes).

    """
    size_mb = len(encode({"output": output})) / 1e6
    if size_mb > limit_mb:
        raise ResultTooLargeError(
            f"The result has {size_mb:.1f} MB and RunPod takes {limit_mb:g} MB. Ask for fewer or smaller pictures, "
            "or have them uploaded: set BUCKET_ENDPOINT_URL and its keys, or send s3Config with the request."
        )


def _s3_config(given: object, deliveries: Deliveries) -> S3Config | None:
    if given is None:
        return None
    try:
        config = S3Config.model_validate(given)
    except ValidationError as problem:
        details = [FieldProblem(f"s3Config.{item.field}", item.reason) for item in invalid_input(problem).details]
        message = "; ".join(f"{item.field}: {item.reason}" for item in details)
        raise InvalidInputError(message, details=details) from None
    if problems := deliveries.s3_problems(config):
        raise InvalidInputError(f"{problems[0].field}: {problems[0].reason}", details=problems)
    return config


def _correlation_id(job: dict[str, Any]) -> str:
    wanted = job.get("input")
    given = wanted.get("request_id") if isinstance(wanted, dict) else None
    return given if isinstance(given, str) else str(job["id"])


def worker_settings() -> InferenceSettings:
    """The settings, with room in the engine's queue for every job that the SDK may take at once.

    Raises:
        SettingsError: naming each wrong variable.

    """
    settings = load_settings(InferenceSettings)
    check_settings(settings)
    parse_allow_hosts(settings.fetch_allow_hosts)
    needed = settings.max_batch * settings.max_images
    return settings.model_copy(update={"max_waiting": max(settings.max_waiting, needed)})


def main(opener: Callable[[InferenceSettings], Engine] = open_engine) -> int:
    """Load the checkpoint, then take jobs until RunPod stops the worker; the process's exit code."""
    try:
        settings = worker_settings()
    except SettingsError as problem:
        sys.stderr.write(f"igen runpod worker: {problem}\n")
        return EXIT_SETTINGS
    configure_logging(settings, "runpod-worker")
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")  # the SDK's own default writes prompts and results to the log
    import runpod  # noqa: PLC0415 - the package is optional, and reads the line above when imported

    try:
        engine = opener(settings)
    except EngineError as problem:
        log.error("checkpoint_not_loaded", checkpoint=settings.checkpoint, reason=str(problem))  # noqa: TRY400 - complete without a traceback
        return EXIT_ENGINE
    platform = SdkPlatform() if os.environ.get("RUNPOD_WEBHOOK_POST_OUTPUT") else None
    try:
        worker = Worker(engine, settings, platform)
    except SettingsError as problem:
        sys.stderr.write(f"igen runpod worker: {problem}\n")
        engine.close()
        return EXIT_SETTINGS
    log.info("ready", checkpoint=engine.info.checkpoint, device=engine.info.device)
    runpod.serverless.register_fitness_check(engine_draws(engine, settings))
    runpod.serverless.start({"handler": worker.handle, "concurrency_modifier": worker.concurrency})
    healthy = engine.stats().healthy
    engine.close()
    return 0 if healthy else EXIT_ENGINE


if __name__ == "__main__":
    sys.exit(main())
