from __future__ import annotations

import pytest
from pydantic import ValidationError

from compositor.design import Box, Design, TextLayer, default_box


def test_the_default_is_the_middle_of_the_frame() -> None:
    assert default_box(1080, 1080) == Box(x=216, y=216, width=648, height=648)
    assert Design().output_sizes(1080, 1920)[0].model_dump() == {"name": "original", "width": 1080, "height": 1920}


@pytest.mark.parametrize(
    ("box", "inside"),
    [
        (Box(x=-50, y=10, width=100, height=100), Box(x=0, y=10, width=100, height=100)),
        (Box(x=990, y=990, width=100, height=100), Box(x=900, y=900, width=100, height=100)),
        (Box(x=-10, y=-10, width=5000, height=30), Box(x=0, y=0, width=1000, height=30)),
    ],
)
def test_a_box_is_moved_into_the_frame(box: Box, inside: Box) -> None:
    assert box.clamped(1000, 1000) == inside


@pytest.mark.parametrize(
    "wrong",
    [
        {"placement": {"fit": "fill"}},
        {"placement": {"box": {"x": 0, "y": 0, "width": 5, "height": 100}}},
        {"texts": [{"text": "x", "box": {"x": 0, "y": 0, "width": 50, "height": 50}, "colour": "red"}]},
        {"texts": [{"text": "x", "box": {"x": 0, "y": 0, "width": 50, "height": 50}, "min_size": 60}]},
        {"sizes": [{"name": "a", "width": 100, "height": 100}, {"name": "a", "width": 200, "height": 200}]},
        {"output": {"kind": "gif"}},
        {"colour": "#000000"},
    ],
)
def test_what_is_wrong_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Design.model_validate(wrong)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1e999"])
def test_what_is_no_number_is_refused(number: str) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        Design.model_validate_json(f'{{"placement": {{"rotation": {number}}}}}')


def test_small_type_needs_no_smaller_bound_sent_with_it() -> None:
    layer = {"text": "x", "box": {"x": 0, "y": 0, "width": 50, "height": 50}, "size": 8}
    small = TextLayer.model_validate(layer)
    assert (small.size, small.min_size) == (8, 8)
    assert TextLayer.model_validate(small.model_dump()) == small
    with pytest.raises(ValidationError, match="min_size"):
        TextLayer.model_validate({**layer, "min_size": 12})


def test_it_knows_the_assets_it_names() -> None:
    font, badge = "ast_" + "0" * 26, "ast_" + "1" * 26
    box = {"x": 0, "y": 0, "width": 50, "height": 50}
    design = Design.model_validate(
        {
            "texts": [{"text": "{title}", "box": box, "font": font}],
            "badges": [{"box": box, "badges": [{"asset": badge}]}],
        }
    )
    assert design.assets == {font, badge}
    assert TextLayer.model_validate({"text": "x", "box": box}).font == "regular"


BADGE_BOX = {"x": 0, "y": 0, "width": 50, "height": 50}
BADGE = "ast_" + "1" * 26


@pytest.mark.parametrize(
    ("badges", "where", "message"),
    [
        ([{"asset": BADGE, "when": [{"field": "price", "is": 1}]}], "badges.0.badges.0.when.0.is", "Extra inputs"),
        ([{"asset": BADGE, "when": ["price < 3"]}], "badges.0.badges.0.when.0", "valid dictionary"),
        ([], "badges.0.badges", "at least one badge"),
    ],
)
def test_a_bad_badge_is_told_of_alone(badges: list[object], where: str, message: str) -> None:
    with pytest.raises(ValidationError) as raised:
        Design.model_validate({"badges": [{"box": BADGE_BOX, "badges": badges}]})
    (error,) = raised.value.errors()
    assert ".".join(map(str, error["loc"])) == where
    assert message in error["msg"]
