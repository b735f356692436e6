"""What one composing child may use, so that a hostile picture costs one product and not the machine."""

from __future__ import annotations

import resource
import signal
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Memory in bytes (address space) for the child's life; processor and wall-clock seconds for one request."""

    memory_bytes: int = 1536 * 2**20
    cpu_s: int = 20
    wall_s: float = 60.0


def limit_process(limits: Limits) -> None:
    """The limits that hold for the whole process. A picture that needs more memory raises MemoryError."""
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def start_request(limits: Limits) -> None:
    """Give this request its processor time and its wall-clock time; the kernel ends the process that overdraws."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    allowed = int(used.ru_utime + used.ru_stime) + 1 + limits.cpu_s  # the limit counts whole seconds of the process
    resource.setrlimit(resource.RLIMIT_CPU, (allowed, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    signal.setitimer(signal.ITIMER_REAL, limits.wall_s)


def end_request() -> None:
    """An idle child may wait as long as it likes."""
    signal.setitimer(signal.ITIMER_REAL, 0)
