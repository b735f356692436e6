"""Whether a product's fields meet a condition."""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING, Any

from compositor.compose.amounts import amount
from compositor.compose.fields import NAME, Fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from compositor.design import Condition

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def holds(condition: Condition, fields: Fields) -> bool:
    """Whether one condition holds.

    A comparison with an empty field never holds, but for `!=`. Two amounts compare as numbers, and those of different
    currencies only differ; for an order (`<` and the like) of anything else both sides must be texts.
    """
    left = fields.get(condition.field)
    if condition.operator in ("present", "absent"):
        return bool(left) == (condition.operator == "present")
    named = NAME.findall(condition.value)
    right = NAME.sub(lambda match: fields.get(match[1]), condition.value).strip()
    if any(not fields.get(name) for name in named) or not left:
        return condition.operator == "!=" and _plain(left) != _plain(right)
    if condition.operator == "contains":
        return _plain(right) in _plain(left)
    ours, theirs = amount(left), amount(right)
    compare = _COMPARE[condition.operator]
    if ours is not None and theirs is not None:
        return compare(ours.value, theirs.value) if ours.comparable(theirs) else condition.operator == "!="
    if condition.operator not in ("=", "!=") and (ours is not None or theirs is not None):
        return False  # an amount is neither less nor more than a word
    return compare(_plain(left), _plain(right))


def all_hold(conditions: Iterable[Condition], fields: Fields) -> bool:
    """Whether all of them hold; of none, all do."""
    return all(holds(condition, fields) for condition in conditions)


def _plain(text: str) -> str:
    """Feeds write `in stock`, `In Stock` and `in_stock` for the same thing."""
    return re.sub(r"[\s_]+", " ", text).strip().casefold()
