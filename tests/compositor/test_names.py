"""An output's name changes with everything that decides its pixels, and with nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from compositor.design import Design, OutputSize
from compositor.names import OutputNamer, output_key, source_key, used_fields
from compositor.snapshot import AssetRef, Snapshot
from models.store import check_key

TEXT = {"text": "{title} {g:discount}", "box": {"x": 0, "y": 0, "width": 50, "height": 50}}
BADGE = {
    "box": {"x": 0, "y": 0, "width": 50, "height": 50},
    "badges": [
        {
            "asset": "ast_" + "0" * 26,
            "when": [{"field": "availability", "operator": "=", "value": "{Colour}"}],
        }
    ],
}
SIZE = OutputSize(name="square", width=100, height=100)
FIELDS = {"title": "Shoe", "price": "10", "sale_price": "5", "brand": "X"}


def snapshot(**values: Any) -> Snapshot:
    base: dict[str, Any] = {
        "picture_key": "k",
        "picture_sha256": "0" * 64,
        "width": 100,
        "height": 100,
        "transparent": True,
        "secret": "s",
        "design": Design.model_validate({"texts": [TEXT]}),
        "assets": {},
        "feed_mode": "replace",
    }
    return Snapshot(**{**base, **values})


def test_the_fields_that_a_design_looks_at() -> None:
    design = Design.model_validate({"texts": [TEXT], "badges": [BADGE]})
    assert used_fields(design) == {"title", "discount", "price", "sale_price", "availability", "colour"}
    assert used_fields(Design()) == frozenset()


@pytest.mark.parametrize(
    "change",
    [
        {"picture_sha256": "1" * 64},
        {"secret": "t"},
        {"transparent": False},
        {"design": Design()},
        {"assets": {"ast_x": AssetRef(key="a", sha256="2" * 64, kind="font")}},
    ],
)
def test_another_frame_gives_other_names(change: dict[str, Any]) -> None:
    assert OutputNamer(snapshot(**change)).name("a", FIELDS, SIZE) != OutputNamer(snapshot()).name("a", FIELDS, SIZE)


def test_what_changes_the_pixels_changes_the_name_and_nothing_else_does() -> None:
    namer = OutputNamer(snapshot())
    name = namer.name("a", FIELDS, SIZE)
    assert namer.name("b", FIELDS, SIZE) != name
    assert namer.name("a", {**FIELDS, "sale_price": "4"}, SIZE) != name
    assert namer.name("a", FIELDS, OutputSize(name="square", width=100, height=101)) != name
    assert namer.name("a", {**FIELDS, "brand": "Y"}, SIZE) == name, "no text names the brand"
    assert namer.name("a", FIELDS, OutputSize(name="other", width=100, height=100)) == name
    assert OutputNamer(snapshot(feed_mode="additional", picture_key="moved")).name("a", FIELDS, SIZE) == name


def test_keys_are_keys() -> None:
    check_key(output_key("a" * 64, "jpg"))
    check_key(source_key("usr_00000000000000000000000001", "b" * 64))
