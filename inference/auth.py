"""The one key that guards the queue API."""

from __future__ import annotations

from hmac import compare_digest

from models.errors import UnauthorizedError


class KeyGuard:
    """Compares in constant time. Takes `Bearer <key>` and, as RunPod does, the bare key."""

    def __init__(self, key: str | None) -> None:
        """`key` None serves everybody: the operator's choice, on a loopback address only."""
        self._key = None if key is None else key.encode()

    def check(self, authorization: str | None) -> None:
        """Let a request pass or not.

        Raises:
            UnauthorizedError: no key or a wrong one.

        """
        if self._key is None:
            return
        scheme, _, rest = (authorization or "").strip().partition(" ")
        given = rest.strip() if scheme.lower() == "bearer" else (authorization or "").strip()
        if not compare_digest(given.encode("utf-8", "surrogateescape"), self._key):
            raise UnauthorizedError
