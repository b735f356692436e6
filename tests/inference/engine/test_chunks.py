from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from inference.engine.chunks import LOOK_BACK, Token, pack

tokens = st.builds(
    Token,
    id=st.integers(0, 100),
    weight=st.sampled_from([1.0, 1.3]),
    span=st.integers(0, 3),
    is_comma=st.booleans(),
    ends_word=st.booleans(),
)


def words(count: int, *commas: int) -> list[Token]:
    return [Token(number, is_comma=number in commas) for number in range(count)]


def lengths(section: list[Token], room: int = 75, most: int = 8) -> list[int]:
    chunks, _ = pack([section], room, most)
    return [len(chunk) for chunk in chunks]


def test_what_fits_is_one_chunk() -> None:
    assert pack([], 75, 8) == (((),), 0)
    assert pack([[], []], 75, 8) == (((),), 0)
    assert lengths(words(75)) == [75]
    assert lengths(words(76)) == [75, 1]
    assert lengths(words(75, 60)) == [75]


def test_it_is_cut_after_the_last_comma_nearby() -> None:
    assert lengths(words(80, 60, 65)) == [66, 14]
    assert lengths(words(80, 74)) == [75, 5]
    assert lengths(words(80, 55)) == [56, 24]
    assert lengths(words(80, 54)) == [75, 5], "too far back, as in A1111"
    assert lengths(words(80, 60, 75)) == [75, 5], "the next token is a comma, as in A1111"


def test_a_weighted_stretch_stays_whole() -> None:
    section = [*words(70), *[Token(1, 1.3, 1)] * 10]
    assert lengths(section) == [70, 10]
    section = [*words(50), *[Token(1, 1.3, 1)] * 30]
    assert lengths(section) == [75, 5], "longer than is looked back"
    section = [*words(70), *[Token(1, 1.3, 1)] * 2, Token(9, 1.3, 1, is_comma=True), *[Token(1, 1.3, 1)] * 10]
    assert lengths(section) == [73, 10], "a comma in it is the better place"


def test_a_word_stays_whole() -> None:
    section = [*words(73), *[Token(1, ends_word=False)] * 4, Token(1)]
    assert lengths(section) == [73, 5]
    assert lengths([Token(1, ends_word=False)] * 100) == [75, 25], "one word of a hundred tokens"


def test_sections_begin_chunks_and_empty_ones_make_none() -> None:
    chunks, left = pack([words(3), [], words(80), words(2)], 75, 8)
    assert ([len(chunk) for chunk in chunks], left) == ([3, 75, 5, 2], 0)


def test_what_does_not_fit_is_counted() -> None:
    assert pack([words(3), words(160)], 75, 2)[1] == 85
    assert lengths(words(1000), most=8) == [75] * 8
    assert pack([words(1000)], 75, 8)[1] == 400


@settings(deadline=None)
@given(st.lists(st.lists(tokens, max_size=80), max_size=4), st.integers(1, 30))
def test_no_token_is_lost_or_moved(sections: list[list[Token]], room: int) -> None:
    chunks, left = pack(sections, room, 10_000)
    assert left == 0
    assert [token for chunk in chunks for token in chunk] == [token for section in sections for token in section]
    assert all(len(chunk) <= room for chunk in chunks)
    assert all(chunks) or chunks == ((),)


@settings(deadline=None)
@given(st.lists(tokens, min_size=76, max_size=200))
def test_chunks_are_nearly_full(section: list[Token]) -> None:
    for chunk in pack([section], 75, 100)[0][:-1]:
        assert len(chunk) > 75 - LOOK_BACK
