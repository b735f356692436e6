"""Amounts as feeds write them: prices in any country's way, percentages, plain numbers."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

MAX_DIGITS = 15
THOUSANDS = 3
PERCENT = "%"
THREE_DECIMALS = {"BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"}
"""Currencies with three digits behind the point, where 1.500 is one and a half."""
_CODES = frozenset(
    re.findall(
        r"\w+",
        """
        AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF
        CHF CLP CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD
        HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD
        LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK
        PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS
        TMT TND TOP TRY TTD TWD TZS UAH UGX USD UYU UZS VES VND VUV WST XAF XCD XOF XPF YER ZAR ZMW ZWL
        """,
    )
)
"""ISO 4217, which feeds also write in small letters."""
_SIGNS = dict(
    re.findall(
        r"(\S+) (\S+)",
        """
        € EUR  £ GBP  ₹ INR  ₽ RUB  ₺ TRY  ₴ UAH  ₪ ILS  ₩ KRW  ₫ VND  ฿ THB  ₦ NGN  ₱ PHP  ₸ KZT  ₾ GEL  ₡ CRC
        us$ USD  a$ AUD  c$ CAD  r$ BRL  hk$ HKD  nt$ TWD  nz$ NZD  s$ SGD  mx$ MXN
        zł PLN  kč CZK  ft HUF  lei RON  tl TRY  лв BGN  руб RUB  грн UAH  дин RSD  fr CHF  sfr CHF  rp IDR  rm MYR
        円 JPY  元 CNY  원 KRW  บาท THB  đ VND  ر.س SAR  د.إ AED  ج.م EGP  د.ك KWD  ر.ق QAR
        """,  # noqa: RUF001 - Cyrillic is meant
    )
)
_SHARED_WORDS = {"kr", "rs"}
"""Of several countries, as `$` and `¥` are: what stands there says nothing against any currency."""
_NUMBER = re.compile(r"[+-]?\d(?:[\d.,'\u2019]|\s(?=\d))*")
_NO_CENTS = re.compile(r"^:?[-–—]+")  # noqa: RUF001 - dashes that people write
_ARABIC = str.maketrans("\u066b\u066c", ".,")


@dataclass(frozen=True, slots=True)
class Amount:
    """A number and what it counts: a currency's code, `%`, or None where nothing tells."""

    value: Decimal
    unit: str | None

    def comparable(self, other: Amount) -> bool:
        """Whether one may be more than the other; 5 EUR are neither more nor less than 5 USD."""
        return None in (self.unit, other.unit) or self.unit == other.unit


def amount(text: str) -> Amount | None:
    """What a text such as `1.299,00 EUR`, `$12.50`, `20%` or `12` amounts to; None where it is no amount."""
    text = text.translate(_ARABIC).strip()
    found = _NUMBER.search(text)
    if found is None:
        return None
    before, after = text[: found.start()].strip(), text[found.end() :].strip()
    if found[0].endswith((".", ",")) or after.startswith(":"):
        after = _NO_CENTS.sub("", after).strip()  # 49,- and 49:-
    known, units = zip(*map(_unit, (before, after)), strict=True)
    unit = units[0] or units[1]
    if not all(known) or (all(units) and units[0] != units[1]):
        return None
    digits = _plain(found[0], unit)
    try:
        value = Decimal(digits) if sum(letter.isdigit() for letter in digits) <= MAX_DIGITS else None
    except InvalidOperation:
        return None
    return None if value is None else Amount(value, unit)


def _unit(text: str) -> tuple[bool, str | None]:
    """Whether a text beside a number may stand there, and which unit it names, if it says so."""
    text = text.strip().removesuffix(".").strip()
    if not text or text.casefold() in _SHARED_WORDS:
        return True, None
    if text in (PERCENT, "٪"):
        return True, PERCENT
    if (sign := _SIGNS.get(text.casefold())) is not None:
        return True, sign
    if len(text) == THOUSANDS and text.isascii() and text.isalpha() and (text.isupper() or text.upper() in _CODES):
        return True, text.upper()
    return len(text) <= THOUSANDS and any(unicodedata.category(letter) == "Sc" for letter in text), None


def _plain(number: str, unit: str | None) -> str:
    """Digits with a point, whichever way the number was grouped."""
    number = re.sub(r"[\s'\u2019]", "", number).rstrip(".,")
    point = max(number.rfind("."), number.rfind(","))
    if point < 0:
        return number
    sign, digits_after = number[point], len(number) - point - 1
    other = "," if sign == "." else "."
    repeated = number.count(sign) > 1
    exact_three = digits_after == THOUSANDS and unit not in THREE_DECIMALS and other not in number
    if repeated or exact_three:
        return number.replace(sign, "").replace(other, ".")
    return number[:point].replace(other, "") + "." + number[point + 1 :]
