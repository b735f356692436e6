"""Prompt styles: named templates that are laid around a caller's prompt and negative prompt.

Bundled ones, and an operator's own from `$IGEN_HOME/styles.json` (the same shape) and `$IGEN_HOME/styles.csv`
(A1111's shape). The operator's win over bundled ones of the same name, `styles.json` over `styles.csv`.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from models.errors import FieldProblem, InvalidInputError
from models.settings import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

log = logging.getLogger(__name__)

BUNDLED: Final = Path(__file__).with_name("styles") / "default.json"
PLACE: Final = "{prompt}"
MAX_FILE_BYTES: Final = 4 * 2**20
MAX_NAME_CHARS: Final = 100
MAX_TEXT_CHARS: Final = 4000
MAX_LISTED: Final = 50


class StylesFileError(SettingsError):
    """A file of styles cannot be read; the message names the file and the entry."""


class UnknownStyleError(InvalidInputError):
    """A request names a style that is not there; `known` are those that are."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        """Name the nearest ones and list the others."""
        self.name, self.known = name, tuple(known)
        near = _near(name, known)
        guess = f"; did you mean {' or '.join(near)}?" if near else ";"
        listed = ", ".join(known[:MAX_LISTED]) + (
            f" and {more} more" if (more := len(known) - MAX_LISTED) > 0 else ""
        )
        self.reason = f"'{name[:MAX_NAME_CHARS]}' is not a style{guess} there are {listed or 'none'}"
        super().__init__(self.reason, details=[FieldProblem("style", self.reason)])


@dataclass(frozen=True, slots=True)
class Style:
    """Two templates. `{prompt}` in one is where the caller's text goes; without it the template goes behind."""

    prompt: str = ""
    negative_prompt: str = ""


class Styles:
    """The styles as the files have them now; a file that changed is read again at the next call."""

    def __init__(self, home: Path | None = None) -> None:
        """Read all files; `home` is `$IGEN_HOME`, which need not have any.

        Raises:
            StylesFileError: naming the file, the entry and what is wrong with it.

        """
        own = (home / "styles.csv", home / "styles.json") if home else ()
        self._files = (BUNDLED, *own)
        self._seen = self._look()
        self._styles = _read_all(self._files)

    def names(self) -> tuple[str, ...]:
        """All names, in order of the alphabet."""
        return tuple(sorted(self._current(), key=str.casefold))

    def apply(self, names: Sequence[str], prompt: str, negative_prompt: str) -> tuple[str, str]:
        """Lay the named styles around both texts, one after another; capital letters in names do not matter.

        Raises:
            UnknownStyleError: one of the names is not there; nothing was applied.

        """
        styles = self._current()
        by_name = {name.casefold(): style for name, style in styles.items()}
        for name in names:
            style = by_name.get(name.strip().casefold())
            if style is None:
                raise UnknownStyleError(name, tuple(sorted(styles, key=str.casefold)))
            prompt = _laid_around(style.prompt, prompt)
            negative_prompt = _laid_around(style.negative_prompt, negative_prompt)
        return prompt, negative_prompt

    def _current(self) -> Mapping[str, Style]:
        if (seen := self._look()) != self._seen:
            self._seen = seen
            try:
                self._styles = _read_all(self._files)
            except StylesFileError:
                # somebody is editing the file: a running server goes on with what it has
                log.exception("styles were not read again; those read before stay in use")
        return self._styles

    def _look(self) -> tuple[object, ...]:
        return tuple(_signature(file) for file in self._files)


def _laid_around(template: str, text: str) -> str:
    if not template:
        return text
    if PLACE in template and text.strip():
        return template.replace(PLACE, text)
    # nothing to put in: no comma may be left hanging
    parts = (text, *template.split(PLACE))
    return ", ".join(kept for part in parts if (kept := part.strip().strip(",").strip()))


