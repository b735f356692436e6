from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import update

from gateway.keys import KEY, Keys
from models.db import utc_now
from models.tables import ApiKey, User

if TYPE_CHECKING:
    from tests.gateway.conftest import RunningGateway
    from tests.support.fake_backend import FakeBackend


@pytest.fixture
def database(either_database: str) -> str:
    return either_database


async def test_a_key_has_the_promised_form_and_only_its_hash_is_kept(gateway: RunningGateway) -> None:
    assert KEY.fullmatch(gateway.key)
    secret = gateway.key.rsplit("_", maxsplit=1)[1]
    ((row, user),) = await gateway.services.keys.list()
    assert user.name == "admin"
    assert secret not in str(vars(row))


async def test_every_way_to_have_no_good_key_is_the_same_401(gateway: RunningGateway, backend: FakeBackend) -> None:
    good = gateway.key
    wrong_secret = good[:-1] + ("a" if good[-1] != "a" else "b")
    answers = []
    for header in (
        None,
        "",
        good,
        f"Basic {good}",
        "Bearer",
        "Bearer ",
        f"Bearer {wrong_secret}",
        f"Bearer {good}x",
        "Bearer igen_aaaaaaaaaaaa_" + "0" * 43,
        "Bearer ' OR 1=1 --",
        "Bearer " + "x" * 7000,
    ):
        headers = {} if header is None else {"Authorization": header}
        reply = await gateway.generate(key=None, headers=headers)
        assert (reply.status, reply.code) == (401, "unauthorized"), header
        assert reply.headers["WWW-Authenticate"] == "Bearer"
        answers.append(reply.json["error"]["message"])
    assert len(set(answers)) == 1
    assert backend.submissions == []
    for path in ("/api/generations/", "/api/generations/gen_x"):
        assert (await gateway.request("GET", path, key=None)).status == 401


async def test_the_scheme_may_be_written_in_any_case(gateway: RunningGateway) -> None:
    reply = await gateway.generate(key=None, headers={"Authorization": f"bearer {gateway.key}"})
    assert reply.status == 200


async def test_a_missing_key_is_401_before_the_body_is_looked_at(gateway: RunningGateway) -> None:
    assert (await gateway.generate({"nonsense": 1}, key=None)).status == 401


async def test_a_revoked_key_is_refused_at_once(gateway: RunningGateway) -> None:
    assert (await gateway.generate()).status == 200
    assert await gateway.services.keys.revoke(gateway.key.split("_")[1])
    assert (await gateway.generate()).status == 401
    assert not await gateway.services.keys.revoke(gateway.key.split("_")[1])


async def test_an_expired_key_is_refused(gateway: RunningGateway) -> None:
    keys = gateway.services.keys
    owner = await keys.user("admin")
    past = await keys.create(owner, "old", expires_at=utc_now() - timedelta(seconds=1))
    future = await keys.create(owner, "new", expires_at=utc_now() + timedelta(hours=1))
    assert (await gateway.generate(key=past.text)).status == 401
    assert (await gateway.generate(key=future.text)).status == 200


async def test_a_disabled_users_keys_are_refused(gateway: RunningGateway) -> None:
    async with gateway.services.db.write() as session:
        await session.execute(update(User).values(disabled_at=utc_now()))
    assert (await gateway.generate()).status == 401


async def test_last_use_is_kept_coarsely(gateway: RunningGateway) -> None:
    async def last_used() -> object:
        async with gateway.services.db.read() as session:
            row = await session.get(ApiKey, gateway.key.split("_")[1])
            assert row is not None
            return row.last_used_at

    assert await last_used() is None
    await gateway.generate()
    await gateway.log(1)
    first = await last_used()
    assert first is not None
    await gateway.generate()
    await gateway.log(2)
    assert await last_used() == first


async def test_a_user_is_made_once(gateway: RunningGateway) -> None:
    keys = Keys(gateway.services.db)
    assert await keys.user("ada") == await keys.user("ada") != await keys.user("bob")
