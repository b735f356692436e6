"""The loaded checkpoints: as many as fit into a budget of memory, least recently used out.

Another checkpoint is loaded on a thread of its own while pictures of those that are there go on. One that is in use
is never put out, so a picture may wait until others are done.
"""

from __future__ import annotations

import gc
import logging
import threading
from typing import TYPE_CHECKING

import torch

from inference.engine.loaded import Loaded
from inference.engine.types import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from inference.engine.checkpoint import Checkpoint, Kind
    from inference.engine.pace import Pace
    from inference.engine.source import CheckpointSource

log = logging.getLogger(__name__)


class CheckpointPool:
    """Belongs to the engine's thread; only the loading itself runs elsewhere. The name "" is the engine's own."""

    def __init__(
        self,
        own: Checkpoint,
        source: CheckpointSource | None,
        budget_bytes: int | None,
        pace: Pace,
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        """Take over the engine's own checkpoint.

        Args:
            own: loaded already.
            source: where others come from; None for no others.
            budget_bytes: most bytes of weights at once; None for no bound.
            pace: learns how long work takes.
            post: runs a function on the engine's thread, soon.

        """
        self.own = own
        self._source = source
        self._budget = budget_bytes
        self._pace = pace
        self._post = post
        self._loaded: dict[str, Loaded] = {"": Loaded(own, pace)}
        self._loading: str | None = None
        self._failed: dict[str, CheckpointError] = {}
        self._turn = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The checkpoints that are loaded."""
        return tuple(self._loaded)

    @property
    def busy(self) -> bool:
        """Whether one is being loaded."""
        return self._loading is not None

    def get(self, name: str, kind: Kind, in_use: Collection[str]) -> Loaded | None:
        """A loaded checkpoint, or None while it is being loaded or there is no room for it yet.

        Raises:
            CheckpointError: it could not be loaded; the next call tries again.

        """
        self._turn += 1
        if (found := self._loaded.get(name)) is not None:
            found.last_used = self._turn
            return found
        if (failure := self._failed.pop(name, None)) is not None:
            raise failure
        if self._loading is None and self._make_room(name, in_use):
            self._load_in_background(name, kind)
        return None

    def forget_all(self) -> None:
        """Drop every checkpoint; the engine's own is left as it was found."""
        for loaded in self._loaded.values():
            loaded.use(())
        self._loaded.clear()

    def _make_room(self, name: str, in_use: Collection[str]) -> bool:
        if self._budget is None:
            return True
        while self._bytes() + self._needs(name) > self._budget:
            idle = [other for other in self._loaded if other not in in_use]
            if not idle:
                return not self._loaded  # larger than the whole budget: alone it may try
            out = min(idle, key=lambda other: self._loaded[other].last_used)
            log.info("checkpoint %s makes room for %s", self._loaded[out].name, name or self.own.info.checkpoint)
            del self._loaded[out]
            self._return_memory()
        return True

    def _return_memory(self) -> None:
        gc.collect()  # modules hold each other in circles
        if self.own.device.type == "cuda":
            torch.cuda.empty_cache()

    def _bytes(self) -> int:
        return sum(loaded.checkpoint.weight_bytes for loaded in self._loaded.values())

    def _needs(self, name: str) -> int:
        if not name or self._source is None:
            return self.own.weight_bytes
        return self._source.describe(name).bytes

    def _load_in_background(self, name: str, kind: Kind) -> None:
        source = self._source
        if source is None:
            raise CheckpointError(f"there is no checkpoint '{name}'")
        self._loading = name

        def run() -> None:
            found: Checkpoint | CheckpointError
            try:
                found = source.open(name, kind)
            except CheckpointError as problem:
                found = problem
            except Exception as problem:  # the edge of this thread; logged, and told to who waits
                log.exception("checkpoint %s could not be loaded", name)
                found = CheckpointError(f"checkpoint '{name}' could not be loaded: {type(problem).__name__}")
            self._post(lambda: self._arrived(name, found))

        # a thread that ends: one that stays would keep a second team of OpenMP threads, which slows torch down
        threading.Thread(target=run, name="igen-load", daemon=True).start()

    def _arrived(self, name: str, found: Checkpoint | CheckpointError) -> None:
        self._loading = None
        if isinstance(found, CheckpointError):
            self._failed[name] = found
        else:
            self._loaded[name] = Loaded(found, self._pace, name)
            self._loaded[name].last_used = self._turn
