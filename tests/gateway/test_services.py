from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from gateway.errors import OwnerLimitError
from gateway.services import OwnerLimit
from tests.gateway.conftest import form, until
from tests.support.fake_backend import png
from tests.support.seeded_run import seed_run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.gateway.conftest import StartGateway


def test_each_owner_has_places_of_its_own() -> None:
    limit = OwnerLimit(2, "archives")
    limit.take("one")
    with limit.enter("one"), pytest.raises(OwnerLimitError) as refused:
        limit.take("one")
    assert refused.value.status == 429
    assert int(refused.value.headers["Retry-After"]) > 0
    limit.take("other")
    limit.take("one")
    for _ in range(2):
        limit.give_back("one")
    with limit.enter("one"), limit.enter("one"):
        pass


def test_a_place_is_given_back_when_the_block_fails() -> None:
    limit = OwnerLimit(1, "uploads")
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), limit.enter("one"):
            raise ZeroDivisionError


async def slow_form(begun: asyncio.Event, more: asyncio.Event) -> AsyncIterator[bytes]:
    yield b'--b\r\nContent-Disposition: form-data; name="picture"; filename="a.png"\r\n\r\n'
    begun.set()
    await more.wait()
    yield png(100, 100) + b'\r\n--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nx\r\n--b--\r\n'


async def test_uploads_over_the_limit_are_429_until_one_ends(
    start_gateway: StartGateway, composer: Any, other_key: str
) -> None:
    gateway = await start_gateway(composer=composer, max_uploads=1)
    begun, more = asyncio.Event(), asyncio.Event()
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    first = asyncio.create_task(gateway.request("POST", "/api/frames", data=slow_form(begun, more), headers=headers))
    await begun.wait()
    await until(lambda: gateway.services.uploads._under_way)
    for path, parts in (
        ("/api/frames", {"name": "y", "picture": png(9, 9)}),
        ("/api/assets", {"kind": "badge", "file": png(9, 9)}),
    ):
        refused = await gateway.request("POST", path, data=form(**parts))
        assert (refused.status, refused.code) == (429, "too_many_at_once")
        assert int(refused.headers["Retry-After"]) > 0
    assert (await gateway.request("POST", "/api/frames", json={"name": "y"})).status == 422, "that is no upload"
    await gateway.frame(key=other_key)
    more.set()
    assert (await first).status == 201
    await gateway.frame()


async def test_archives_over_the_limit_are_429_until_one_ends_or_is_left(
    start_gateway: StartGateway, composer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await start_gateway(composer=composer, max_zips=1)
    frame = await gateway.frame()
    await seed_run(gateway.services.db, gateway.services.store, frame["id"])
    path = f"/api/frames/{frame['id']}/outputs.zip"
    real, go_on = gateway.services.store.get, asyncio.Event()

    async def slow(key: str) -> bytes:
        await go_on.wait()
        return await real(key)

    monkeypatch.setattr(gateway.services.store, "get", slow)
    headers = {"Authorization": f"Bearer {gateway.key}"}
    async with aiohttp.ClientSession() as http:
        left = await http.get(gateway.url + path, headers=headers)
        refused = await gateway.request("GET", path)
        assert (refused.status, refused.code) == (429, "too_many_at_once")
        left.close()
    await until(lambda: not gateway.services.zips._under_way)
    go_on.set()
    for _ in range(2):
        assert (await gateway.request("GET", path)).status == 200
