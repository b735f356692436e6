from __future__ import annotations

import pytest

from compositor.compose.conditions import all_hold, holds
from compositor.compose.fields import Fields
from compositor.design import Condition

FIELDS = Fields(
    {
        "price": "1.299,00 EUR",
        "g:sale_price": "999.00 EUR",
        "availability": "in_stock",
        "title": "Red Shoe",
        "vat": "7%",
    }
)


@pytest.mark.parametrize(
    ("field", "operator", "value", "answer"),
    [
        ("sale_price", "<", "{price}", True),
        ("price", "<", "{sale_price}", False),
        ("price", ">=", "1299", True),
        ("price", "<=", "1299", True),
        ("price", ">", "1299", False),
        ("price", "=", "EUR 1299", True),
        ("price", "!=", "1300", True),
        ("price", "=", "1299 USD", False),
        ("price", "!=", "1299 USD", True),
        ("price", "<", "2000 USD", False),
        ("price", ">", "2 USD", False),
        ("price", ">", "7%", False),
        ("discount", ">=", "20%", True),
        ("discount", ">", "9", True),
        ("discount", "<", "100 %", True),
        ("vat", ">=", "20%", False),
        ("availability", "=", "In Stock", True),
        ("availability", "!=", "in stock", False),
        ("title", "contains", "red", True),
        ("title", "contains", "blue", False),
        ("title", "<", "5", False),
        ("title", ">", "5", False),
        ("title", ">", "apple", True),
        ("title", "present", "", True),
        ("title", "absent", "", False),
        ("brand", "absent", "", True),
        ("brand", "=", "", False),
        ("brand", "<", "{price}", False),
        ("brand", "!=", "Acme", True),
        ("sale_price", "<", "{brand}", False),
    ],
)
def test_conditions(field: str, operator: str, value: str, answer: bool) -> None:
    condition = Condition.model_validate({"field": field, "operator": operator, "value": value})
    assert holds(condition, FIELDS) is answer


def test_all_must_hold() -> None:
    yes, no = Condition(field="title"), Condition(field="brand")
    assert all_hold((), FIELDS)
    assert all_hold((yes, yes), FIELDS)
    assert not all_hold((yes, no), FIELDS)
