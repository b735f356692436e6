"""`Idempotency-Key` of requests that make a row at once: the answer is saved with the row, in one transaction.

So a caller who sends a request again, since the first answer was lost, gets that answer and makes nothing twice. A
request that was refused made nothing and saved nothing; sent again it is looked at anew.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gateway.errors import IdempotencyConflictError
from gateway.responses import answer_json
from gateway.services import services_of
from models.db import utc_now
from models.errors import BadRequestError, FieldProblem
from models.tables import Reply

if TYPE_CHECKING:
    from fastapi.responses import JSONResponse
    from sqlalchemy.ext.asyncio import AsyncSession
    from starlette.requests import Request

    from gateway.keys import Caller
    from models.db import Database

IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that came with a key."""

    owner_id: str
    key: str
    request_hash: str


def idempotency_key(request: Request) -> str | None:
    """The request's key.

    Raises:
        BadRequestError: it is not one.

    """
    sent = request.headers.getlist("idempotency-key")
    if not sent:
        return None
    if len(sent) > 1 or not IDEMPOTENCY_KEY.fullmatch(sent[0]):
        reason = "must be sent once, as 1 to 255 printable ASCII characters"
        raise BadRequestError(f"Idempotency-Key {reason}.", details=[FieldProblem("Idempotency-Key", reason)])
    return sent[0]


def hash_of(asked: dict[str, Any]) -> str:
    """The SHA-256 of what a request asks for, whatever the order of its fields."""
    canonical = json.dumps(asked, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def asked_of(request: Request, caller: Caller, what: dict[str, Any]) -> Asked | None:
    """A request's key, and `what` it asks for at which address; None without a key. Errors as `idempotency_key`."""
    key = idempotency_key(request)
    if key is None:
        return None
    path = request.url.path.rstrip("/")
    return Asked(caller.owner_id, key, hash_of({"method": request.method, "path": path, "what": what}))


async def known_reply(db: Database, asked: Asked | None) -> Reply | None:
    """The answer that the key's first request got.

    Raises:
        IdempotencyConflictError: that was another request.

    """
    if asked is None:
        return None
    async with db.read() as session:
        reply = await session.get(Reply, (asked.owner_id, asked.key))
    if reply is not None and reply.request_hash != asked.request_hash:
        raise IdempotencyConflictError(
            details=[FieldProblem("Idempotency-Key", "was used before with another request")]
        )
    return reply


async def save_reply(session: AsyncSession, asked: Asked | None, status: int, body: dict[str, Any]) -> None:
    """Save an answer in the transaction that makes what it tells of.

    Raises:
        IntegrityError: another request with the same key was first; nothing was made.

    """
    if asked is None:
        return
    row = Reply(
        owner_id=asked.owner_id,
        idempotency_key=asked.key,
        request_hash=asked.request_hash,
        status=status,
        body=body,
        created_at=utc_now(),
    )
    session.add(row)
    await session.flush()


def answer_made(request: Request, status: int, body: dict[str, Any]) -> JSONResponse:
    """The first answer."""
    return answer_json(request.scope, body, status=status, headers={"Location": body["url"]})


def answer_again(request: Request, reply: Reply) -> JSONResponse:
    """The same answer once more, and a header that says so."""
    services_of(request).metrics.replays.inc()
    headers = {"Location": reply.body["url"], "Idempotency-Replayed": "true"}
    return answer_json(request.scope, reply.body, status=reply.status, headers=headers)
