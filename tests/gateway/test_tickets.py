from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from compositor.progress import connect
from gateway import tickets
from gateway.errors import NoQueueError
from gateway.keys import Caller
from gateway.tickets import LocalTickets, RedisTickets, Ticket

if TYPE_CHECKING:
    from tests.support.compositor_rig import RedisProcess

TICKET = Ticket(Caller("usr_1", "key1"), 7)


async def test_a_local_ticket_is_good_once_and_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = LocalTickets()
    text = await kept.issue(TICKET)
    assert await kept.take(text) == TICKET
    assert await kept.take(text) is None
    monkeypatch.setattr(tickets, "LIFE_S", 0)
    assert await kept.take(await kept.issue(TICKET)) is None


async def test_local_tickets_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets, "MOST_KEPT", 1)
    kept = LocalTickets()
    await kept.issue(TICKET)
    with pytest.raises(NoQueueError):
        await kept.issue(TICKET)


async def test_a_ticket_of_one_gateway_is_good_at_another_and_redis_keeps_only_its_hash(redis: RedisProcess) -> None:
    one, two = connect(redis.url), connect(redis.url)
    text = await RedisTickets(one).issue(TICKET)
    (key,) = await one.keys("*")
    assert text.encode() not in key
    assert 0 < await one.ttl(key) <= 30
    assert await RedisTickets(two).take("not a ticket") is None
    assert await RedisTickets(two).take(text) == TICKET
    assert await RedisTickets(one).take(text) is None
    redis.kill()
    with pytest.raises(NoQueueError):
        await RedisTickets(one).issue(TICKET)
    await redis.start()
    await one.aclose()
    await two.aclose()
