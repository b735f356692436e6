from __future__ import annotations

from decimal import Decimal

import pytest

from compositor.compose.amounts import amount


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("12.50 USD", "12.50", "USD"),
        ("USD 12.50", "12.50", "USD"),
        ("12.50 usd", "12.50", "USD"),
        ("US$12.50", "12.50", "USD"),
        ("$1,299.00", "1299.00", None),
        ("1.299,00 €", "1299.00", "EUR"),
        ("1 299,50 kr", "1299.50", None),
        ("1 299:-", "1299", None),
        ("49,- €", "49", "EUR"),
        ("Fr. 50.\u2013", "50", "CHF"),
        ("CHF 1'299.00", "1299.00", "CHF"),
        ("1\u00a0299 zł", "1299", "PLN"),
        ("800 руб.", "800", "RUB"),  # noqa: RUF001 - Cyrillic is meant
        ("₹1,00,000.00", "100000.00", "INR"),
        ("１００円", "100", "JPY"),
        ("\u0662\u0665\u066b\u0665\u0660 ر.س", "25.50", "SAR"),
        ("EUR 10 EUR", "10", "EUR"),
        ("12,5", "12.5", None),
        ("1,299", "1299", None),
        ("1.500 KWD", "1.500", "KWD"),
        ("1.500 EUR", "1500", "EUR"),
        ("1,299,000 JPY", "1299000", "JPY"),
        ("20%", "20", "%"),
        ("20 %", "20", "%"),
        ("-3", "-3", None),
        ("0", "0", None),
    ],
)
def test_amounts_as_feeds_write_them(text: str, value: str, unit: str | None) -> None:
    found = amount(text)
    assert found is not None
    assert (found.value, found.unit) == (Decimal(value), unit)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "in stock",
        "Size 12",
        "12 pieces",
        "AB1234",
        "9" * 50,
        "2024-01-01T00:00",
        "10-20 EUR",
        "5 the",
        "EUR 5 USD",
    ],
)
def test_what_is_no_amount(text: str) -> None:
    assert amount(text) is None


@pytest.mark.parametrize(
    ("one", "other", "comparable"),
    [
        ("5 EUR", "5 €", True),
        ("5 EUR", "5", True),
        ("5 kr", "5 SEK", True),
        ("5%", "5", True),
        ("5 EUR", "5 USD", False),
        ("5%", "5 EUR", False),
    ],
)
def test_only_amounts_of_one_kind_compare(one: str, other: str, *, comparable: bool) -> None:
    first, second = amount(one), amount(other)
    assert first is not None
    assert second is not None
    assert first.comparable(second) is second.comparable(first) is comparable
