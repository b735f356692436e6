from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from compositor.compose import wrap


def letters(text: str) -> float:
    """Every letter is one wide."""
    return len(text)


def test_words_fill_lines() -> None:
    assert wrap.wrap("the quick brown fox", 9, letters) == ["the quick", "brown fox"]


def test_line_breaks_stay() -> None:
    assert wrap.wrap("Now\nonly 5 EUR", 6, letters) == ["Now", "only 5", "EUR"]
    assert wrap.wrap("\n a\r\n\n b\n", 6, letters) == ["a", "", "b"]
    assert wrap.wrap(" \n ", 6, letters) == []


def test_a_long_word_is_broken() -> None:
    assert wrap.wrap("ab incomprehensible", 6, letters) == ["ab", "incomp", "rehens", "ible"]


def test_ideographs_break_anywhere_but_before_a_stop() -> None:
    assert wrap.wrap("保温瓶子。", 2, letters) == ["保温", "瓶", "子。"]


def test_marks_stay_with_their_letters() -> None:
    assert wrap.clusters("e\u0301a👩\u200d🔬") == ["e\u0301", "a", "👩\u200d🔬"]


def test_direction_is_that_of_the_first_letter() -> None:
    assert wrap.direction("12 שלום hello") == "rtl"
    assert wrap.direction("12 hello שלום") == "ltr"
    assert wrap.direction("مرحبا") == "rtl"
    assert wrap.direction("123") == "ltr"


def test_an_ellipsis_takes_its_place() -> None:
    assert wrap.shortened("abcdef", 4, letters) == "abc…"
    assert wrap.shortened("ab, cdef", 5, letters) == "ab…"
    assert wrap.shortened("abc", 0, letters) == "…"


@given(st.text(alphabet="ab c-é保温ש\n", max_size=60), st.integers(1, 12))
def test_nothing_is_lost_and_no_line_is_too_long(text: str, width: int) -> None:
    lines = wrap.wrap(text, width, letters)
    assert "".join(lines).replace(" ", "") == "".join(text.split())
    assert all(len(line) <= width for line in lines)
