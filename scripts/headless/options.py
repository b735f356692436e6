"""What the command line asks for, checked before anything is fetched."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from compositor.design import Design

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_ASSET = re.compile(r"(ast_[0-9a-z]{26})=(.+)", re.DOTALL)


class OptionsError(Exception):
    """The command line is wrong; the message names the option and says why."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """Options that stand above the design file; None leaves what it says."""

    box: str | None = None
    fit: str | None = None
    layer: str | None = None
    format: str | None = None
    quality: int | None = None


def read_design(path: Path | None, given: Overrides) -> Design:
    """The design file, or an empty design, with the options put over it.

    Raises:
        OptionsError: not a design; each wrong field is named.

    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise OptionsError(f"--design: {path} cannot be read: {error}") from None
        data = _validated("--design", lambda: Design.model_validate_json(text)).model_dump(mode="json")
    if given.box is not None:
        data.setdefault("placement", {})["box"] = _box(given.box)
    if given.fit is not None:
        data.setdefault("placement", {})["fit"] = given.fit
    if given.layer is not None:
        data["layer"] = given.layer
    for name, value in (("kind", given.format), ("quality", given.quality)):
        if value is not None:
            data.setdefault("output", {})[name] = value
    return _validated("options", lambda: Design.model_validate(data))


def read_assets(pairs: Sequence[str], design: Design) -> dict[str, Path]:
    """`id=path` pairs as a mapping; the design's assets must all be there.

    Raises:
        OptionsError: not such a pair, no such file, or an asset that the design names is missing.

    """
    found: dict[str, Path] = {}
    for pair in pairs:
        match = _ASSET.fullmatch(pair)
        if match is None:
            raise OptionsError(f"--asset: {pair!r} is not ID=PATH with an id as in the design")
        found[match[1]] = Path(match[2])
        if not found[match[1]].is_file():
            raise OptionsError(f"--asset: there is no file {match[2]}")
    missing = sorted(design.assets - found.keys())
    if missing:
        raise OptionsError(f"--asset: the design names {', '.join(missing)}; say where the file is")
    return found


def sha256_of(path: Path) -> str:
    """Hash of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inputs_hash(feed: Path, parts: Sequence[str]) -> str:
    """One hash of a feed's content and of all that decides what a run makes of it."""
    return hashlib.sha256(json.dumps([sha256_of(feed), *parts]).encode()).hexdigest()


def _box(text: str) -> dict[str, int]:
    numbers = text.split(",")
    try:
        x, y, width, height = (int(number) for number in numbers)
    except ValueError:
        raise OptionsError(f"--box: {text!r} is not four whole numbers x,y,width,height") from None
    return {"x": x, "y": y, "width": width, "height": height}


def _validated(what: str, make: Callable[[], Design]) -> Design:
    try:
        return make()
    except ValidationError as problem:
        lines = [
            f"{what}: {'.'.join(map(str, item['loc'])) or 'design'}: {item['msg']}"
            for item in problem.errors(include_url=False, include_input=False, include_context=False)
        ]
        raise OptionsError("\n".join(lines)) from None
