from __future__ import annotations

from decimal import Decimal

import pytest

from compositor.compose.fields import Fields, one_line, price


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("12.50 USD", "12.50"),
        ("USD 12.50", "12.50"),
        ("$1,299.00", "1299.00"),
        ("1.299,00 €", "1299.00"),
        ("1 299,50 kr", "1299.50"),
        ("1\u00a0299 zł", "1299"),
        ("12,5", "12.5"),
        ("1,299", "1299"),
        ("1.500 KWD", "1.500"),
        ("1.500 EUR", "1500"),
        ("1,299,000 JPY", "1299000"),
        ("-3", "-3"),
        ("0", "0"),
    ],
)
def test_prices_as_feeds_write_them(text: str, amount: str) -> None:
    assert price(text) == Decimal(amount)


@pytest.mark.parametrize("text", ["", "in stock", "Size 12", "12 pieces", "AB1234", "9" * 50, "2024-01-01T00:00"])
def test_what_is_no_price(text: str) -> None:
    assert price(text) is None


def test_names_go_by_their_plain_form() -> None:
    fields = Fields({"g:Price": "12 EUR", "title": " a\tb\n c "})
    assert fields.get("price") == fields.get("g:price") == fields.get("PRICE") == "12 EUR"
    assert fields.get("title") == "a b c"
    assert fields.get("nothing") == ""


def test_a_template_is_filled_once() -> None:
    fields = Fields({"title": "{price} \u202e", "price": "12"})
    assert fields.fill("{title}: { price }") == "{price} \u202e: 12"
    assert fields.fill("no field {here") == "no field {here"


def test_an_empty_field_hides_the_text() -> None:
    assert Fields({"title": "  "}).fill("Now {title}") is None
    assert Fields({}).fill("Now {title}") is None


def test_the_discount_is_worked_out() -> None:
    assert Fields({"price": "20 EUR", "sale_price": "15 EUR"}).get("discount") == "25%"
    assert Fields({"price": "20", "sale_price": "15", "discount": "a lot"}).get("discount") == "a lot"
    assert Fields({"price": "20", "sale_price": "20"}).get("discount") == ""
    assert Fields({"price": "20"}).fill("-{discount}") is None


def test_control_characters_are_spaces() -> None:
    assert one_line("a\x00b\x1b[31mc\u2028d\ud800") == "a b [31mc d"
