"""A product's fields as texts and conditions see them: names, templates, the discount."""

from __future__ import annotations

import re
import unicodedata

from compositor.compose.amounts import amount

NAME = re.compile(r"\{\s*([A-Za-z_][A-Za-z0-9_:.-]{0,63})\s*\}")
MAX_TEXT = 2000


class Fields:
    """Looks a field up by its name, without regard to case or to a `g:` before it.

    `discount` is worked out from `price` and `sale_price` of one currency ("25%") where the feed has no field of that
    name.
    """

    def __init__(self, fields: dict[str, str]) -> None:
        self._values = {canonical(name): value for name, value in fields.items()}
        if not self._values.get("discount", "").strip() and (percent := self._percent()):
            self._values["discount"] = percent

    def get(self, name: str) -> str:
        """The field's text on one line, or an empty string."""
        return one_line(self._values.get(canonical(name), ""))

    def fill(self, template: str) -> str | None:
        """The template with its fields; None if one of them is empty.

        A field's own braces stay as they are, and so do the template's line breaks.
        """
        names = NAME.findall(template)
        if any(not self.get(name) for name in names):
            return None
        filled = NAME.sub(lambda match: self.get(match[1]), template).strip()
        return "\n".join(map(one_line, filled.splitlines()))[:MAX_TEXT] or None

    def _percent(self) -> str | None:
        before, now = amount(self.get("price")), amount(self.get("sale_price"))
        if before is None or now is None or not before.comparable(now) or not 0 <= now.value < before.value:
            return None
        percent = int((before.value - now.value) * 100 / before.value)
        return f"{percent}%" if percent else None


def canonical(name: str) -> str:
    """A field's name as it is compared."""
    return name.strip().casefold().rpartition(":")[2]


def one_line(text: str) -> str:
    """Without control characters and with single spaces."""
    text = text[: 2 * MAX_TEXT]
    shown = "".join(
        " " if unicodedata.category(letter) in ("Cc", "Zl", "Zp", "Cs", "Co") else letter for letter in text
    )
    return " ".join(shown.split())
