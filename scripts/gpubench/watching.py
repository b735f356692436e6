"""Times and memory of a row, and the device left as it was found."""

from __future__ import annotations

import gc
import statistics
import time
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class DoesNotFitError(RuntimeError):
    """The device has not enough memory for this row."""


class Peak:
    def __init__(self, device: torch.device) -> None:
        self._device = device

    def reset(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def bytes(self) -> int | None:
        """Of the allocator since the reset; None on a CPU."""
        return torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else None


@contextmanager
def memory_watched(device: torch.device) -> Iterator[Peak]:
    """Leaves the device as it was found, also after a row that did not fit."""
    if device.type == "cuda":  # what a row before this one held as it failed is let go only now
        gc.collect()
        torch.cuda.empty_cache()
    try:
        yield Peak(device)
    except torch.OutOfMemoryError as problem:
        raise DoesNotFitError(str(problem).split("\n", maxsplit=1)[0]) from None
    finally:
        gc.collect()
        torch._dynamo.reset()  # noqa: SLF001 - where torch documents it
        if device.type == "cuda":
            torch.cuda.empty_cache()


def mark(device: torch.device) -> Any:
    """A moment in the device's work, noted without waiting for it: stock may run ahead as it does without us."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def seconds_of(marks: Sequence[Any]) -> list[float]:
    if marks and not isinstance(marks[0], float):
        return [marks[0].elapsed_time(each) / 1000 for each in marks]  # the device has come to the last of them
    return list(marks)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def between(ticks: Sequence[float]) -> float:
    """Median seconds from step to step, without the first, which waits for what came before."""
    gaps = [later - earlier for earlier, later in pairwise(ticks)]
    return statistics.median(gaps[1:] or gaps or [0.0])
