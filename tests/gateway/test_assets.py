from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import compositor
from compositor.compose.errors import ComposeCode, ComposeError
from tests.gateway.conftest import form
from tests.support.fake_backend import png

if TYPE_CHECKING:
    from tests.fakes_composer import FakeComposer
    from tests.gateway.conftest import Reply, RunningGateway

FONT = (Path(compositor.__file__).parent / "fonts" / "DejaVuSans.ttf").read_bytes()


async def upload(gateway: RunningGateway, **parts: Any) -> Reply:
    return await gateway.request("POST", "/api/assets", data=form(**parts))


async def test_a_font_and_a_badge_are_kept_listed_and_given_back(framing: RunningGateway) -> None:
    font = await upload(framing, kind="font", name="Body", file=FONT)
    badge = await upload(framing, kind="badge", file=png(20, 10))
    assert (font.status, font.json["name"], font.json["bytes"]) == (201, "Body", len(FONT))
    assert (badge.json["kind"], badge.json["name"]) == ("badge", "file.bin")
    listed = (await framing.request("GET", "/api/assets")).json
    assert [asset["id"] for asset in listed["assets"]] == [badge.json["id"], font.json["id"]]
    assert (await framing.request("GET", "/api/assets?kind=font")).json["assets"] == [font.json]
    file = await framing.request("GET", f"/api/assets/{font.json['id']}/file")
    assert (file.body, file.headers["Content-Type"]) == (FONT, "font/ttf")


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"kind": "font", "file": b"not a font"}, "file"),
        ({"kind": "font", "file": FONT[:5000]}, "file"),
        ({"kind": "font", "file": png(10, 10)}, "file"),
        ({"kind": "font", "file": b"wOF2" + b"\0" * 50}, "file"),
        ({"kind": "badge", "file": FONT}, "file"),
        ({"kind": "badge", "file": b""}, "file"),
        ({"kind": "badge"}, "file"),
        ({"kind": "music", "file": FONT}, "kind"),
        ({"file": FONT}, "kind"),
        ({"kind": "font", "file": FONT, "size": "1"}, "size"),
    ],
)
async def test_what_is_wrong_is_named(framing: RunningGateway, parts: dict[str, Any], field: str) -> None:
    reply = await upload(framing, **parts)
    assert (reply.status, reply.json["error"]["param"]) == (422, field)
    assert (await framing.request("GET", "/api/assets")).json["total"] == 0


async def test_a_font_whose_letters_cannot_be_drawn_is_refused(
    framing: RunningGateway, composer: FakeComposer
) -> None:
    composer.fail_with = ComposeError(ComposeCode.BAD_FONT, "A text layer's font could not be read.")
    reply = await upload(framing, kind="font", file=FONT)
    assert (reply.status, reply.code, reply.json["error"]["param"]) == (422, "bad_font", "file")
    composer.fail_with = None
    assert (await framing.request("GET", "/api/assets")).json["total"] == 0


async def test_an_asset_of_a_design_cannot_be_deleted(framing: RunningGateway) -> None:
    font = (await upload(framing, kind="font", file=FONT)).json["id"]
    badge = (await upload(framing, kind="badge", file=png(20, 10))).json["id"]
    box = {"x": 0, "y": 0, "width": 50, "height": 50}
    design = {
        "texts": [{"text": "{title}", "box": box, "font": font}],
        "badges": [{"box": box, "badges": [{"asset": badge}]}],
    }
    frame = await framing.frame(design=design)
    reply = await framing.request("DELETE", f"/api/assets/{font}")
    assert (reply.status, reply.code) == (409, "asset_in_use")
    await framing.request("PATCH", f"/api/frames/{frame['id']}", json={"design": {}})
    assert (await framing.request("DELETE", f"/api/assets/{font}")).status == 204
    assert (await framing.request("GET", f"/api/assets/{font}")).status == 404
    await framing.services.sweeper.sweep()
    assert len([key async for key in framing.services.store.list()]) == 2


async def test_a_design_names_only_its_owners_assets_of_the_right_kind(
    framing: RunningGateway, other_key: str
) -> None:
    badge = (await upload(framing, kind="badge", file=png(20, 10))).json["id"]
    box = {"x": 0, "y": 0, "width": 50, "height": 50}
    design = {"texts": [{"text": "{title}", "box": box, "font": badge}]}
    reply = await framing.request("POST", "/api/frames", data=form(name="x", picture=png(90, 90), design=design))
    assert (reply.status, reply.json["error"]["param"]) == (422, "design.texts.0.font")
    design = {"badges": [{"box": box, "badges": [{"asset": badge}]}]}
    sent = form(name="x", picture=png(90, 90), design=design)
    reply = await framing.request("POST", "/api/frames", key=other_key, data=sent)
    assert (reply.status, reply.json["error"]["param"]) == (422, "design.badges.0.badges.0.asset")
    for method in ("GET", "DELETE"):
        assert (await framing.request(method, f"/api/assets/{badge}", key=other_key)).status == 404
    assert (await framing.request("GET", f"/api/assets/{badge}/file", key=other_key)).status == 404
