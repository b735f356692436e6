from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from inference.engine.emphasis import parse
from inference.styles import BUNDLED, MAX_FILE_BYTES, Styles, StylesFileError, UnknownStyleError

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "prompts.md"


def write(home: Path, name: str, content: object) -> Path:
    file = home / name
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


def test_bundled_styles_lie_around_the_prompt() -> None:
    styles = Styles()
    assert len(styles.names()) >= 12
    assert {"photographic", "cinematic", "line-art", "watercolour", "isometric", "pixel-art"} <= set(styles.names())
    for name in styles.names():
        prompt, negative = styles.apply([name], "a teapot", "blurry")
        assert "a teapot" in prompt
        assert len(prompt) > len("a teapot")
        assert negative.startswith("blurry, ")
        assert "{" not in prompt + negative


def test_bundled_styles_use_no_syntax() -> None:
    # they serve requests of either syntax
    for style in json.loads(BUNDLED.read_text()).values():
        for text in style.values():
            (span,), *others = parse(text).sections
            assert (span.text, span.weight, others, parse(text).notes) == (text, 1.0, [], ())


def test_without_names_nothing_changes() -> None:
    assert Styles().apply([], " a cat, ", ",x") == (" a cat, ", ",x")


def test_several_styles_are_applied_one_after_another(tmp_path: Path) -> None:
    write(tmp_path, "styles.json", {"one": {"prompt": "1 {prompt} 1"}, "two": {"prompt": "2 {prompt} 2"}})
    assert Styles(tmp_path).apply(["one", "two"], "x", "n,") == ("2 1 x 1 2", "n,")


@pytest.mark.parametrize(
    ("template", "text", "made"),
    [
        ("{prompt}, oil", "a cat", "a cat, oil"),
        ("oil", "a cat", "a cat, oil"),
        ("oil", "", "oil"),
        ("{prompt}, oil", "", "oil"),
        ("oil, {prompt}", "  ", "oil"),
        ("oil, {prompt}, 4k", "", "oil, 4k"),
        ("a {prompt}, {prompt}", "cat", "a cat, cat"),
        ("oil {prompt}", "the word {prompt}", "oil the word {prompt}"),
    ],
)
def test_where_the_text_goes(tmp_path: Path, template: str, text: str, made: str) -> None:
    write(tmp_path, "styles.json", {"s": {"prompt": template, "negative_prompt": template}})
    assert Styles(tmp_path).apply(["s"], text, text) == (made, made)


def test_names_are_found_whatever_their_capitals() -> None:
    styles = Styles()
    assert styles.apply([" CineMatic "], "x", "") == styles.apply(["cinematic"], "x", "")


def test_an_unknown_name_is_answered_with_those_that_exist() -> None:
    styles = Styles()
    with pytest.raises(UnknownStyleError) as caught:
        styles.apply(["cinematic", "watercolor"], "x", "")
    problem = caught.value
    assert (problem.name, problem.known) == ("watercolor", styles.names())
    assert "did you mean watercolour?" in problem.message
    assert "there are 3d-render, anime" in problem.message
    assert (problem.status, problem.details[0].field) == (422, "style")


def test_an_unknown_name_gets_a_bounded_answer(tmp_path: Path) -> None:
    write(tmp_path, "styles.json", {f"own-{number}": {"prompt": "x"} for number in range(3000)})
    with pytest.raises(UnknownStyleError, match=r"and \d{4} more") as caught:
        Styles(tmp_path).apply(["z" * 100_000], "x", "")
    assert len(caught.value.message) < 2000


def test_the_operators_own_win(tmp_path: Path) -> None:
    write(tmp_path, "styles.json", {"Cinematic": {"prompt": "mine {prompt}"}, "both": {"prompt": "json {prompt}"}})
    write(tmp_path, "styles.csv", "name,prompt,negative_prompt\nboth,csv {prompt},\nanime,csv {prompt},bad\n")
    styles = Styles(tmp_path)
    assert styles.apply(["cinematic"], "x", "") == ("mine x", "")
    assert styles.apply(["both"], "x", "") == ("json x", "")
    assert styles.apply(["anime"], "x", "") == ("csv x", "bad")
    assert "Cinematic" in styles.names()
    assert "cinematic" not in styles.names()


def test_a1111s_file_is_read(tmp_path: Path) -> None:
    content = (
        '\ufeffname,prompt,negative_prompt\n-- people --,,\n,,\nquoted, "a, b ""c"", {prompt}",\n'
        'lines,"one\ntwo",no\nshort,only prompt\n'
    )
    write(tmp_path, "styles.csv", content)
    styles = Styles(tmp_path)
    assert styles.apply(["quoted"], "x", "y") == ('a, b "c", x', "y")
    assert styles.apply(["lines"], "x", "y") == ("x, one\ntwo", "y, no")
    assert styles.apply(["short"], "x", "y") == ("x, only prompt", "y")
    assert styles.apply(["-- people --"], "x", "y") == ("x", "y")


