"""Tickets for browsers, which cannot send a key with a WebSocket: one use, half a minute, one user and one frame."""

from __future__ import annotations

import hashlib
import json
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from redis.exceptions import RedisError

from gateway.errors import NoQueueError
from gateway.ids import new_ticket
from gateway.keys import Caller

if TYPE_CHECKING:
    from redis.asyncio import Redis

LIFE_S = 30
MOST_KEPT = 10_000
TICKET = re.compile(r"[0-9a-z]{26}")


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a ticket allows."""

    caller: Caller
    frame_id: int


class Tickets(Protocol):
    """Where tickets wait. Only a ticket's hash is kept."""

    async def issue(self, ticket: Ticket) -> str:
        """A new ticket's text."""
        ...

    async def take(self, text: str) -> Ticket | None:
        """What a ticket allows, once; None for one that is unknown, used or too old."""
        ...


class RedisTickets:
    """For any number of gateways."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def issue(self, ticket: Ticket) -> str:
        """See Tickets.

        Raises:
            NoQueueError: Redis does not answer.

        """
        text = new_ticket()
        kept = json.dumps([ticket.caller.owner_id, ticket.caller.key_id, ticket.frame_id])
        try:
            await self._redis.set(_name(text), kept, ex=LIFE_S)
        except RedisError as problem:
            raise NoQueueError(retry_after_s=2) from problem
        return text

    async def take(self, text: str) -> Ticket | None:
        """See Tickets; errors as `issue`."""
        if not TICKET.fullmatch(text):
            return None
        try:
            kept = await self._redis.getdel(_name(text))
        except RedisError as problem:
            raise NoQueueError(retry_after_s=2) from problem
        if kept is None:
            return None
        owner_id, key_id, frame_id = json.loads(kept)
        return Ticket(Caller(owner_id, key_id), frame_id)


class LocalTickets:
    """For one gateway without Redis."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[float, Ticket]] = {}

    async def issue(self, ticket: Ticket) -> str:
        """See Tickets."""
        now = time.monotonic()
        for name in [name for name, (ends, _) in self._kept.items() if ends <= now]:
            del self._kept[name]
        if len(self._kept) >= MOST_KEPT:
            raise NoQueueError(retry_after_s=LIFE_S)
        text = new_ticket()
        self._kept[_name(text)] = now + LIFE_S, ticket
        return text

    async def take(self, text: str) -> Ticket | None:
        """See Tickets."""
        ends, ticket = self._kept.pop(_name(text), (0.0, None))
        return ticket if ends > time.monotonic() else None


def _name(text: str) -> str:
    return f"igen:ticket:{hashlib.sha256(text.encode()).hexdigest()}"
