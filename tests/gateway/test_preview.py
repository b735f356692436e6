from __future__ import annotations

import io
import time
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from gateway import previewer
from tests.gateway.conftest import form
from tests.support.fake_backend import png
from tests.support.origin import answer_with
from tests.support.shop import Shop, draw

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.fakes_composer import FakeComposer
    from tests.gateway.conftest import RunningGateway, StartGateway


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    async with Shop() as shop:
        shop.add(3)
        shop.origin.answers["/feed.xml"] = answer_with(shop.feed)
        yield shop


def feed_url(shop: Shop) -> str:
    return shop.origin.url("/feed.xml")


@pytest.fixture
async def drawing(start_gateway: StartGateway, shop: Shop) -> RunningGateway:
    """A gateway with real composing children, which may fetch from the shop."""
    return await start_gateway(fetch_allow_hosts=shop.host)


async def test_a_feeds_product_is_drawn_as_a_run_would_and_fast_the_second_time(
    drawing: RunningGateway, shop: Shop
) -> None:
    frame = await drawing.frame(picture=png(300, 200), feed_url=feed_url(shop))
    address = f"/api/frames/{frame['id']}/preview"
    first = await drawing.request("POST", address, json={"position": 1})
    assert (first.status, first.headers["Content-Type"]) == (200, "image/jpeg")
    assert first.headers["X-Product-ID"] == shop.products[1].id
    with Image.open(io.BytesIO(first.body)) as opened:
        assert opened.size == (300, 200)
        assert opened.convert("RGB").getpixel((150, 100)) != opened.convert("RGB").getpixel((5, 5))
    asked = len(shop.sent)
    began = time.monotonic()
    again = await drawing.request("POST", address, json={"position": 1, "design": {"output": {"kind": "png"}}})
    assert (again.status, again.headers["Content-Type"]) == (200, "image/png")
    assert time.monotonic() - began < 1.0
    assert len(shop.sent) == asked
    assert (await drawing.request("GET", f"/api/frames/{frame['id']}")).json["design"]["output"]["kind"] == "jpeg"


async def test_what_changed_in_the_shop_is_drawn_as_it_is_now(
    drawing: RunningGateway, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(previewer, "FRESH_S", 0.0)
    frame = await drawing.frame(picture=png(300, 200), feed_url=feed_url(shop))
    address = f"/api/frames/{frame['id']}/preview"
    first = await drawing.request("POST", address, json={"position": 0})
    assert (await drawing.request("POST", address, json={"position": 0})).body == first.body
    assert len(shop.unchanged) == 1
    shop.serve("/0.jpg", draw(99, (300, 240)))
    assert (await drawing.request("POST", address, json={"position": 0})).body != first.body
    shop.add(1)
    shop.origin.answers["/feed.xml"] = answer_with(shop.feed)
    last = len(shop.products) - 1
    added = await drawing.request("POST", address, json={"position": last})
    assert (added.status, added.headers["X-Product-ID"]) == (200, shop.products[last].id)
    del shop.origin.answers["/feed.xml"]
    kept = await drawing.request("POST", address, json={"position": last})
    assert kept.body == added.body, "while the shop is away what is kept is good enough"


async def test_without_a_body_the_first_product_is_drawn(drawing: RunningGateway, shop: Shop) -> None:
    frame = await drawing.frame(feed=shop.feed)
    reply = await drawing.request("POST", f"/api/frames/{frame['id']}/preview")
    assert (reply.status, reply.headers["X-Product-ID"]) == (200, shop.products[0].id)


async def test_a_given_product_and_size(start_gateway: StartGateway, shop: Shop, composer: FakeComposer) -> None:
    gateway = await start_gateway(composer=composer, fetch_allow_hosts=shop.host)
    sizes = [{"name": "square", "width": 100, "height": 100}, {"name": "tall", "width": 90, "height": 160}]
    frame = await gateway.frame(design={"sizes": sizes})
    address = f"/api/frames/{frame['id']}/preview"
    product = {"g:id": "a b", "image_link": shop.products[0].link, "Title": "A shoe"}
    reply = await gateway.request("POST", address, json={"product": product, "size": "tall"})
    assert (reply.status, reply.headers["X-Product-ID"], reply.headers["X-Picture-Size"]) == (200, "a%20b", "90x160")
    (job,) = composer.jobs
    assert (job.fields["title"], job.size.name, job.transparent) == ("A shoe", "tall", False)
    assert job.frame.read_bytes() == png(200, 100)
    reply = await gateway.request("POST", address, json={"product": product, "size": "wide"})
    assert (reply.status, reply.json["error"]["param"]) == (422, "size")


async def test_what_cannot_be_drawn_says_why(drawing: RunningGateway, shop: Shop, other_key: str) -> None:
    frame = await drawing.frame(feed_url=feed_url(shop))
    bare = await drawing.frame()
    address = f"/api/frames/{frame['id']}/preview"
    cases = [
        (address, {"position": 99}, "invalid_input"),
        (address, {"position": -1}, "invalid_input"),
        (address, {"position": 0, "product": {}}, "invalid_input"),
        (address, {"product": {"id": "1"}}, "missing_image"),
        (address, {"product": {"image_link": "/a.jpg"}}, "relative_url"),
        (address, {"product": {"image_link": "http://127.0.0.1:1/a.jpg"}}, "source_blocked"),
        (address, {"product": {"image_link": feed_url(shop)}}, "source_not_an_image"),
        (address, {"design": {"odd": 1}}, "invalid_input"),
        (f"/api/frames/{bare['id']}/preview", {}, "no_feed"),
    ]
    for path, body, code in cases:
        reply = await drawing.request("POST", path, json=body)
        assert (reply.status, reply.code) == (422, code), (body, reply.body)
    assert (await drawing.request("POST", address, key=other_key, json={})).status == 404


async def test_the_real_children_look_into_uploads(drawing: RunningGateway) -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (64, 48), (255, 0, 0, 128)).save(buffer, "WEBP")
    frame = await drawing.frame(picture=buffer.getvalue())
    assert frame["picture"] | {"url": ""} == {"url": "", "width": 64, "height": 48, "transparent": True}
    assert frame["layer"] == "over"
    for bad in (b"<svg/>", png(40, 40)[:60], b"%PDF-1.7"):
        reply = await drawing.request("POST", "/api/frames", data=form(name="x", picture=bad))
        assert reply.status == 422, reply.body
