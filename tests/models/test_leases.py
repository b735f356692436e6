from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

from models.db import Database, utc_now
from models.leases import NamedLease, about_to_delete, about_to_name


class Clock:
    """A clock that runs ahead of this machine's."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> datetime:
        return utc_now() + timedelta(seconds=self.ahead)


async def test_one_holds_and_the_next_takes_over_when_it_falls_silent(db: Database) -> None:
    clock = Clock()
    one, other = (NamedLease(db, "chore", name, seconds=10, clock=clock) for name in ("one", "other"))
    assert await one.hold()
    assert not await other.hold()
    clock.ahead = 5
    assert await one.hold()
    clock.ahead = 14
    assert not await other.hold()
    clock.ahead = 16
    assert await other.hold()
    assert not await one.hold()


async def test_of_many_at_once_one_gets_it(db: Database) -> None:
    leases = [NamedLease(db, "chore", str(number), seconds=60) for number in range(8)]
    assert sorted(await asyncio.gather(*(lease.hold() for lease in leases))) == [False] * 7 + [True]


async def test_nobody_takes_it_while_it_rests(db: Database) -> None:
    clock = Clock()
    one, other = (NamedLease(db, "chore", name, seconds=10, clock=clock) for name in ("one", "other"))
    assert await one.hold()
    await one.rest(timedelta(hours=1))
    clock.ahead = 3590
    assert not await one.hold()
    assert not await other.hold()
    clock.ahead = 3601
    assert await other.hold()


async def test_who_lost_it_cannot_lay_it_to_rest(db: Database) -> None:
    clock = Clock()
    one, other = (NamedLease(db, "chore", name, seconds=10, clock=clock) for name in ("one", "other"))
    await one.hold()
    clock.ahead = 11
    await other.hold()
    await one.rest(timedelta(hours=1))
    assert await other.hold()


async def test_who_names_waits_for_who_deletes(db: Database) -> None:
    order: list[str] = []
    deleting = asyncio.Event()

    async def delete() -> None:
        async with db.write() as session:
            await about_to_delete(session)
            deleting.set()
            await asyncio.sleep(0.3)
            order.append("deleted")

    async def name() -> None:
        await deleting.wait()
        async with db.write() as session:
            await about_to_name(session)
            order.append("named")

    await asyncio.gather(delete(), name(), name())
    assert order == ["deleted", "named", "named"]


async def test_who_deletes_waits_for_who_names(db: Database) -> None:
    order: list[str] = []
    naming = asyncio.Event()

    async def name() -> None:
        async with db.write() as session:
            await about_to_name(session)
            naming.set()
            await asyncio.sleep(0.3)
            order.append("named")

    async def delete() -> None:
        await naming.wait()
        async with db.write() as session:
            await about_to_delete(session)
            order.append("deleted")

    await asyncio.gather(name(), delete())
    assert order == ["named", "deleted"]
