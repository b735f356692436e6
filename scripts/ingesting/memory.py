"""This process's memory, from the kernel's own account of it."""

from __future__ import annotations

from pathlib import Path

GOAL_MB = 80


class Memory:
    """Resident memory from now on. What the process held when this was made is `idle_mb`."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
        self.idle_mb = _status("VmRSS")

    @property
    def above_mb(self) -> float:
        """The peak since then, above idle."""
        return _status("VmHWM") - self.idle_mb


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024
