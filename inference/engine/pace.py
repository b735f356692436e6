"""How long the device takes for each kind of work, as measured, and what follows for a job that asks to be let in.

Plain arithmetic over seconds that others measure: no clock is read here and nothing is drawn.
"""

from __future__ import annotations

import bisect
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from inference.engine.counting import count_steps
from inference.engine.types import Predicted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from inference.engine.types import PictureSpec

WorkKind = Literal["unet", "vae_decode", "vae_encode", "text"]

WEIGHT = 0.2  # of a new measurement in the running mean: about the last ten count
SURPRISE = 4.0  # a measurement counts as at most so many times the mean, so that one stall is forgotten soon
MAX_BUCKETS = 512  # sizes are the callers' choice; the oldest measured goes first


@dataclass(frozen=True, slots=True)
class Bucket:
    """Work whose time is comparable: one model's, of one size in pixels and one number of rows or pictures."""

    model: str
    kind: WorkKind
    height: int
    width: int
    rows: int

    @property
    def amount(self) -> int:
        """What the time is taken to grow with; text has no pixels."""
        return max(1, self.height * self.width) * max(1, self.rows)


@dataclass(slots=True)
class Mean:
    """Seconds of one call, and how many calls were measured."""

    seconds: float
    calls: int = 1


@dataclass(frozen=True, slots=True)
class Load:
    """What one picture takes: calls of the UNet, the device's seconds for each as its share of a batch, and the rest.

    `first_s` is done before the first call (text, encoding a picture), `last_s` after the last (decoding).
    """

    calls: int
    call_s: float
    first_s: float = 0.0
    last_s: float = 0.0

    @property
    def seconds(self) -> float:
        """The device's time in all."""
        return self.first_s + self.calls * self.call_s + self.last_s

    def after(self, calls: int) -> Load:
        """What is left once so many calls were made."""
        return replace(self, calls=max(0, self.calls - calls), first_s=0.0)


class Pace:
    """Running means of measured seconds. May be used from several threads."""

    def __init__(self) -> None:
        """Nothing is known at first."""
        self._lock = threading.Lock()
        self._means: dict[Bucket, Mean] = {}

    def ran(self, kind: WorkKind, height: int, width: int, rows: int, seconds: float, *, model: str = "") -> None:
        """Take in the measured seconds of one call. Sizes in pixels; `rows` are a batch's rows or pictures.

        A bucket's first call counts only until the second: it compiles, allocates and tunes.
        """
        if seconds < 0:
            return
        bucket = Bucket(model, kind, height, width, rows)
        with self._lock:
            known = self._means.pop(bucket, None)
            while len(self._means) >= MAX_BUCKETS:
                del self._means[next(iter(self._means))]
            self._means[bucket] = Mean(seconds) if known is None else _learned(known, seconds)

    def seconds(self, kind: WorkKind, height: int, width: int, rows: int, *, model: str = "") -> float | None:
        """Expected seconds of one call; None where no call of this kind has been measured.

        A size not seen lies on the line between its nearest neighbours in pixels times rows; beyond the least and the
        largest seen, time is proportional to that. A model not seen is taken to be like the others.
        """
        wanted = Bucket(model, kind, height, width, rows)
        with self._lock:
            exact = self._means.get(wanted)
            if exact is not None:
                return exact.seconds
            same_kind = [(bucket, mean) for bucket, mean in self._means.items() if bucket.kind == kind]
        own = [(bucket, mean) for bucket, mean in same_kind if bucket.model == model]
        return _on_the_line(wanted.amount, [(bucket.amount, mean.seconds) for bucket, mean in own or same_kind])

    def row_seconds(self, height: int, width: int, rows: int, *, model: str = "") -> float | None:
        """Expected seconds of the UNet for one row of a batch of `rows`."""
        whole = self.seconds("unet", height, width, rows, model=model)
        return None if whole is None else whole / max(1, rows)

    def load(self, spec: PictureSpec, *, rows_together: int = 0, model: str = "", refiner: str = "") -> Load | None:
        """What a picture takes; None where the UNet has not been measured yet.

        `rows_together` is the batch that its steps will probably share, 0 for a batch of its own; `model` and
        `refiner` are the names that measurements were given under.
        """
        own_rows = 2 if spec.guided else 1
        rows = max(rows_together, own_rows)
        steps = count_steps(spec)
        passes = [(steps.base, spec.height, spec.width, model)]
        if spec.refiner is not None:
            passes.append((steps.refiner, spec.height, spec.width, refiner))
        if spec.hires is not None:
            passes.append((steps.hires, spec.hires.height, spec.hires.width, model))
        paces = [self.row_seconds(height, width, rows, model=name) for _, height, width, name in passes]
        if any(pace is None for pace in paces):
            return None
        calls = sum(count for count, *_ in passes)
        drawing = sum(entry[0] * (pace or 0.0) * own_rows for entry, pace in zip(passes, paces, strict=True))
        return Load(calls, drawing / calls, self._before(spec, model), self._after(spec, model))

    def _before(self, spec: PictureSpec, model: str) -> float:
        text = self.seconds("text", 0, 0, 1, model=model) or 0.0
        encode = self.seconds("vae_encode", spec.height, spec.width, 1, model=model) or 0.0
        return text + (encode if spec.init is not None else 0.0)

    def _after(self, spec: PictureSpec, model: str) -> float:
        decode = self.seconds("vae_decode", spec.height, spec.width, 1, model=model) or 0.0
        if spec.hires is None:
            return decode
        size = (spec.hires.height, spec.hires.width)
        through = self.seconds("vae_encode", *size, 1, model=model) or 0.0
        large = self.seconds("vae_decode", *size, 1, model=model) or 0.0
        if spec.hires.upscaler == "latent":
            return large
        return decode + through + large


