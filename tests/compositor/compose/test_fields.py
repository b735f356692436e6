from __future__ import annotations

import pytest

from compositor.compose.fields import Fields, one_line


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


@pytest.mark.parametrize(
    ("price", "sale_price", "discount"),
    [
        ("1.299,00 EUR", "999,00 €", "23%"),
        ("$20", "15 USD", "25%"),
        ("49,-", "39,-", "20%"),
        ("100 EUR", "75 USD", ""),
        ("€100", "75 PLN", ""),
        ("10 EUR", "12 EUR", ""),
        ("100 USD", "99.50 USD", ""),
    ],
)
def test_a_discount_is_of_one_currency(price: str, sale_price: str, discount: str) -> None:
    assert Fields({"price": price, "sale_price": sale_price}).get("discount") == discount


def test_line_breaks_of_a_template_stay_and_those_of_a_field_do_not() -> None:
    assert Fields({"title": "a\nb"}).fill("Now\r\n\n {title}\x01 \n") == "Now\n\na b"
    assert Fields({}).fill("\n \x01") is None


def test_control_characters_are_spaces() -> None:
    assert one_line("a\x00b\x1b[31mc\u2028d\ud800") == "a b [31mc d"
