from __future__ import annotations

from typing import Any

import pytest

from gateway.generationnews import PREVIEW_MAX_CHARS, previews_in, progress_in

IMAGE = "data:image/jpeg;base64,QUJD"
PREVIEW: dict[str, Any] = {"index": 0, "seq": 1, "step": 2, "steps": 4, "image": IMAGE}


def test_progress_is_told_without_what_is_added() -> None:
    said = progress_in({"progress": {"step": 1, "steps": 4, "eta_s": 2.5, "preview_seq": 3, "secret": "x"}})
    assert said is not None
    assert said.preview_seq == 3
    assert said.news.message == {"step": 1, "steps": 4, "eta_s": 2.5, "queue_position": 0}


@pytest.mark.parametrize(
    "output",
    [
        None,
        [1],
        "text",
        {},
        {"progress": None},
        {"progress": "50 %"},
        {"progress": {"step": -1}},
        {"progress": {"eta_s": float("nan")}},
    ],
)
def test_what_is_no_progress_is_none(output: object) -> None:
    assert progress_in(output) is None


def test_previews_are_found_among_other_pieces() -> None:
    pieces = [
        {"progress": {}},
        {"preview": PREVIEW},
        {"picture": {"index": 0}},
        None,
        {"preview": {**PREVIEW, "index": 1}},
    ]
    assert [news.message["index"] for news in previews_in(pieces)] == [0, 1]


@pytest.mark.parametrize(
    "changes",
    [
        {"image": "https://elsewhere.example/x.jpg"},
        {"image": "data:text/html;base64,QUJD"},
        {"image": 'data:image/jpeg;base64,"><script>'},
        {"image": "data:image/jpeg;base64," + "A" * PREVIEW_MAX_CHARS},
        {"index": 16},
        {"index": "x"},
    ],
)
def test_what_is_no_preview_is_left_out(changes: dict[str, Any]) -> None:
    assert previews_in([{"preview": {**PREVIEW, **changes}}]) == []
