from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest
from aiohttp import web
from sqlalchemy import update

from compositor.errors import NothingToRetryError
from compositor.runs import cancel_run, retry_failed, start_run
from compositor.webhook import PAUSES_S, new_webhook_secret, send_webhook, sign, webhook_secret
from models.db import Database, utc_now
from models.fetch import FetchPolicy, SafeFetcher, parse_allow_hosts
from models.store import open_store
from models.tables import Frame, Run
from tests.support.seeded_frame import OWNER, seed_frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from compositor.kit import Kit


@dataclass
class Receiver:
    """Whoever is to hear of runs."""

    port: int = 0
    statuses: list[int] = field(default_factory=list)
    """Answers in turn; after the last, 200."""
    posts: list[tuple[Any, bytes]] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        self.posts.append((request.headers.copy(), await request.read()))
        return web.Response(status=self.statuses.pop(0) if self.statuses else 200)


@dataclass
class HookKit:
    """As much of a job's kit as this needs."""

    db: Database
    fetcher: SafeFetcher


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    found = Receiver()
    app = web.Application()
    app.router.add_post("/hook", found.take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found.port = runner.addresses[0][1]
    yield found
    await runner.cleanup()


@pytest.fixture
async def kit(either_database: str, receiver: Receiver) -> AsyncIterator[Kit]:
    db = Database(either_database)
    async with SafeFetcher(FetchPolicy(allow_hosts=parse_allow_hosts(f"127.0.0.1:{receiver.port}"))) as fetcher:
        yield cast("Kit", HookKit(db, fetcher))
    await db.close()


async def ended_run(kit: Kit, tmp_path: Path, url: str) -> Run:
    frame = await seed_frame(kit.db, open_store(f"file://{tmp_path}/store"), webhook_url=url)
    run = await start_run(kit.db, frame)
    return await cancel_run(kit.db, OWNER, run.id)


async def row(kit: Kit, run: Run) -> Run:
    async with kit.db.read() as session:
        return await session.get_one(Run, run.id)


async def due(kit: Kit) -> None:
    async with kit.db.write() as session:
        await session.execute(update(Run).values(webhook_next_at=utc_now() - timedelta(seconds=1)))


def test_the_signature_is_that_of_the_specification() -> None:
    at = datetime.fromtimestamp(1614265330, UTC)
    found = sign(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        at,
        b'{"test": 2432232314}',
    )
    assert found == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_secrets_are_the_frames_own() -> None:
    one, other = Frame(secret="a", webhook_secret=None), Frame(secret="b", webhook_secret=None)
    assert webhook_secret(one) == webhook_secret(one) != webhook_secret(other)
    one.webhook_secret = new_webhook_secret()
    assert webhook_secret(one) == one.webhook_secret
    for secret in (webhook_secret(one), webhook_secret(other)):
        assert secret.startswith("whsec_")
        assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 32


async def test_a_run_is_told_of_once_and_verifiably(kit: Kit, receiver: Receiver, tmp_path: Path) -> None:
    run = await ended_run(kit, tmp_path, f"http://127.0.0.1:{receiver.port}/hook")
    assert await send_webhook(kit, run.id)
    assert await send_webhook(kit, run.id)
    ((headers, body),) = receiver.posts
    told = json.loads(body)
    assert (told["event"], told["run_id"], told["state"]) == ("run.finished", run.id, "cancelled")
    async with kit.db.read() as session:
        secret = base64.b64decode(webhook_secret(await session.get_one(Frame, run.frame_id)).removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    digest = base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{digest}"
    assert abs(int(headers["webhook-timestamp"]) - utc_now().timestamp()) < 60
    found = await row(kit, run)
    assert (found.webhook_attempts, found.webhook_error) == (1, None)
    assert found.webhook_sent_at is not None


async def test_it_is_tried_again_when_due_under_the_same_id_and_given_up_in_the_end(
    kit: Kit, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.statuses = [500] * 20
    run = await ended_run(kit, tmp_path, f"http://127.0.0.1:{receiver.port}/hook")
    for attempt, pause in enumerate(PAUSES_S, 1):
        before = utc_now()
        assert not await send_webhook(kit, run.id)
        assert await send_webhook(kit, run.id), "it is not due"
        found = await row(kit, run)
        assert (found.webhook_attempts, len(receiver.posts), found.webhook_sent_at) == (attempt, attempt, None)
        assert found.webhook_error == "The receiver answered 500."
        assert found.webhook_next_at is not None
        assert timedelta(seconds=pause) <= found.webhook_next_at - before < timedelta(seconds=pause + 30)
        await due(kit)
    assert not await send_webhook(kit, run.id)
    await due(kit)
    assert await send_webhook(kit, run.id)
    assert len(receiver.posts) == len(PAUSES_S) + 1
    assert len({headers["webhook-id"] for headers, _ in receiver.posts}) == 1
    found = await row(kit, run)
    assert found.webhook_sent_at is not None
    assert found.webhook_error == "The receiver answered 500."


async def test_a_receiver_that_comes_back_hears_of_it(kit: Kit, receiver: Receiver, tmp_path: Path) -> None:
    receiver.statuses = [503, 302]
    run = await ended_run(kit, tmp_path, f"http://127.0.0.1:{receiver.port}/hook")
    for _ in range(3):
        await send_webhook(kit, run.id)
        await due(kit)
    found = await row(kit, run)
    assert (found.webhook_attempts, found.webhook_error) == (3, None)
    assert found.webhook_sent_at is not None


@pytest.mark.parametrize("gone", [True, False])
async def test_what_cannot_succeed_is_given_up_at_once(
    kit: Kit, receiver: Receiver, tmp_path: Path, gone: bool
) -> None:
    receiver.statuses = [410]
    url = f"http://127.0.0.1:{receiver.port}/hook" if gone else "http://169.254.169.254/hook"
    run = await ended_run(kit, tmp_path, url)
    assert not await send_webhook(kit, run.id)
    found = await row(kit, run)
    assert found.webhook_sent_at is not None
    assert ("410" if gone else "fetch_blocked") in str(found.webhook_error)


async def test_two_workers_post_once(kit: Kit, receiver: Receiver, tmp_path: Path) -> None:
    run = await ended_run(kit, tmp_path, f"http://127.0.0.1:{receiver.port}/hook")
    await asyncio.gather(*(send_webhook(kit, run.id) for _ in range(4)))
    assert len(receiver.posts) == 1


async def test_a_run_opened_again_is_told_of_again_under_another_id(
    kit: Kit, receiver: Receiver, tmp_path: Path
) -> None:
    run = await ended_run(kit, tmp_path, f"http://127.0.0.1:{receiver.port}/hook")
    await send_webhook(kit, run.id)
    try:
        await retry_failed(kit.db, OWNER, run.id)
    except NothingToRetryError:
        pytest.fail("it never read its feed, so it begins anew")
    assert await send_webhook(kit, run.id), "it is under way"
    await cancel_run(kit.db, OWNER, run.id)
    await send_webhook(kit, run.id)
    first, second = (headers["webhook-id"] for headers, _ in receiver.posts)
    assert first != second
    assert (await row(kit, run)).webhook_attempts == 1
