"""The word of a run's end, posted to the address that the frame names."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from sqlalchemy import update

from compositor.progress import describe
from compositor.snapshot import Snapshot
from models.db import utc_now
from models.fetch import FetchBlockedError, FetchError
from models.logs import get_logger
from models.tables import Run, RunState

if TYPE_CHECKING:
    from compositor.kit import Kit

TRIES = 3
PAUSE_S = 2.0
TIMEOUT_S = 15.0
ANSWER_BYTES = 1_000_000  # what the receiver answers is not used

log = get_logger(__name__)


async def send_webhook(kit: Kit, run_id: int) -> bool:
    """Post where the run stands as JSON, three times at most; True when a 2xx came back or nothing is to be sent.

    The run is marked as told before it is forgotten: a receiver may hear of a run twice, when the process dies in
    between. An address that may not be contacted is given up at once.
    """
    async with kit.db.read() as session:
        run = await session.get(Run, run_id)
    if run is None or not RunState(run.state).terminal or run.webhook_sent_at is not None:
        return True
    url = Snapshot.model_validate(run.snapshot).webhook_url
    if url is None:
        return True
    body = {"event": "run.finished", "frame_id": run.frame_id, **(await describe(kit.db, run_id) or {})}
    body["finished_at"] = None if run.finished_at is None else run.finished_at.isoformat()
    for attempt in range(TRIES):
        await asyncio.sleep(PAUSE_S * attempt)
        outcome = await _post(kit, url, body)
        if outcome in ("delivered", FetchBlockedError.code):
            await _mark(kit, run)
            log.info("webhook_ended", run_id=run_id, outcome=outcome)
            return outcome == "delivered"
        log.warning("webhook_attempt_failed", run_id=run_id, attempt=attempt + 1, reason=outcome)
    return False


async def _post(kit: Kit, url: str, body: dict[str, Any]) -> str:
    """`delivered`, or why not."""
    try:
        answer = await kit.fetcher.post_json(
            url, body, total_timeout_s=TIMEOUT_S, max_wire_bytes=ANSWER_BYTES, max_decoded_bytes=ANSWER_BYTES
        )
    except FetchError as problem:
        return problem.code
    ok = HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES
    return "delivered" if ok else f"status {answer.status}"


async def _mark(kit: Kit, run: Run) -> None:
    """Unless the run was opened again meanwhile, when its next end is to be told as well."""
    same = (Run.id == run.id, Run.fence == run.fence)
    async with kit.db.write() as session:
        await session.execute(update(Run).where(*same).values(webhook_sent_at=utc_now()))
