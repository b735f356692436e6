"""The table of what was fastest on a device, and the rule by which measurements become choices.

The GPU benchmark writes the table; the engine reads it. One entry for each device and version of PyTorch: what was
fastest with one says nothing of another.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from inference.engine.levers import ALLOWED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Clock = Callable[[Callable[[], object]], float]

log = logging.getLogger(__name__)

TABLE_FILE = "tuning.json"
MARGIN = 0.02  # a lever must be so much faster than the plain value; less is the spread of repeated measurements
PADDING_GAIN = 0.05  # a batch size is kept where it is so much faster than padding to the next one
MAX_BUCKET = 64


@dataclass(frozen=True, slots=True)
class Tuned:
    """What was fastest on a device. `levers` by name as `Levers` has them; `buckets` in rows, ascending."""

    device: str
    torch: str
    measured: str = ""
    levers: Mapping[str, Any] = field(default_factory=dict)
    buckets: tuple[int, ...] = ()


def fastest(candidates: Mapping[str, Callable[[], object]], time_of: Callable[[Callable[[], object]], float]) -> str:
    """The name of the fastest; the first is the plain value, which the others must beat by `MARGIN`.

    One that throws is passed over, unless it is the first. `time_of` gives seconds.
    """
    names = list(candidates)
    best, best_s = names[0], time_of(candidates[names[0]])
    threshold = best_s * (1 - MARGIN)
    for name in names[1:]:
        try:
            seconds = time_of(candidates[name])
        except Exception as problem:  # noqa: BLE001 - kernels that are not for this device throw anything; said here
            log.info("%s is not used: %s", name, problem)
            continue
        if seconds < min(threshold, best_s):
            best, best_s = name, seconds
    return best


def choose_buckets(step_ms: Mapping[int, float]) -> tuple[int, ...]:
    """Batch sizes worth having, from the time of one UNet call by rows.

    A size that is hardly faster than the next larger one is left out: its pictures may as well be padded, and each
    size costs warm-up time and memory.
    """
    kept: list[int] = []
    for rows in sorted(step_ms, reverse=True):
        if not kept or step_ms[rows] < (1 - PADDING_GAIN) * step_ms[kept[-1]]:
            kept.append(rows)
    return tuple(reversed(kept))


def read_table(path: Path | None, device: str, torch_version: str) -> Tuned | None:
    """The entry of a device and a version of PyTorch; None where there is none. A damaged table is logged."""
    for entry in _entries(path):
        if entry.get("device") == device and entry.get("torch") == torch_version:
            return _checked(entry)
    return None


def write_table(path: Path, tuned: Tuned) -> None:
    """Put an entry into the table, in the place of the device's older one."""
    others = [
        entry for entry in _entries(path) if (entry.get("device"), entry.get("torch")) != (tuned.device, tuned.torch)
    ]
    own = {
        "device": tuned.device,
        "torch": tuned.torch,
        "measured": tuned.measured,
        "levers": dict(tuned.levers),
        "buckets": list(tuned.buckets),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    unfinished.write_text(json.dumps({"entries": [*others, own]}, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)


def _entries(path: Path | None) -> list[dict[str, Any]]:
    if path is None or not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["entries"]
        return [entry for entry in entries if isinstance(entry, dict)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as problem:
        log.warning("the table %s is not used: %s", path, problem)
        return []


def _checked(entry: Mapping[str, Any]) -> Tuned:
    """What of an entry makes sense; the rest is logged and left out."""
    levers, buckets = entry.get("levers"), entry.get("buckets")
    kept = {}
    for name, value in levers.items() if isinstance(levers, dict) else ():
        # `1 in (True, False)` holds, so the type is compared too
        if any(value == allowed and type(value) is type(allowed) for allowed in ALLOWED.get(name, ())):
            kept[name] = value
        else:
            log.warning("the table's %s = %r is not used", name, value)
    sizes = buckets if isinstance(buckets, list) else []
    valid = all(type(size) is int and 1 <= size <= MAX_BUCKET for size in sizes)
    return Tuned(
        str(entry["device"]),
        str(entry["torch"]),
        str(entry.get("measured", "")),
        kept,
        tuple(sorted(set(sizes))) if valid else (),
    )


def median_s(call: Callable[[], object], clock: Clock, *, repeats: int = 3) -> float:
    """Median seconds of a call after one that is not counted, which loads and chooses kernels."""
    call()
    return statistics.median(clock(call) for _ in range(repeats))
