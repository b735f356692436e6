"""What a check says: how it is, in plain words, and how to mend it."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any


class State(StrEnum):
    """How a part is."""

    OK = "ok"
    WARNING = "warning"
    """It works, and something about it may hurt later."""
    FAULT = "fault"
    SKIPPED = "skipped"
    """It could not be looked at, or there is nothing to look at."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found. `mend` says what to do; it is there wherever something is wrong."""

    part: str
    state: State
    told: str
    mend: str = ""

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def good(part: str, told: str) -> Finding:
    """All is well."""
    return Finding(part, State.OK, told)


def warning(part: str, told: str, mend: str) -> Finding:
    """See `State.WARNING`."""
    return Finding(part, State.WARNING, told, mend)


def fault(part: str, told: str, mend: str) -> Finding:
    """Something does not work."""
    return Finding(part, State.FAULT, told, mend)


def skipped(part: str, why: str) -> Finding:
    """See `State.SKIPPED`."""
    return Finding(part, State.SKIPPED, why)


def program(words: str) -> str:
    """A program of IGen's as it can be typed here: `.venv/bin/python -m gateway init` in a checkout."""
    python = Path(sys.executable)
    return f"{python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python} -m {words}"


def clock(part: str, skew_s: float) -> Finding:
    """What the difference between a part's clock and this machine's means. Leases are compared across machines."""
    told = f"its clock and this machine's are {abs(skew_s):.1f} s apart"
    if abs(skew_s) < CLOCK_GOOD_S:
        return good(part, told)
    mend = "let NTP set the clocks of all machines (timedatectl set-ntp true)"
    return fault(part, told, mend) if abs(skew_s) > CLOCK_BAD_S else warning(part, told, mend)


CLOCK_GOOD_S, CLOCK_BAD_S = 3.0, 10.0
"""An HTTP date is good to a second; leases last 15 s and more."""
