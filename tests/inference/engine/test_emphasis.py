from __future__ import annotations

import math
import re
import time
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inference.engine.emphasis import MAX_NOTES, MAX_WEIGHT, MIN_WEIGHT, Parsed, Span, parse, plain

SYNTAX = "\\()[]<>:|"
words = st.text(st.characters(exclude_characters=SYNTAX, codec="utf-8"), min_size=1).filter(
    lambda text: not re.search(r"\b(?:BREAK|AND)\b", text)
)
# written with brackets, backslashes and the rest, none of it meant as syntax
awkward = st.text(alphabet="ab ,\\()[]1.:", min_size=1, max_size=20)
written_weights = st.decimals(min_value="0.1", max_value="2", places=2).map(str)
# every character that means something, often
noise = st.text(alphabet="ab \\()[]<>:|.,0123+-", max_size=60) | st.lists(
    st.sampled_from(["(", ")", "[", "]", ":", "|", "\\", "BREAK", " AND ", "<lora:a:1>", ":1.2)", ":0.5]", "a", "1"])
).map("".join)


def escaped(text: str) -> str:
    return re.sub(r"([\\()\[\]])", r"\\\1", text)


def spans(text: str) -> list[tuple[str, float]]:
    (section,) = parse(text).sections
    return [(span.text, round(span.weight, 4)) for span in section]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", [("a cat", 1)]),
        ("a (red) cat", [("a ", 1), ("red", 1.1), (" cat", 1)]),
        ("a ((red)) cat", [("a ", 1), ("red", 1.21), (" cat", 1)]),
        ("(red:1.3)", [("red", 1.3)]),
        ("(red : 1.3 )", [("red ", 1.3)]),
        ("(red:+.5)", [("red", 0.5)]),
        ("(red:1.)", [("red", 1)]),
        ("[red]", [("red", 0.9091)]),
        ("[[red]]", [("red", 0.8264)]),
        ("([red])", [("red", 1)]),
        ("((red:1.5) cat:1.2)", [("red", 1.8), (" cat", 1.2)]),
        # A1111's own example
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                *[("a ", 1), ("house", 1.573), (" ", 1.1), ("on", 1), (" a ", 1.1), ("hill", 0.55)],
                *[(", sun, ", 1.1), ("sky", 1.4641), (".", 1.1)],
            ],
        ),
        ("(unnecessary)(brackets)", [("unnecessarybrackets", 1.1)]),
        # escapes
        (r"\(literal\]", [("(literal]", 1)]),
        (r"a \(b\) (c\))", [("a (b) ", 1), ("c)", 1.1)]),
        (r"\\(a)", [("\\", 1), ("a", 1.1)]),
        (r"lone \backslash", [("lone backslash", 1)]),
        # unbalanced
        ("(open", [("open", 1.1)]),
        ("a (b (c) d", [("a ", 1), ("b ", 1.1), ("c", 1.21), (" d", 1.1)]),
        ("a [b", [("a ", 1), ("b", 0.9091)]),
        ("closed) twice]", [("closed) twice]", 1)]),
        ("closed:1.2)", [("closed:1.2)", 1)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", 0.9091)]),
        # no weight, though it looks like one
        ("(a:b)", [("a:b", 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("at 12:30", [("at 12:30", 1)]),
        ("a|b", [("a|b", 1)]),
        ("", [("", 1)]),
        ("()", [("", 1)]),
        ("(:1.3)", [("", 1)]),
    ],
)
def test_what_weighs_how_much(text: str, expected: list[tuple[str, float]]) -> None:
    assert spans(text) == expected
    assert parse(text).notes == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a BREAK b", [[("a ", 1)], [(" b", 1)]]),
        ("a (b BREAK c:1.2) d", [[("a ", 1), ("b ", 1.2)], [(" c", 1.2), (" d", 1)]]),
        ("BREAK a", [[("", 1)], [(" a", 1)]]),
        ("BREAKFAST, A BREAKER", [[("BREAKFAST, A BREAKER", 1)]]),
        ("a break", [[("a break", 1)]]),
    ],
)
def test_break_begins_a_section(text: str, expected: list[list[tuple[str, float]]]) -> None:
    assert [[(span.text, span.weight) for span in section] for section in parse(text).sections] == expected


@pytest.mark.parametrize(
    ("text", "weight", "note"),
    [
        ("(cat:12)", MAX_WEIGHT, "the weight 12 of `cat` was bounded to 5"),
        ("(cat:-1)", MIN_WEIGHT, "the weight -1 of `cat` was bounded to 0"),
        ("((cat:3):3)", MAX_WEIGHT, "the weight 9 of `cat` was bounded to 5"),
        ("(" * 40 + "cat", MAX_WEIGHT, "the weight 45.26 of `cat` was bounded to 5"),
    ],
)
def test_absurd_weights_are_bounded_and_said(text: str, weight: float, note: str) -> None:
    assert parse(text) == Parsed(((Span("cat", weight),),), (note,))


def test_only_the_product_is_bounded() -> None:
    assert spans("((cat:10):0.1)") == [("cat", 1)]
    assert spans("(" * 201 + "cat" + ":0)" + ":999999999999999999)" * 200) == [("cat", 0)]


@pytest.mark.parametrize(
    ("text", "read", "note"),
    [
        (
            "a [red:blue:0.5] cat",
            "a red cat",
            "`[red:blue:0.5]` is not edited from step to step here; `red` was read",
        ),
        ("a [red::0.5] cat", "a red cat", "`[red::0.5]` is not edited"),
        ("a [red:8] cat", "a red cat", "`red` was read throughout; a weight is written `(red:8)`"),
        ("a [:red:8]", "a red", "`[:red:8]` is not edited"),
        ("a [::8]", "a ", "nothing of it was read throughout"),
        ("a [red|blue|green] cat", "a red cat", "`[red|blue|green]` does not alternate here; `red` was read"),
        ("[|red]", "red", "does not alternate"),
        ("red AND blue", "red, blue", "`AND` does not combine prompts here"),
        ("red :1.2 AND blue:0.5 AND ", "red, blue", "`AND` does not combine"),
        ("cat <lora:x:0.8>", "cat ", "`<lora:x:0.8>` is not read from the prompt; send it as `loras`"),
        ("cat <lyco:x>", "cat ", "`<lyco:x>` is not read from the prompt; send it as `loras`"),
        ("cat <hypernet:x:1>", "cat ", "`<hypernet:x:1>` is not supported and was left out"),
    ],
)
def test_what_is_not_done_is_read_sensibly_and_said(text: str, read: str, note: str) -> None:
    parsed = parse(text)
    assert parsed.sections == ((Span(read),),)
    assert len(parsed.notes) == 1
    assert note in parsed.notes[0]


def test_edits_hold_weights_and_each_other() -> None:
    assert spans("[(red:1.3)|blue]") == [("red", 1.3)]
    assert spans("([red:blue:3]:1.3)") == [("red", 1.3)]
    assert spans("[[red|blue]:green:0.5]") == [("red", 1)]
    assert spans("[a [b|c]:d:3]") == [("a b", 1)]
    assert spans("[(a:1.2) b:c:.5]") == [("a", 1.2), (" b", 1)]


@pytest.mark.parametrize("text", ["[a:b:c:0.5]", "[a:b]", r"[a\|b]", "[a (|) b]", "[(a|b)]", "[a]|[b]", "|]"])
def test_what_is_no_edit_is_none(text: str) -> None:
    assert parse(text).notes == ()


def test_notes_are_few_and_short() -> None:
    notes = parse("".join(f"<lora:{'x' * 500}{number}:1>[a|b{number}]" for number in range(50))).notes
    assert len(notes) == MAX_NOTES + 1
    assert notes[-1] == "and 43 more places like these"
    assert max(map(len, notes)) < 150
    assert len(parse("[a|b] " * 50).notes) == 1


@settings(deadline=None)
@given(st.text() | noise)
@example("[" * 3000 + "|]" * 3000)
@example("((a:9)" * 2000)
def test_nothing_makes_it_fail(text: str) -> None:
    parsed = parse(text)
    assert parsed.sections
    for section in parsed.sections:
        assert section
        assert all(MIN_WEIGHT <= span.weight <= MAX_WEIGHT for span in section)
        assert all(math.isfinite(span.weight) for span in section)
        weights = [span.weight for span in section]
        assert all(one != other for one, other in pairwise(weights))


@settings(deadline=None)
@given(noise)
def test_no_character_is_invented(text: str) -> None:
    read = "".join(span.text for section in parse(text).sections for span in section)
    # the joint of AND is the one thing put in
    assert set(read) <= set(text) | set(", ")
    assert len(read) <= len(text)


@settings(deadline=None)
@given(words)
def test_text_without_syntax_stays_as_it_is(text: str) -> None:
    assert parse(text) == Parsed(((Span(text),),))


@settings(deadline=None)
@given(st.text())
def test_plain_text_stays_as_it_is_whatever_it_holds(text: str) -> None:
    assert plain(text) == Parsed(((Span(text),),))


@settings(deadline=None)
@given(words, st.lists(written_weights, min_size=1, max_size=4))
def test_weights_multiply(text: str, weights: list[str]) -> None:
    product = math.prod(map(float, weights))
    written = "(" * len(weights) + text + "".join(f":{weight})" for weight in weights)
    ((span,),) = parse(written).sections
    assert span.text == text
    assert span.weight == pytest.approx(min(product, MAX_WEIGHT))


@settings(deadline=None)
@given(words, st.integers(0, 12), st.integers(0, 12))
def test_brackets_multiply(text: str, up: int, down: int) -> None:
    ((span,),) = parse("(" * up + "[" * down + text + "]" * down + ")" * up).sections
    assert span.text == text
    assert span.weight == pytest.approx(1.1 ** (up - down))


@settings(deadline=None)
@given(st.lists(st.tuples(awkward, written_weights), min_size=1, max_size=6))
def test_what_is_written_escaped_is_read_back(parts: list[tuple[str, str]]) -> None:
    written = "".join(f"({escaped(text)}:{weight})" for text, weight in parts)
    expected: list[tuple[str, float]] = []
    for text, weight in parts:
        if expected and expected[-1][1] == float(weight):
            expected[-1] = (expected[-1][0] + text, float(weight))
        else:
            expected.append((text, float(weight)))
    (section,) = parse(written).sections
    assert [(span.text, span.weight) for span in section] == expected


@pytest.mark.parametrize("text", ["(", "[a|", "[:", "\\", "<a", "AND ", "BREAK ", "(a:", "[)", ":1)", " "])
def test_a_hostile_text_costs_little(text: str) -> None:
    long = (text * 20_000)[:20_000]
    begun = time.process_time()
    parse(long)
    # ten times what it takes, in processor time; a pass over the text for each character takes longer
    assert time.process_time() - begun < 3
