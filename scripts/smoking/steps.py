"""Named steps, one after the other: each passes, fails with a reason, or is left out since one before it failed."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from scripts.calling.gateway import Gateway, Reply, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class StepError(Exception):
    """A step failed; the message is the reason, and what to do about it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step went: `ok`, `failed` or `skipped`; `seconds` it took; `told` in words."""

    name: str
    state: str
    seconds: float
    told: str

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


class Steps:
    """Collects outcomes and shows each as it comes."""

    def __init__(self, shown: Callable[[Outcome], None]) -> None:
        self._shown = shown
        self.outcomes: list[Outcome] = []

    @property
    def failed(self) -> bool:
        """Whether any step failed."""
        return any(outcome.state == "failed" for outcome in self.outcomes)

    def ok(self, name: str) -> bool:
        """Whether a step passed."""
        return any(outcome.name == name and outcome.state == "ok" for outcome in self.outcomes)

    async def take(self, name: str, step: Callable[[], Awaitable[str]], *, after: str | None = None) -> None:
        """Take a step, unless the one that it needs did not pass."""
        if after is not None and not self.ok(after):
            self._add(Outcome(name, "skipped", 0.0, f"needs: {after}"))
            return
        began = time.monotonic()
        try:
            told, state = await step(), "ok"
        except (StepError, UnreachableError) as problem:
            told, state = str(problem), "failed"
        self._add(Outcome(name, state, round(time.monotonic() - began, 3), told))

    def skip(self, name: str, why: str) -> None:
        """Leave a step out."""
        self._add(Outcome(name, "skipped", 0.0, why))

    def _add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self._shown(outcome)


async def ask(gateway: Gateway, method: str, path: str, *wanted: int, **options: Any) -> Reply:
    """One request that must be answered with one of `wanted` (200 where none is named).

    Raises:
        StepError: it was not.
        UnreachableError: there was no answer.

    """
    reply = await gateway.request(method, path, **options)
    if reply.status not in (wanted or (200,)):
        raise StepError(f"{method} {path} was answered {reply.status} {reply.code}: {reply.reason}")
    return reply
