"""A product's fields as texts and conditions see them: names, templates, prices, the discount."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal, InvalidOperation

NAME = re.compile(r"\{\s*([A-Za-z_][A-Za-z0-9_:.-]{0,63})\s*\}")
MAX_TEXT = 2000
MAX_DIGITS = 15
DECIMALS = 2
THOUSANDS = 3
THREE_DECIMALS = {"BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"}
"""Currencies with three digits behind the point, where 1.500 is one and a half."""
_WORDS = {"kr", "zł", "rs", "lei", "ft", "kč", "лв", "руб", "грн", "tl"}  # noqa: RUF001 - Cyrillic is meant
_NUMBER = re.compile(r"[+-]?\d(?:[\d.,'\u2019]|\s(?=\d))*")


class Fields:
    """Looks a field up by its name, without regard to case or to a `g:` before it.

    `discount` is worked out from `price` and `sale_price` ("25%") where the feed has no field of that name.
    """

    def __init__(self, fields: dict[str, str]) -> None:
        self._values = {canonical(name): value for name, value in fields.items()}
        if not self._values.get("discount", "").strip() and (percent := self._percent()):
            self._values["discount"] = percent

    def get(self, name: str) -> str:
        """The field's text on one line, or an empty string."""
        return one_line(self._values.get(canonical(name), ""))

    def fill(self, template: str) -> str | None:
        """The template with its fields; None if one of them is empty. A field's own braces stay as they are."""
        names = NAME.findall(template)
        if any(not self.get(name) for name in names):
            return None
        filled = NAME.sub(lambda match: self.get(match[1]), template)
        return filled[:MAX_TEXT] if filled.strip() else None

    def _percent(self) -> str | None:
        before, now = price(self.get("price")), price(self.get("sale_price"))
        if before is None or now is None or not 0 <= now < before:
            return None
        percent = int((before - now) * 100 / before)
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


def price(text: str) -> Decimal | None:
    """The amount of a price such as `1.299,00 EUR`, `$12.50` or `12`; None where the text is no price."""
    text = text.strip()
    found = _NUMBER.search(text)
    if found is None:
        return None
    before, after = text[: found.start()].strip(), text[found.end() :].strip()
    if not (_is_currency(before) and _is_currency(after)):
        return None
    digits = _plain(found[0], (before or after).upper())
    try:
        return Decimal(digits) if sum(letter.isdigit() for letter in digits) <= MAX_DIGITS else None
    except InvalidOperation:
        return None


def _is_currency(text: str) -> bool:
    """Nothing, a code of three capitals, or signs such as `€`, `US$`, `zł`."""
    text = text.rstrip(".").strip()
    if not text or text.casefold() in _WORDS:
        return True
    if len(text) == THOUSANDS and text.isascii() and text.isupper():
        return True
    return len(text) <= THOUSANDS and any(unicodedata.category(letter) == "Sc" for letter in text)


def _plain(number: str, currency: str) -> str:
    """Digits with a point, whichever way the number was grouped."""
    number = re.sub(r"[\s'\u2019]", "", number).rstrip(".,")
    point = max(number.rfind("."), number.rfind(","))
    if point < 0:
        return number
    sign, digits_after = number[point], len(number) - point - 1
    other = "," if sign == "." else "."
    repeated = number.count(sign) > 1
    exact_three = digits_after == THOUSANDS and currency not in THREE_DECIMALS and other not in number
    if repeated or exact_three:
        return number.replace(sign, "").replace(other, ".")
    return number[:point].replace(other, "") + "." + number[point + 1 :]
