"""Transactions in threads: they commit or roll back as a whole, and a cancelled caller knows which."""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, insert, select

from models.db import Database, DatabaseError, utc_now
from models.tables import User

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.engine import Connection


def add(connection: Connection, name: str) -> str:
    connection.execute(insert(User).values(id=name, name=name, created_at=utc_now()))
    return name


def count(connection: Connection) -> int:
    return int(connection.scalar(select(func.count()).select_from(User)) or 0)


async def test_what_it_returns_comes_back_and_is_committed(db: Database) -> None:
    before, committed = await db.read_at_once(count), threading.Event()
    assert await db.write_at_once(lambda connection: add(connection, "a"), committed.set) == "a"
    assert committed.is_set()
    assert await db.read_at_once(count) == before + 1
    async with db.read() as session:
        assert await session.get(User, "a") is not None


async def test_what_raises_leaves_nothing(db: Database) -> None:
    before, committed = await db.read_at_once(count), threading.Event()

    def fails(connection: Connection) -> None:
        add(connection, "a")
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await db.write_at_once(fails, committed.set)
    assert not committed.is_set()
    assert await db.read_at_once(count) == before


async def test_a_cancelled_caller_waits_for_the_end_and_knows_it(db: Database) -> None:
    before = await db.read_at_once(count)
    begun, go_on, committed = threading.Event(), threading.Event(), threading.Event()

    def slow(connection: Connection) -> None:
        add(connection, "a")
        begun.set()
        assert go_on.wait(30)

    caller = asyncio.create_task(db.write_at_once(slow, committed.set))
    assert await asyncio.to_thread(begun.wait, 30)
    for _ in range(3):
        caller.cancel()
        await asyncio.sleep(0)
    assert not caller.done(), "the transaction is under way"
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert committed.is_set()
    assert await db.read_at_once(count) == before + 1


async def test_a_cancelled_caller_whose_transaction_fails_hears_of_the_cancellation(db: Database) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def fails(_: Connection) -> None:
        begun.set()
        assert go_on.wait(30)
        raise ConnectionResetError

    caller = asyncio.create_task(db.write_at_once(fails))
    assert await asyncio.to_thread(begun.wait, 30)
    caller.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await caller


async def test_writers_of_both_kinds_take_turns(db: Database) -> None:
    before = await db.read_at_once(count)

    async def by_session(number: int) -> None:
        async with db.write() as session:
            session.add(User(id=f"s{number}", name=f"s{number}", created_at=utc_now()))

    def slowly(name: str, connection: Connection) -> None:
        add(connection, name)
        time.sleep(0.01)

    in_threads = [db.write_at_once(partial(slowly, f"t{number}")) for number in range(10)]
    await asyncio.gather(*in_threads, *(by_session(number) for number in range(10)))
    assert await db.read_at_once(count) == before + 20


async def test_it_can_be_used_again_after_it_was_closed(db: Database) -> None:
    await db.read_at_once(count)
    await db.close()
    assert await db.read_at_once(count) >= 0


async def test_a_database_that_cannot_be_opened_is_our_error(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    db = Database(f"sqlite:///{tmp_path}/folder")
    try:
        with pytest.raises(DatabaseError):
            await db.write_at_once(count)
    finally:
        await db.close()