def test_a1111s_old_file_is_read(tmp_path: Path) -> None:
    write(tmp_path, "styles.csv", "name,text\nold,by hand\n")
    assert Styles(tmp_path).apply(["old"], "x", "") == ("x, by hand", "")


@pytest.mark.parametrize(
    ("name", "content", "wrong"),
    [
        ("styles.json", "{", r"styles.json: not JSON: .*line 1"),
        ("styles.json", "9" * 5000, r"styles.json: not JSON"),
        ("styles.json", "[" * 100_000, r"styles.json: nested too deeply"),
        ("styles.json", "[]", r"styles.json: must be an object"),
        ("styles.json", {"a": "text"}, r"styles.json: 'a' must be an object"),
        ("styles.json", {"a": {"prompt": 3}}, r"styles.json: 'a': prompt must be text"),
        ("styles.json", {"a": {"prompt": "x", "negative_prompt": ["y"]}}, r"'a': negative_prompt must be text"),
        ("styles.json", {"a": {"promt": "x"}}, r"'a' has the unknown field 'promt'; there are prompt, negative"),
        ("styles.json", {"a": {}}, r"'a' has neither prompt nor negative_prompt"),
        ("styles.json", {"a": {"prompt": "x" * 4001}}, r"'a': prompt is longer than 4000 characters"),
        ("styles.json", {" ": {"prompt": "x"}}, r"' ': a name has 1 to 100 printable characters"),
        ("styles.json", '{"a": {"prompt": "x"}, "a": {"prompt": "y"}}', r"styles.json: 'a' stands there twice"),
        ("styles.json", " " * (MAX_FILE_BYTES + 1), r"styles.json: larger than 4 MB"),
        ("styles.csv", "", r"styles.csv: line 1 must be name,prompt"),
        ("styles.csv", "prompt,negative_prompt\na,b\n", r"styles.csv: line 1 must be name,prompt"),
        ("styles.csv", "name,prompt\na,b,c\n", r"styles.csv: line 2 has more fields than line 1"),
        ("styles.csv", f"name,prompt\nok,ok\na,{'x' * 4001}\n", r"styles.csv: line 3 is longer"),
        ("styles.csv", f"name,prompt\na,{'x' * 200_000}\n", r"styles.csv: after line 1: field larger"),
        ("styles.csv", f"name,prompt\n{'a' * 101},x\n", r"styles.csv: line 2: a name has"),
    ],
)
def test_a_wrong_file_is_named_with_the_entry(tmp_path: Path, name: str, content: object, wrong: str) -> None:
    write(tmp_path, name, content)
    with pytest.raises(StylesFileError, match=wrong):
        Styles(tmp_path)


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "styles.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StylesFileError, match=r"styles.json: not UTF-8"):
        Styles(tmp_path)
    (tmp_path / "styles.json").unlink()
    (tmp_path / "styles.csv").mkdir()
    with pytest.raises(StylesFileError, match=r"styles.csv: Is a directory"):
        Styles(tmp_path)


def touch(file: Path, second: int) -> None:
    # a time of its own, so that the test does not depend on the clock's grain
    os.utime(file, (second, second))


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    styles = Styles(tmp_path)
    before = styles.names()
    file = write(tmp_path, "styles.json", {"mine": {"prompt": "a {prompt}"}})
    assert styles.apply(["mine"], "x", "") == ("a x", "")
    write(tmp_path, "styles.json", {"mine": {"prompt": "b {prompt}"}})
    touch(file, 1000)
    assert styles.apply(["mine"], "x", "") == ("b x", "")
    file.unlink()
    assert styles.names() == before


def test_a_file_that_is_being_edited_keeps_the_server_going(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write(tmp_path, "styles.json", {"mine": {"prompt": "a {prompt}"}})
    styles = Styles(tmp_path)
    file.write_text('{"mine": ')
    touch(file, 1000)
    with caplog.at_level(logging.ERROR):
        assert styles.apply(["mine"], "x", "") == ("a x", "")
        assert styles.apply(["mine"], "x", "") == ("a x", "")
    assert len(caplog.records) == 1, "told once for each change"
    write(tmp_path, "styles.json", {"mine": {"prompt": "c {prompt}"}})
    touch(file, 2000)
    assert styles.apply(["mine"], "x", "") == ("c x", "")


def test_the_documentation_lists_the_bundled_styles_and_its_example_holds() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    listed = text.partition("Bundled are ")[2].partition(".")[0].replace("\n", " ").replace(" and ", ", ")
    styles = Styles()
    assert sorted(listed.split(", "), key=str.casefold) == list(styles.names())
    assert "\n".join(styles.apply(["watercolour"], "a teapot", "text")) in text
