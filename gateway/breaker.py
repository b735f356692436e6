"""A circuit breaker: after failures in a row, calls fail at once until a probe shows that the backend is back."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from gateway.failures import BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

FAILURES_TO_OPEN = 5
PAUSE_S = 1.0
"""Between two probes. Short and constant, since a probe is one cheap request and only one runs at a time."""
RETRY_AFTER_S = 2


class Breaker:
    """Closed until `FAILURES_TO_OPEN` failures in a row, then open.

    The first call after a pause is half-open: it probes, and calls that come meanwhile wait for what it finds.
    """

    def __init__(self, probe: Callable[[], Awaitable[bool]], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._probe = probe
        self._clock = clock
        self._probing = asyncio.Lock()
        self._failures = 0
        self._probe_at: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether the backend is taken for dead."""
        return self._probe_at is not None

    async def admit(self) -> None:
        """Let a call through.

        Raises:
            BackendUnavailableError: open, and it is too early for a probe or the probe failed.

        """
        if not self.is_open:
            return
        async with self._probing:
            if self._probe_at is not None and self._clock() >= self._probe_at:
                if await self._probe():
                    self.succeeded()
                else:
                    self._probe_at = self._clock() + PAUSE_S
        if self.is_open:
            raise BackendUnavailableError(retry_after_s=RETRY_AFTER_S)

    def succeeded(self) -> None:
        """The backend answered as it should."""
        self._failures = 0
        self._probe_at = None

    def failed(self) -> None:
        """No connection, one that broke, no answer in time, or an answer that is none."""
        self._failures += 1
        if self._failures >= FAILURES_TO_OPEN and self._probe_at is None:
            self._probe_at = self._clock() + PAUSE_S
