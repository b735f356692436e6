"""What follows from the rows measured: which levers were fastest, and the engine's table for this device."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from inference.engine.levers import Levers
from inference.engine.tuning import Tuned, choose_buckets, write_table
from scripts.gpubench.rows import best_levers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from scripts.gpubench.report import Results


def lossless(name: str, row: dict[str, Any]) -> bool:
    """Whether a row is of the engine, was measured, and leaves the pictures what they are."""
    ours = name.startswith("engine") and not row.get("lossy")
    return ours and "images_s_20" in row and "goal" not in name and "channels first" not in name


def best(results: Results, batches: Sequence[int]) -> Levers:
    """The fastest lossless ones over all batches, of those that were measured at the most of them."""
    rates: dict[str, dict[str, float]] = {}  # by batch: the same levers may stand in several rows of one
    for name, found in results.rows.items():
        if lossless(name, found):
            batch = name.rpartition("| ")[2]
            known = rates.setdefault(json.dumps(found["levers"], sort_keys=True), {})
            known[batch] = max(known.get(batch, 0.0), found["images_s_20"])
    if not rates:
        return best_levers(results, batches[0])
    most = max(len(each) for each in rates.values())
    widest = {name: sum(each.values()) / most for name, each in rates.items() if len(each) == most}
    return Levers(**json.loads(max(widest, key=lambda name: widest[name])))


def fastest(results: Results, batches: Sequence[int]) -> tuple[Levers, int]:
    """Levers and batch of the most images a second at 20 steps, without loss."""
    found = [
        (row["images_s_20"], batch, row["levers"])
        for name, row in results.rows.items()
        for batch in batches
        if lossless(name, row) and name.endswith(f"| {batch}")
    ]
    if not found:
        return best_levers(results, batches[0]), batches[0]
    _, batch, levers = max(found, key=lambda each: each[0])
    return Levers(**levers), batch


def write(path: Path, results: Results, batches: Sequence[int]) -> Path | None:
    """Put the choices into the engine's table; None where there is nothing to choose from yet."""
    if not any(lossless(name, found) for name, found in results.rows.items()):
        return None
    wanted, about = asdict(best(results, batches)), results.device
    steps = {
        2 * batch: found["step_ms"]
        for batch in batches
        for name, found in results.rows.items()
        if lossless(name, found) and name.endswith(f"| {batch}") and found["levers"] == wanted
    }
    measured = time.strftime("%Y-%m-%d", time.gmtime())
    write_table(path, Tuned(about["name"], about["versions"]["torch"], measured, wanted, choose_buckets(steps)))
    return path
