from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from compositor.compose.errors import ComposeCode, ComposeError
from tests.gateway.conftest import form, until
from tests.support.fake_backend import png

if TYPE_CHECKING:
    from tests.fakes_composer import FakeComposer
    from tests.gateway.conftest import RunningGateway, StartGateway
    from tests.support.fake_backend import FakeBackend

FEED = b"""<feed xmlns:g="http://base.google.com/ns/1.0" xmlns="http://www.w3.org/2005/Atom">
<entry><id>1</id><image_link>http://example.com/1.jpg</image_link></entry></feed>"""
URL = "http://feeds.example.com/feed.xml"


async def test_a_frame_is_made_read_listed_changed_and_deleted(framing: RunningGateway) -> None:
    made = await framing.frame("Autumn sale", feed_url=URL, design={"placement": {"fit": "cover"}})
    assert (made["name"], made["revision"], made["feed"]["url"]) == ("Autumn sale", 1, URL)
    assert made["picture"] | {"url": ""} == {"url": "", "width": 200, "height": 100, "transparent": False}
    assert made["box"] == {"x": 40, "y": 20, "width": 120, "height": 60}
    assert made["layer"] == "under"

    address = f"/api/frames/{made['id']}"
    assert isinstance(made["id"], int)
    assert (await framing.request("GET", address)).json == made
    assert (await framing.request("GET", f"{address}/")).json == made
    listed = await framing.request("GET", "/api/frames")
    assert (listed.json["total"], listed.json["frames"]) == (1, [made])

    changed = await framing.request("PATCH", address, json={"name": "Winter sale", "feed_url": None})
    assert (changed.json["name"], changed.json["revision"]) == ("Winter sale", 2)
    assert changed.json["feed"] == {"kind": None, "url": None, "mode": "replace"}
    assert changed.json["design"] == made["design"]

    assert (await framing.request("DELETE", address)).status == 204
    for method in ("GET", "PATCH", "DELETE"):
        assert (await framing.request(method, address, json={})).status == 404
    assert (await framing.request("GET", "/api/frames")).json["total"] == 0


async def test_another_users_frame_is_not_there(framing: RunningGateway, other_key: str) -> None:
    made = await framing.frame()
    address = f"/api/frames/{made['id']}"
    for method, path in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("GET", "/picture")):
        reply = await framing.request(method, address + path, key=other_key, json={"name": "mine"})
        assert (reply.status, reply.code) == (404, "not_found")
    assert (await framing.request("GET", "/api/frames", key=other_key)).json["frames"] == []
    assert (await framing.request("GET", address)).json["name"] == "Autumn"


@pytest.mark.parametrize("frame_id", ["0", "-1", "x", "99999999999999999999", "2147483648", "1.0", "%00", "1e3"])
async def test_an_address_that_names_no_frame_is_404(framing: RunningGateway, frame_id: str) -> None:
    assert (await framing.request("GET", f"/api/frames/{frame_id}")).status == 404


async def test_without_a_key_nothing_is_read(framing: RunningGateway) -> None:
    sent = form(name="x", picture=png(10, 10))
    assert (await framing.request("POST", "/api/frames", key=None, data=sent)).status == 401
    assert (await framing.request("GET", "/api/frames", key=None)).status == 401


async def test_the_picture_comes_back_byte_for_byte(framing: RunningGateway) -> None:
    data = png(40, 30)
    made = await framing.frame(picture=data)
    got = await framing.request("GET", f"/api/frames/{made['id']}/picture")
    assert (got.body, got.headers["Content-Type"]) == (data, "image/png")
    again = await framing.request(
        "GET", f"/api/frames/{made['id']}/picture", headers={"If-None-Match": got.headers["ETag"]}
    )
    assert again.status == 304


async def test_replacing_picture_and_feed_releases_the_old_objects(framing: RunningGateway) -> None:
    made = await framing.frame(picture=png(200, 100), feed=FEED)
    store = framing.services.store
    before = [key async for key in store.list()]
    assert len(before) == 2
    sent = form(picture=png(300, 300), feed=FEED.replace(b"1.jpg", b"2.jpg"))
    changed = await framing.request("PATCH", f"/api/frames/{made['id']}", data=sent)
    assert (changed.json["picture"]["width"], changed.json["feed"]["kind"]) == (300, "file")

    async def replaced() -> bool:
        left = [key async for key in store.list()]
        return len(left) == 2 and not set(before) & set(left)

    await until(replaced)