def _near(name: str, known: Iterable[str]) -> list[str]:
    spelled = {other.casefold(): other for other in known}
    return [spelled[found] for found in get_close_matches(name[:MAX_NAME_CHARS].casefold(), spelled, n=3)]


def _signature(file: Path) -> object:
    try:
        found = file.stat()
    except OSError as problem:
        return type(problem).__name__
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read_all(files: Sequence[Path]) -> dict[str, Style]:
    """Every file's styles, a later file's in place of an earlier one's of the same name."""
    styles: dict[str, tuple[str, Style]] = {}
    for file in files:
        entries = _read_csv if file.suffix == ".csv" else _read_json
        styles |= {name.casefold(): (name, style) for name, style in _read(file, entries).items()}
    return dict(styles.values())


def _read(file: Path, entries: Callable[[Path, str], dict[str, Style]]) -> dict[str, Style]:
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as problem:
        raise StylesFileError(f"{file}: {problem.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise StylesFileError(f"{file}: larger than {MAX_FILE_BYTES // 2**20} MB")
    try:
        # spreadsheets write a byte order mark
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise StylesFileError(f"{file}: not UTF-8") from None
    return entries(file, text)


def _read_json(file: Path, text: str) -> dict[str, Style]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise StylesFileError(f"{file}: '{twice}' stands there twice")
        return found

    try:
        data = json.loads(text, object_pairs_hook=once)
    except ValueError as problem:
        raise StylesFileError(f"{file}: not JSON: {problem}") from None
    except RecursionError:
        raise StylesFileError(f"{file}: nested too deeply") from None
    if not isinstance(data, dict):
        raise StylesFileError(f'{file}: must be an object, {{"name": {{"prompt": "... {PLACE} ..."}}}}')
    return {_name(file, name, f"'{name}'"): _entry(file, name, value) for name, value in data.items()}


def _entry(file: Path, name: str, value: object) -> Style:
    fields = ("prompt", "negative_prompt")
    if not isinstance(value, dict):
        raise StylesFileError(f"{file}: '{name}' must be an object with {' and '.join(fields)}")
    if unknown := sorted(set(value) - set(fields)):
        raise StylesFileError(f"{file}: '{name}' has the unknown field '{unknown[0]}'; there are {', '.join(fields)}")
    if not any(value.values()):
        raise StylesFileError(f"{file}: '{name}' has neither {' nor '.join(fields)}")
    return Style(*(_text(file, f"'{name}': {field}", value.get(field, "")) for field in fields))


def _read_csv(file: Path, text: str) -> dict[str, Style]:
    """A1111's `styles.csv`: name, prompt (once called text), negative_prompt. Rows without a name are dividers."""
    rows = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        header = rows.fieldnames or ()
        prompt = "prompt" if "prompt" in header else "text"
        if "name" not in header or prompt not in header:
            raise StylesFileError(f"{file}: line 1 must be name,prompt,negative_prompt")
        styles = {}
        for row in rows:
            where = f"line {rows.line_num}"
            if None in row:
                raise StylesFileError(f"{file}: {where} has more fields than line 1")
            if not (row["name"] or "").strip():
                continue
            texts = (row[prompt] or "", row.get("negative_prompt") or "")
            styles[_name(file, row["name"], where)] = Style(*(_text(file, where, each) for each in texts))
    except csv.Error as problem:
        raise StylesFileError(f"{file}: after line {rows.line_num}: {problem}") from None
    return styles


def _name(file: Path, name: str, where: str) -> str:
    if not (kept := name.strip()) or len(kept) > MAX_NAME_CHARS or not kept.isprintable():
        raise StylesFileError(f"{file}: {where}: a name has 1 to {MAX_NAME_CHARS} printable characters")
    return kept


def _text(file: Path, where: str, text: object) -> str:
    if not isinstance(text, str):
        raise StylesFileError(f"{file}: {where} must be text")
    if len(text) > MAX_TEXT_CHARS:
        raise StylesFileError(f"{file}: {where} is longer than {MAX_TEXT_CHARS} characters")
    return text.strip()
