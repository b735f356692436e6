"""`/api/frames/{id}/runs`: start a run of a frame's feed, look at it, cancel it, try its failures again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse  # noqa: TC002 - FastAPI reads the annotations when it runs
from sqlalchemy.exc import IntegrityError

from compositor import queue, runs
from compositor.errors import RunActiveError
from gateway.auth import KnownCaller  # noqa: TC001 - as above
from gateway.errors import NoQueueError
from gateway.frameanswers import moment
from gateway.frames import KnownFrame  # noqa: TC001 - as above
from gateway.frametable import MOST_ID
from gateway.replies import answer_again, answer_made, asked_of, known_reply, save_reply
from gateway.responses import answer_json
from gateway.routes import route
from gateway.schemas import IDEMPOTENT
from gateway.services import services_of
from models.errors import NotFoundError, UnavailableError
from models.logs import get_logger
from models.tables import RunState

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from compositor.runs import Counts
    from gateway.services import Services
    from models.tables import Frame, Run

MOST_TICKETS = 64
ACCEPTED = 202

router = APIRouter(prefix="/api", redirect_slashes=False)
log = get_logger(__name__)


@route(
    router,
    "POST",
    "/frames/{frame_id}/runs",
    status=202,
    summary="Frame every product of the feed",
    openapi_extra=IDEMPOTENT,
)
async def start(request: Request, caller: KnownCaller, frame: KnownFrame) -> JSONResponse:
    """Begin a run with the frame as it is now. 409 while one is under way."""
    services = services_of(request)
    if services.lifecycle.draining:
        raise UnavailableError(retry_after_s=2)
    redis_url = _redis_url(services)
    asked = asked_of(request, caller, {})
    if (known := await known_reply(services.db, asked)) is not None:
        return answer_again(request, known)
    base, none_yet = services.settings.public_base, runs.Counts(0, 0, 0, 0, 0, 0)

    async def after(session: AsyncSession, run: Run) -> None:
        await save_reply(session, asked, ACCEPTED, tell_run(run, none_yet, base))

    try:
        run = await runs.start_run(services.db, frame, after=after)
    except (IntegrityError, RunActiveError):
        if (known := await known_reply(services.db, asked)) is None:
            raise
        return answer_again(request, known)  # another request with the same key was first
    log.info("run_started", run_id=run.id, frame_id=frame.id)
    if not await queue.enqueue_ingest(redis_url, run.id):
        log.warning("run_waits_for_queue", run_id=run.id)  # the reconciler asks again from the row
    return answer_made(request, ACCEPTED, tell_run(run, none_yet, base))


@route(router, "GET", "/frames/{frame_id}/runs", summary="List a frame's runs, newest first")
async def list_all(
    request: Request,
    frame: KnownFrame,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    before: Annotated[int | None, Query(ge=1, le=MOST_ID)] = None,
) -> JSONResponse:
    """A page of runs; `next_before` is the `before` of the next page, null at the end."""
    services = services_of(request)
    found = await runs.list_runs(services.db, frame.id, limit=limit, before=before)
    counts = await runs.counts_of(services.db, [run.id for run in found])
    told = [tell_run(run, counts[run.id], services.settings.public_base) for run in found]
    following = found[-1].id if len(found) == limit else None
    return answer_json(request.scope, {"runs": told, "next_before": following})


@route(router, "GET", "/frames/{frame_id}/runs/{run_id}", summary="Look at one run")
async def read(request: Request, frame: KnownFrame, run_id: str) -> JSONResponse:
    """Where a run stands, with counts that add up to its total."""
    services = services_of(request)
    return answer_json(request.scope, await _told(services, await find_run(services, frame, run_id)))


@route(router, "POST", "/frames/{frame_id}/runs/{run_id}/cancel", summary="Cancel a run")
async def cancel(request: Request, frame: KnownFrame, run_id: str) -> JSONResponse:
    """End a run at once; what is done stays done, and nothing is published."""
    services = services_of(request)
    run = await find_run(services, frame, run_id)
    ended = await runs.cancel_run(services.db, frame.owner_id, run.id)
    if services.settings.redis_url is not None and run.snapshot.get("webhook_url"):
        await queue.enqueue_webhook(_redis_url(services), run.id)  # else the reconciler asks, a minute later
    return answer_json(request.scope, await _told(services, ended))


@route(router, "POST", "/frames/{frame_id}/runs/{run_id}/retry", status=202, summary="Try a run's failures again")
async def retry(request: Request, frame: KnownFrame, run_id: str) -> JSONResponse:
    """The same run goes on, for products that failed or were never tried."""
    services = services_of(request)
    redis_url = _redis_url(services)
    run = await find_run(services, frame, run_id)
    again = await runs.retry_failed(services.db, frame.owner_id, run.id)
    if again.state == RunState.QUEUED:
        await queue.enqueue_ingest(redis_url, again.id)
    else:
        await queue.enqueue_compose(redis_url, again.id, MOST_TICKETS)
    return answer_json(request.scope, await _told(services, again), status=202)


async def find_run(services: Services, frame: Frame, run_id: str) -> Run:
    """A run of a frame, by the text in an address.

    Raises:
        NotFoundError: none, or another frame's.

    """
    number = int(run_id) if run_id.isascii() and run_id.isdigit() and len(run_id) < 11 else 0  # noqa: PLR2004
    if not 0 < number <= MOST_ID:
        raise NotFoundError
    run = await runs.get_run(services.db, frame.owner_id, number)
    if run.frame_id != frame.id:
        raise NotFoundError
    return run


def tell_run(run: Run, counts: Counts, base: str) -> dict[str, Any]:
    """A run with its counts, which add up to `total`."""
    address = f"{base}/api/frames/{run.frame_id}/runs/{run.id}"
    return {
        "id": run.id,
        "frame_id": run.frame_id,
        "url": address,
        "state": run.state,
        "finished": RunState(run.state).terminal,
        "trigger": run.trigger,
        "total": counts.total if run.total is None else run.total,
        "processed": counts.processed,
        "completed": counts.completed,
        "reused": counts.reused,
        "failed": counts.failed,
        "skipped": counts.skipped,
        "waiting": counts.waiting,
        "partial": run.partial,
        "error": None if run.error_code is None else {"code": run.error_code, "message": run.error},
        "webhook": _tell_webhook(run),
        "feed_url": run.feed_url,
        "created_at": moment(run.created_at),
        "started_at": moment(run.started_at),
        "finished_at": moment(run.finished_at),
    }


def _tell_webhook(run: Run) -> dict[str, Any] | None:
    """What became of the word of the run's end; None where nobody is to be told."""
    if not run.snapshot.get("webhook_url"):
        return None
    ended = "delivered" if run.webhook_error is None else "given_up"
    return {
        "state": "pending" if run.webhook_sent_at is None else ended,
        "attempts": run.webhook_attempts,
        "error": run.webhook_error,
        "next_at": moment(run.webhook_next_at),
        "ended_at": moment(run.webhook_sent_at),
    }


async def _told(services: Services, run: Run) -> dict[str, Any]:
    return tell_run(run, await runs.counts(services.db, run.id), services.settings.public_base)


def _redis_url(services: Services) -> str:
    redis_url = services.settings.redis_url
    if redis_url is None or not redis_url.get_secret_value():
        raise NoQueueError("IGEN_REDIS_URL is not set, and runs need a queue.")
    return redis_url.get_secret_value()