async def test_deleting_one_of_two_frames_with_one_picture_keeps_the_picture(framing: RunningGateway) -> None:
    first, second = await framing.frame(feed=FEED), await framing.frame()
    await framing.request("DELETE", f"/api/frames/{first['id']}")
    await framing.services.sweeper.sweep()
    assert len([key async for key in framing.services.store.list()]) == 1
    assert (await framing.request("GET", f"/api/frames/{second['id']}/picture")).body == png(200, 100)
    await framing.request("DELETE", f"/api/frames/{second['id']}")
    await framing.services.sweeper.sweep()
    assert [key async for key in framing.services.store.list()] == []


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"picture": png(10, 10)}, "name"),
        ({"name": "  ", "picture": png(10, 10)}, "name"),
        ({"name": "x" * 129, "picture": png(10, 10)}, "name"),
        ({"name": "a\nb", "picture": png(10, 10)}, "name"),
        ({"name": "x"}, "picture"),
        ({"name": "x", "picture": b""}, "picture"),
        ({"name": "x", "picture": png(10, 10), "prompt": "a sea"}, "prompt"),
        ({"name": "x", "picture": png(10, 10), "colour": "red"}, "colour"),
        ({"name": "x", "picture": png(10, 10), "design": "{"}, "design"),
        ({"name": "x", "picture": png(10, 10), "design": {"placement": {"box": {"x": 1}}}}, "design.placement.box.y"),
        ({"name": "x", "picture": png(10, 10), "design": {"fit": "cover"}}, "design.fit"),
        ({"name": "x", "picture": png(10, 10), "feed_url": "ftp://example.com/"}, "feed_url"),
        ({"name": "x", "picture": png(10, 10), "feed_url": "http://127.0.0.1/feed"}, "feed_url"),
        ({"name": "x", "picture": png(10, 10), "feed_url": "http://[::1]/feed"}, "feed_url"),
        ({"name": "x", "picture": png(10, 10), "feed_url": "http://u:p@example.com/"}, "feed_url"),
        ({"name": "x", "picture": png(10, 10), "feed_url": URL, "feed": FEED}, "feed_url"),
        ({"name": "x", "picture": png(10, 10), "webhook_url": "http://10.0.0.1/"}, "webhook_url"),
        ({"name": "x", "picture": png(10, 10), "refresh_seconds": "5"}, "refresh_seconds"),
        ({"name": "x", "picture": png(10, 10), "feed_mode": "both"}, "feed_mode"),
        ({"name": "x", "picture": "not a file"}, "picture"),
        ({"name": b"a file", "picture": png(10, 10)}, "name"),
    ],
)
async def test_a_wrong_field_is_named(framing: RunningGateway, sent: dict[str, Any], field: str) -> None:
    reply = await framing.request("POST", "/api/frames", data=form(**sent))
    assert reply.status == 422
    assert reply.json["error"]["param"] == field
    assert (await framing.request("GET", "/api/frames")).json["total"] == 0


async def test_a_text_with_nul_is_refused_and_not_stored(framing: RunningGateway) -> None:
    box = {"x": 0, "y": 0, "width": 50, "height": 50}
    design = {"texts": [{"text": "a\0b", "box": box}]}
    reply = await framing.request("POST", "/api/frames", data=form(name="x", picture=png(10, 10), design=design))
    assert (reply.status, reply.json["error"]["param"]) == (422, "design")


async def test_what_is_no_picture_is_refused_with_the_inspectors_code(
    framing: RunningGateway, composer: FakeComposer
) -> None:
    for picture, code in ((b"<svg/>", "not_an_image"), (b"GIF89a" + b"\0" * 30, "unsupported_format")):
        reply = await framing.request("POST", "/api/frames", data=form(name="x", picture=picture))
        assert (reply.status, reply.code, reply.json["error"]["param"]) == (422, code, "picture")
    composer.fail_with = ComposeError(ComposeCode.TOO_MANY_PIXELS, "The picture has more than 50 megapixels.")
    reply = await framing.request("POST", "/api/frames", data=form(name="x", picture=png(10, 10)))
    assert (reply.status, reply.code) == (422, "too_many_pixels")
    assert [key async for key in framing.services.store.list()] == []


