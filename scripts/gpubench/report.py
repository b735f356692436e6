"""What was measured: printed as it comes, kept in a file after each row, so that a run cut off loses one row."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from scripts.gpubench.rows import Row

PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "triton", "xformers", "torchao")
COLUMNS = (
    ("s/img 30", "s_image_30", "{:.3f}"),
    ("s/img 20", "s_image_20", "{:.3f}"),
    ("img/s 20", "images_s_20", "{:.3f}"),
    ("step ms", "step_ms", "{:.2f}"),
    ("it/s", "it_s", "{:.2f}"),
    ("% peak", "share_of_ceiling", "{:.1f}"),
    ("VAE ms", "vae_ms", "{:.1f}"),
    ("GB peak", "peak_gb", "{:.2f}"),
    ("warm s", "warm_up_s", "{:.1f}"),
)
NAME_WIDTH = 46


@dataclass
class Results:
    """One device's measurements. `rows` by a row's id; one that could not be measured has the key `skipped`."""

    device: dict[str, Any]
    path: Path | None = None
    ceilings: dict[str, float] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    accuracy: dict[str, Any] = field(default_factory=dict)
    cold_start: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path | None, device: dict[str, Any]) -> Results:
        """Go on where an earlier run on the same device with the same versions and size ended; else begin."""
        fresh = cls(device, path)
        if path is None or not path.is_file():
            return fresh
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            print(f"{path} is not JSON; it will be replaced")
            return fresh
        if found.get("device") != device:
            print(f"{path} is of another device, other versions or another size; it will be replaced")
            return fresh
        names = ("ceilings", "cost", "accuracy", "cold_start", "rows")
        return cls(device, path, **{name: found.get(name, {}) for name in names})

    def save(self) -> None:
        """Write all of it, whole or not at all."""
        if self.path is None:
            return
        values = {name: value for name, value in asdict(self).items() if name != "path"}
        values["written"] = datetime.now(UTC).isoformat(timespec="seconds")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        unfinished.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(self.path)

    def has(self, row: Row) -> bool:
        """Whether it was measured, or found impossible, with these levers; what failed otherwise is tried again."""
        found = self.rows.get(row.id)
        wanted = asdict(row.levers)
        return found is not None and "failed" not in found and found.get("levers", wanted) == wanted

    def value(self, who: str, name: str, batch: int, column: str) -> float | None:
        """One number of a row; None where it is not there."""
        found = self.rows.get(f"{who} | {name} | {batch}", {}).get(column)
        return None if found is None else float(found)

    def add(self, row: Row, found: Mapping[str, Any]) -> None:
        """Keep and print a row."""
        self.rows[row.id] = {"levers": asdict(row.levers), "lossy": row.lossy, **found}
        self.save()
        print_row(row.id, self.rows[row.id])


def describe_device(device: torch.device, size: int, steps: int) -> dict[str, Any]:
    """What makes two runs comparable."""
    found: dict[str, Any] = {"name": "cpu", "size": size, "steps": steps, "python": platform.python_version()}
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        found |= {"name": about.name, "gb": round(about.total_memory / 1e9, 1), "cuda": torch.version.cuda}
    return found | {"versions": {name: version for name in PACKAGES if (version := version_of(name))}}


def version_of(package: str) -> str | None:
    """As installed, None where it is not."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def print_head() -> None:
    """The table's columns. All times are of the device, with the host's part; s/img is over all of a batch."""
    print("who | what | pictures at once".ljust(NAME_WIDTH), *(title.rjust(9) for title, _, _ in COLUMNS))


def print_row(name: str, found: Mapping[str, Any]) -> None:
    """One line."""
    if reason := found.get("skipped") or found.get("failed"):
        print(name.ljust(NAME_WIDTH), "-", reason, flush=True)
        return
    cells = [style.format(found[key]) if found.get(key) is not None else "" for _, key, style in COLUMNS]
    tail = (
        f"  CHANGES PICTURES ({found['lossy']}): {found.get('difference', 0):.1%} off" if found.get("lossy") else ""
    )
    print(name.ljust(NAME_WIDTH), *(cell.rjust(9) for cell in cells), tail, flush=True)


def print_all(results: Results) -> None:
    """The whole table again, what was measured by earlier runs included."""
    print()
    print_head()
    for name, found in results.rows.items():
        print_row(name, found)
