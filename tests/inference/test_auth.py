from __future__ import annotations

import pytest

from inference.auth import KeyGuard
from models.errors import UnauthorizedError


@pytest.mark.parametrize("header", ["Bearer s3cret", "bearer s3cret", "s3cret", " Bearer  s3cret "])
def test_the_key_passes_with_or_without_bearer(header: str | None) -> None:
    KeyGuard("s3cret").check(header)


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer wrong", "s3cre", "Basic s3cret", "Bearer s3crété"]
)
def test_anything_else_does_not(header: str | None) -> None:
    with pytest.raises(UnauthorizedError):
        KeyGuard("s3cret").check(header)


def test_without_a_key_everybody_passes() -> None:
    KeyGuard(None).check(None)