async def test_a_picture_over_20_mb_is_413_and_leaves_nothing(framing: RunningGateway) -> None:
    longest = 20 * 1024 * 1024
    picture = png(10, 10)
    fits = picture + b"\0" * (longest - len(picture))
    assert (await framing.request("POST", "/api/frames", data=form(name="x", picture=fits))).status == 201
    reply = await framing.request("POST", "/api/frames", data=form(name="x", picture=fits + b"\0"))
    assert (reply.status, reply.code, reply.json["error"]["param"]) == (413, "too_large", "picture")
    assert list(framing.settings.uploads.iterdir()) == []


async def test_only_uploads_may_be_longer_than_other_bodies(
    start_gateway: StartGateway, composer: FakeComposer
) -> None:
    gateway = await start_gateway(composer=composer, max_body_bytes=4096, feed_max_bytes=100_000)
    assert (await gateway.request("POST", "/api/frames", json={"name": "x" * 5000})).status == 413
    long = FEED + b"<!--" + b"x" * 50_000 + b"-->"
    made = await gateway.frame(feed=long)
    assert made["feed"] == {"kind": "file", "url": None, "mode": "replace"}
    too_long = FEED + b"<!--" + b"x" * 100_000 + b"-->"
    reply = await gateway.request("PATCH", f"/api/frames/{made['id']}", data=form(feed=too_long))
    assert (reply.status, reply.json["error"]["param"]) == (413, "feed")
    reply = await gateway.request("POST", "/api/generate/", data=form(prompt="x" * 5000))
    assert reply.status == 413


@pytest.mark.parametrize(
    ("feed", "code"),
    [
        (b"<!DOCTYPE feed [<!ENTITY a 'b'>]>" + FEED, "feed_doctype"),
        (FEED[:120], "feed_truncated"),
        (b"<feed></feed>", "feed_empty"),
    ],
)
async def test_an_uploaded_feed_is_looked_into_at_once(framing: RunningGateway, feed: bytes, code: str) -> None:
    reply = await framing.request("POST", "/api/frames", data=form(name="x", picture=png(10, 10), feed=feed))
    assert (reply.status, reply.code, reply.json["error"]["param"]) == (422, code, "feed")


async def test_a_refresh_interval_says_when_the_next_one_is_due(framing: RunningGateway) -> None:
    made = await framing.frame(refresh_seconds="3600", feed_url=URL)
    assert made["refresh_seconds"] == 3600
    assert made["next_refresh_at"] is not None
    reply = await framing.request("PATCH", f"/api/frames/{made['id']}", data=form(refresh_seconds=""))
    assert (reply.json["refresh_seconds"], reply.json["next_refresh_at"]) == (None, None)


async def test_frames_are_paged_and_found_by_name(framing: RunningGateway) -> None:
    for name in ("one", "100% two", "three"):
        await framing.frame(name)
    page = await framing.request("GET", "/api/frames?limit=2&offset=1")
    assert [frame["name"] for frame in page.json["frames"]] == ["100% two", "one"]
    found = await framing.request("GET", "/api/frames", params={"search": "0% T"})
    assert [frame["name"] for frame in found.json["frames"]] == ["100% two"]
    assert (await framing.request("GET", "/api/frames?limit=0")).status == 422
    assert (await framing.request("GET", "/api/frames?search=%00")).status == 422