def _learned(known: Mean, seconds: float) -> Mean:
    if known.calls == 1:
        return Mean(seconds, 2)
    bounded = min(seconds, SURPRISE * known.seconds)
    return Mean(known.seconds + WEIGHT * (bounded - known.seconds), known.calls + 1)


def _on_the_line(amount: int, points: Iterable[tuple[int, float]]) -> float | None:
    """Piecewise linear through the points, never falling, proportional beyond both ends."""
    line = _rising(sorted(points))
    if not line:
        return None
    place = bisect.bisect_left(line, (amount, 0.0))
    if place == 0 or place == len(line):
        nearest, seconds = line[min(place, len(line) - 1)]
        return seconds * amount / nearest
    (low, fast), (high, slow) = line[place - 1], line[place]
    return fast + (slow - fast) * (amount - low) / (high - low)


def _rising(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """One point an amount (the slowest), each at least as slow as those before it."""
    line: list[tuple[int, float]] = []
    for amount, seconds in points:
        slowest = max(seconds, line[-1][1]) if line else seconds
        if line and line[-1][0] == amount:
            line[-1] = (amount, slowest)
        else:
            line.append((amount, slowest))
    return line


def predict(
    running: Sequence[Load], waiting: Sequence[Load | None], new: Sequence[Load | None], *, slots: int
) -> Predicted:
    """When a new job's first picture would get a slot, and how long it would then take to its last pixel.

    Args:
        running: what is left of the pictures in slots.
        waiting: the pictures in the queue, in order.
        new: the new job's pictures, which come after those.
        slots: pictures under way at once.

    Every picture in a slot makes a call by turns, so that the one with the fewest calls left leaves first, after that
    many rounds; the next in the queue takes its place. Pictures of unknown pace make the answer unknown, but for the
    start where a slot is free at once.

    """
    ahead = [*running, *waiting]
    if any(load is None for load in ahead):
        return Predicted(queue_s=0.0 if len(ahead) < slots else None)
    known = [load for load in ahead if load is not None]
    own = [load for load in new if load is not None]
    if len(own) < len(new) or not own:
        return Predicted(queue_s=_Device(slots, known).until_started(len(known)))
    device = _Device(slots, [*known, *own])
    starts = device.until_started(len(known))
    return Predicted(queue_s=starts, run_s=device.until_done(set(range(len(known), len(known) + len(own)))) - starts)


class _Device:
    """Plays the rounds of a device through, in seconds from now. Quadratic in the number of pictures."""

    def __init__(self, slots: int, loads: Sequence[Load]) -> None:
        self._queue = list(enumerate(loads))[::-1]
        self._slots = max(1, slots)
        self._under_way: dict[int, Load] = {}
        self._now = 0.0
        self._started: dict[int, float] = {}
        self._done: dict[int, float] = {}
        self._admit()

    def until_started(self, picture: int) -> float:
        """When a picture gets its slot; where there is no such picture, when the next one would."""
        while picture not in self._started:
            if not self._queue and len(self._under_way) < self._slots:
                return self._now
            self._round()
        return self._started[picture]

    def until_done(self, pictures: set[int]) -> float:
        """When the last of them is decoded."""
        while not pictures <= self._done.keys():
            self._round()
        return max(self._done[picture] for picture in pictures)

    def _admit(self) -> None:
        while self._queue and len(self._under_way) < self._slots:
            picture, load = self._queue.pop()
            self._started[picture] = self._now
            self._now += load.first_s
            self._under_way[picture] = load

    def _round(self) -> None:
        """As many calls of every picture as the one with the fewest has left; then it leaves."""
        calls = min(load.calls for load in self._under_way.values())
        self._now += calls * sum(load.call_s for load in self._under_way.values())
        left = {picture: load.after(calls) for picture, load in self._under_way.items()}
        for picture, load in left.items():
            if not load.calls:
                self._now += load.last_s
                self._done[picture] = self._now
        self._under_way = {picture: load for picture, load in left.items() if load.calls}
        self._admit()
