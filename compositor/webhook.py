"""The word of a run's end, posted to the address that the frame names, signed as Standard Webhooks have it.

Source of headers, signature and secrets: the specification at standardwebhooks.com. A post that fails is made again
after each of `PAUSES_S`, as the run's row keeps it, and then given up; the row says how often and why.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from sqlalchemy import update

from compositor.progress import describe
from compositor.rows import changed
from compositor.snapshot import Snapshot
from models.db import utc_now
from models.fetch import FetchBlockedError, FetchError
from models.logs import get_logger
from models.tables import Frame, Run, RunState

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from compositor.kit import Kit

PAUSES_S = (5, 30, 120, 300, 900, 1800, 3600, 7200, 7200)
"""After each failed post; after the tenth, some six hours on, there is none."""
TAKEN_S = 60.0
"""While a post is under way nobody else makes it; a process that dies over it has it made again after this."""
TIMEOUT_S = 15.0
ANSWER_BYTES = 1_000_000  # what the receiver answers is not used
PREFIX = "whsec_"

log = get_logger(__name__)


def new_webhook_secret() -> str:
    """A secret for a frame's webhooks: `whsec_` and 256 random bits in base64."""
    return _text(secrets.token_bytes(32))


def webhook_secret(frame: Frame) -> str:
    """What a frame's webhooks are signed with: the one that its owner asked for, else one of its own secret's."""
    if frame.webhook_secret is not None:
        return frame.webhook_secret
    return _text(hmac.new(frame.secret.encode(), b"webhooks of this frame", hashlib.sha256).digest())


def sign(secret: str, message_id: str, at: datetime, body: bytes) -> dict[str, str]:
    """The three headers of a signed post: `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`."""
    timestamp = str(int(at.timestamp()))
    signed = b".".join((message_id.encode(), timestamp.encode(), body))
    digest = hmac.new(base64.b64decode(secret.removeprefix(PREFIX)), signed, hashlib.sha256).digest()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


async def send_webhook(kit: Kit, run_id: int) -> bool:
    """Post where the run stands as JSON, once; True when a 2xx came back, or nothing is to be sent now.

    A receiver may hear of a run's end twice, when the process dies between its answer and our note of it: both posts
    have the same `webhook-id`. An address that may not be contacted, and one that answers 410, is given up at once.
    """
    async with kit.db.read() as session:
        run = await session.get(Run, run_id)
        frame = None if run is None else await session.get(Frame, run.frame_id)
    if run is None or frame is None or not RunState(run.state).terminal or run.webhook_sent_at is not None:
        return True
    url = Snapshot.model_validate(run.snapshot).webhook_url
    if url is None or not await _take(kit, run):
        return True
    body = {"event": "run.finished", "frame_id": run.frame_id, **(await describe(kit.db, run_id) or {})}
    body["finished_at"] = None if run.finished_at is None else run.finished_at.isoformat()
    data = json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
    headers = sign(webhook_secret(frame), f"run-{run.id}-{run.fence}", utc_now(), data)
    problem, final = await _post(kit, url, data, headers)
    await _note(kit, run, problem, final=final)
    return problem is None


async def _post(kit: Kit, url: str, body: bytes, headers: Mapping[str, str]) -> tuple[str | None, bool]:
    """Why it failed, None when it did not; and whether another try is of no use."""
    try:
        answer = await kit.fetcher.request(
            "POST",
            url,
            headers={"Content-Type": "application/json", **headers},
            body=body,
            total_timeout_s=TIMEOUT_S,
            max_wire_bytes=ANSWER_BYTES,
            max_decoded_bytes=ANSWER_BYTES,
        )
    except FetchError as problem:
        return f"{problem.code}: {problem.message}"[:255], problem.code == FetchBlockedError.code
    if HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
        return None, True
    return f"The receiver answered {answer.status}.", answer.status == HTTPStatus.GONE


async def _take(kit: Kit, run: Run) -> bool:
    """Whether the post is this process's to make; the attempt counts from here."""
    now = utc_now()
    mine = update(Run).where(
        Run.id == run.id,
        Run.fence == run.fence,
        Run.webhook_attempts == run.webhook_attempts,
        Run.webhook_sent_at.is_(None),
        Run.webhook_next_at.is_(None) | (Run.webhook_next_at <= now),
    )
    values = {"webhook_attempts": run.webhook_attempts + 1, "webhook_next_at": now + timedelta(seconds=TAKEN_S)}
    async with kit.db.write() as session:
        return bool(changed(await session.execute(mine.values(**values))))


async def _note(kit: Kit, run: Run, problem: str | None, *, final: bool) -> None:
    """What came of it, unless the run was opened again meanwhile, when its next end is to be told as well."""
    attempt = run.webhook_attempts + 1
    over = final or attempt > len(PAUSES_S)
    values: dict[str, Any] = {"webhook_error": problem, "webhook_sent_at": None, "webhook_next_at": None}
    if over:
        values["webhook_sent_at"] = utc_now()
    else:
        values["webhook_next_at"] = utc_now() + timedelta(seconds=PAUSES_S[attempt - 1])
    async with kit.db.write() as session:
        await session.execute(update(Run).where(Run.id == run.id, Run.fence == run.fence).values(**values))
    if problem is None:
        log.info("webhook_delivered", run_id=run.id, attempt=attempt)
    elif over:
        log.error("webhook_given_up", run_id=run.id, attempt=attempt, reason=problem)
    else:
        log.warning("webhook_attempt_failed", run_id=run.id, attempt=attempt, reason=problem)


def _text(secret: bytes) -> str:
    return PREFIX + base64.b64encode(secret).decode()