async def test_a_frame_is_drawn_from_a_prompt(framing: RunningGateway, backend: FakeBackend) -> None:
    sent = {"name": "Sea", "prompt": "a calm sea", "generation": {"width": 256, "height": 128}}
    reply = await framing.request("POST", "/api/frames", json=sent)
    assert reply.status == 201
    assert (reply.json["picture"]["width"], reply.json["picture"]["height"]) == (256, 128)
    (row,) = await framing.rows()
    assert (row.state, row.input["prompt"]) == ("completed", "a calm sea")
    assert len(backend.submissions) == 1
    picture = await framing.request("GET", f"/api/frames/{reply.json['id']}/picture")
    images = (await framing.request("GET", f"/api/generations/{row.id}")).json["images"]
    generated = await framing.request("GET", images[0]["url"].removeprefix("http://pictures.example"))
    assert hashlib.sha256(picture.body).digest() == hashlib.sha256(generated.body).digest()
    assert list(framing.settings.uploads.iterdir()) == []


async def test_a_frame_keeps_the_picture_of_a_generation_that_is_deleted(framing: RunningGateway) -> None:
    frame = (await framing.request("POST", "/api/frames", json={"name": "Sea", "prompt": "a calm sea"})).json
    before = (await framing.request("GET", f"/api/frames/{frame['id']}/picture")).body
    generation = await framing.row()
    assert (await framing.request("DELETE", f"/api/generations/{generation.id}")).status == 204
    await framing.services.sweeper.sweep()
    assert (await framing.request("GET", f"/api/frames/{frame['id']}/picture")).body == before


async def test_a_drawing_deleted_before_its_frame_is_saved_makes_no_frame(
    framing: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = framing.services
    put_file = services.store.put_file

    async def put_and_delete(*arguments: Any, **options: Any) -> None:
        await put_file(*arguments, **options)
        assert await services.ledger.delete((await framing.row()).id)
        await services.sweeper.sweep()

    sent = {"name": "Sea", "prompt": "a calm sea"}
    headers = {"Idempotency-Key": "k"}
    with monkeypatch.context() as racing:
        racing.setattr(services.store, "put_file", put_and_delete)
        reply = await framing.request("POST", "/api/frames", json=sent, headers=headers)
    assert (reply.status, reply.code) == (410, "generation_deleted")
    reply = await framing.request("POST", "/api/frames", json=sent, headers=headers)
    assert (reply.status, reply.code) == (410, "generation_deleted"), "the key's drawing is not drawn again"
    assert (await framing.request("GET", "/api/frames")).json["total"] == 0
    assert (await framing.request("POST", "/api/frames", json=sent)).status == 201


async def test_a_failed_drawing_makes_no_frame(framing: RunningGateway, backend: FakeBackend) -> None:
    backend.fail_with = "out of memory"
    reply = await framing.request("POST", "/api/frames", data=form(name="Sea", prompt="a sea"))
    assert reply.status == 502
    assert (await framing.request("GET", "/api/frames")).json["total"] == 0
    bad = {"name": "Sea", "prompt": "a sea", "generation": {"num_images": 2}}
    reply = await framing.request("POST", "/api/frames", json=bad)
    assert (reply.status, reply.json["error"]["param"]) == (422, "generation.num_images")
    bad = {"name": "Sea", "prompt": "a sea", "generation": {"height": 7}}
    reply = await framing.request("POST", "/api/frames", json=bad)
    assert (reply.status, reply.json["error"]["param"]) == (422, "generation.height")


async def test_a_box_outside_the_frame_is_told_where_it_ends_up(framing: RunningGateway) -> None:
    design = {"placement": {"box": {"x": 190, "y": -50, "width": 400, "height": 50}}}
    made = await framing.frame(design=design)
    assert made["box"] == {"x": 0, "y": 0, "width": 200, "height": 50}
    assert made["design"]["placement"]["box"] == design["placement"]["box"]


async def test_bodies_that_are_no_form_and_no_json_are_400(framing: RunningGateway) -> None:
    for kind, data in (
        ("text/plain", b"name=x"),
        ("multipart/form-data", b"--x--"),
        ("multipart/form-data; boundary=x", b"--x\r\nnonsense"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\nhalf'),
    ):
        reply = await framing.request("POST", "/api/frames", data=data, headers={"Content-Type": kind})
        assert reply.status == 400, (kind, reply.body)
    reply = await framing.request(
        "POST", "/api/frames", data=json.dumps([1]), headers={"Content-Type": "application/json"}
    )
    assert reply.status == 422
