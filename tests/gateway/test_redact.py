from __future__ import annotations

import pytest

from gateway.redact import redact, redact_text

OURS = "igen_" + "a2" * 6 + "_" + "Zz9" * 14 + "x"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a red lamp on a table", "a red lamp on a table"),
        (f"my key is {OURS}.", "my key is <secret>."),
        ("Authorization: Bearer abc.def", "Authorization: <secret>"),
        ("rpa_ABCDEFGHIJKLMNOPQRSTUVWX", "<secret>"),
        ("postgresql://igen:hunter2@db/igen", "postgresql://<secret>@db/igen"),
        ("see data:image/png;base64,AAAA== there", "see <data uri, 28 characters> there"),
        ("A" * 200, "<200 characters of base64>"),
        ("/media/generated/0123456789abcdefghjkmnpqrs.png", "/media/generated/012345<...>.png"),
        ("a\0b\ud800c", "a\ufffdb\ufffdc"),
    ],
)
def test_texts(text: str, kept: str) -> None:
    assert redact_text(text) == kept


def test_a_long_prompt_stays_and_what_is_longer_is_cut() -> None:
    prompt = "word " * 200
    assert redact_text(prompt) == prompt
    assert redact_text("word " * 1000).endswith("<3000 more characters>")


@pytest.mark.parametrize(
    "name", ["password", "api_key", "apiKey", "Authorization", "accessSecret", "token", "webhook"]
)
def test_a_value_is_hidden_by_its_name(name: str) -> None:
    assert redact({name: "hunter2", "prompt": "x"}) == {name: "<secret>", "prompt": "x"}


@pytest.mark.parametrize("name", ["prompt", "negative_prompt", "seed", "guidance_scale", "image_url", "keyframe"])
def test_ordinary_names_are_not(name: str) -> None:
    assert redact({name: "x"}) == {name: "x"}


def test_documents_are_bounded_in_every_direction() -> None:
    deep: list[object] = []
    for _ in range(1000):
        deep = [deep]
    wide = {f"n{number}": number for number in range(1000)}
    assert redact([list(range(1000)), wide, deep]) == [
        [*range(20), "<980 more>"],
        {**{f"n{number}": number for number in range(50)}, "...": "<950 more names>"},
        [[[["<1 items>"]]]],
    ]


def test_numbers_that_json_lacks_become_words() -> None:
    assert redact([float("nan"), float("inf"), 1.5, None, True]) == ["nan", "inf", 1.5, None, True]
