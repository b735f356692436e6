"""The training loop that both stages share: warm-up and warm-down, EMA, atomic saves, exact resumption."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn

_LOG_EVERY = 50
_CLIP = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How one stage trains; `steps` is where its warm-down ends."""

    steps: int
    batch: int
    rate: float
    seed: int = 0
    warmup: int = 200
    warmdown: float = 0.4
    ema: float = 0.999
    weight_decay: float = 0.01
    save_seconds: float = 120.0
    stop_after: float | None = None
    """Seconds after which this run saves and stops, short of `steps` if need be."""

    def rate_at(self, step: int) -> float:
        """Return the learning rate of `step`: up over `warmup`, level, then down to nearly nothing."""
        left = (self.steps - step) / max(1.0, self.warmdown * self.steps)
        return self.rate * min(1.0, (step + 1) / self.warmup, max(0.01, left))


@dataclass(slots=True)
class Outcome:
    """What a run of a stage left: its averaged weights, the steps done, and whether all were."""

    ema: dict[str, Tensor]
    step: int
    finished: bool


def device() -> torch.device:
    """Return the GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def step_generator(seed: int, step: int, where: torch.device | str = "cpu") -> torch.Generator:
    """Return the random numbers of one step; they depend on nothing else, so a restart draws the same."""
    return torch.Generator(where).manual_seed((seed * 1_000_003 + step) * 7919 + 17)


def save_atomically(value: Any, path: Path) -> None:
    """Write beside `path` and rename, so that a kill leaves the old save or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".partial")
    torch.save(value, fresh)
    fresh.replace(path)


class Run:
    """One stage's training: a module, its loss by step number, and the file it resumes from."""

    def __init__(self, module: nn.Module, loss: Callable[[int], Tensor], plan: Plan, path: Path) -> None:
        self._module, self._loss, self._plan, self._path = module, loss, plan, path
        self._optimizer = torch.optim.AdamW(
            module.parameters(), lr=plan.rate, betas=(0.9, 0.99), weight_decay=plan.weight_decay, fused=True
        )
        self._ema = {name: value.detach().clone() for name, value in module.state_dict().items()}
        self._step = 0
        if path.exists():
            self._restore()

    def _restore(self) -> None:
        state = torch.load(self._path, map_location=device(), weights_only=True)
        self._module.load_state_dict(state["module"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._ema, self._step = state["ema"], state["step"]

    def _save(self) -> None:
        state = {
            "module": self._module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "ema": self._ema,
            "step": self._step,
        }
        save_atomically(state, self._path)

    def go(self, title: str) -> Outcome:
        """Train until the plan's steps are done or its time is up, and save."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[loss]}"), refresh_per_second=1) as progress:
            task = progress.add_task(title, total=self._plan.steps, completed=self._step, loss="")
            finished = self._loop(lambda text: progress.update(task, completed=self._step, loss=text), title)
        return Outcome(self._ema, self._step, finished)

    def _loop(self, report: Callable[[str], None], title: str) -> bool:
        started = saved = time.monotonic()
        total, counted, first = 0.0, 0, self._step
        while self._step < self._plan.steps:
            total, counted = total + self._train_one(), counted + 1
            now = time.monotonic()
            if self._step % _LOG_EVERY == 0:
                pace = (self._step - first) * self._plan.batch / (now - started)
                line = f"loss {total / counted:.4f}, {pace:.0f} pictures/s"
                report(line)
                print(f"{title} step {self._step}: {line}", flush=True)
                total, counted = 0.0, 0
            if now - saved > self._plan.save_seconds:
                self._save()
                saved = time.monotonic()
            if self._plan.stop_after is not None and now - started > self._plan.stop_after:
                break
        self._save()
        return self._step >= self._plan.steps

    def _train_one(self) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = self._plan.rate_at(self._step)
        loss = self._loss(self._step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._module.parameters(), _CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._step += 1
        # A short memory at first, or the untrained start would weigh on every early average.
        keep = min(self._plan.ema, (1 + self._step) / (10 + self._step))
        with torch.no_grad():
            for name, value in self._module.state_dict().items():
                self._ema[name].lerp_(value, 1 - keep)
        return float(loss.detach())
