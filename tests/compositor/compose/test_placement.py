from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compositor.compose.placement import View, box_of, fit
from compositor.design import Anchor, Fit, OutputSize

sides = st.integers(1, 5000)


def test_contain_keeps_the_shape_in_the_middle() -> None:
    fitted = fit((400, 200), (100, 100), Fit.CONTAIN, Anchor.CENTER)
    assert (fitted.x, fitted.y, fitted.width, fitted.height) == (0, 25, 100, 50)
    assert fitted.window == (0, 0, 400, 200)


@pytest.mark.parametrize(
    ("anchor", "corner"),
    [(Anchor.TOP, (0, 0)), (Anchor.BOTTOM, (0, 50)), (Anchor.BOTTOM_RIGHT, (0, 50)), (Anchor.LEFT, (0, 25))],
)
def test_contain_keeps_to_its_anchor(anchor: Anchor, corner: tuple[int, int]) -> None:
    fitted = fit((400, 200), (100, 100), Fit.CONTAIN, anchor)
    assert (fitted.x, fitted.y) == corner


@pytest.mark.parametrize(
    ("anchor", "window"),
    [
        (Anchor.CENTER, (100, 0, 300, 200)),
        (Anchor.LEFT, (0, 0, 200, 200)),
        (Anchor.TOP_RIGHT, (200, 0, 400, 200)),
    ],
)
def test_cover_sees_the_anchored_part(anchor: Anchor, window: tuple[float, ...]) -> None:
    fitted = fit((400, 200), (100, 100), Fit.COVER, anchor)
    assert (fitted.x, fitted.y, fitted.width, fitted.height) == (0, 0, 100, 100)
    assert fitted.window == window


def test_stretch_fills_with_everything() -> None:
    fitted = fit((400, 200), (30, 70), Fit.STRETCH, Anchor.LEFT)
    assert (fitted.width, fitted.height, fitted.window) == (30, 70, (0, 0, 400, 200))


@given(st.tuples(sides, sides), st.tuples(sides, sides), st.sampled_from(Fit), st.sampled_from(Anchor))
def test_a_picture_stays_in_its_box(picture: tuple[int, int], box: tuple[int, int], how: Fit, anchor: Anchor) -> None:
    fitted = fit(picture, box, how, anchor)
    assert fitted.width >= 1
    assert fitted.height >= 1
    assert 0 <= fitted.x <= fitted.x + fitted.width <= box[0]
    assert 0 <= fitted.y <= fitted.y + fitted.height <= box[1]
    left, top, right, bottom = fitted.window
    assert -1e-6 <= left < right <= picture[0] + 1e-6
    assert -1e-6 <= top < bottom <= picture[1] + 1e-6


def test_a_view_covers_from_the_middle() -> None:
    view = View.of((1000, 1000), OutputSize(name="story", width=500, height=1000))
    assert view.scale == 1
    assert view.window() == (250, 0, 750, 1000)
    assert view.length(12) == 12


def test_a_box_moves_with_the_frame_and_into_sight() -> None:
    view = View.of((1000, 1000), OutputSize(name="story", width=500, height=1000))
    inside = view.whole(box_of(300, 100, 200, 200))
    assert (inside.x, inside.y, inside.width, inside.height) == (50, 100, 200, 200)
    outside = view.whole(box_of(800, 0, 200, 100))
    assert (outside.x, outside.width) == (300, 200)
    wider = view.whole(box_of(100, 0, 800, 100))
    assert (wider.x, wider.width) == (0, 500)


def test_a_hole_is_cut_where_the_output_ends() -> None:
    view = View.of((1000, 1000), OutputSize(name="story", width=500, height=1000))
    cut = view.seen(box_of(600, 0, 400, 100))
    assert (cut.x, cut.width) == (350, 150)
    gone = view.seen(box_of(900, 0, 100, 100))
    assert (gone.x, gone.width) == (400, 100)
