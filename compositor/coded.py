"""Root of the errors that a product or a feed ends with: a stable code and a sentence for people."""

from __future__ import annotations

from typing import Any


class CodedError(Exception):
    """`code` is stable and may be switched on; `message` is public and in plain words."""

    def __init__(self, code: str, message: str) -> None:
        self.code = str(code)
        self.message = message
        super().__init__(f"{self.code}: {message}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Both arguments, so that it survives pickling."""
        return type(self), (self.code, self.message)
