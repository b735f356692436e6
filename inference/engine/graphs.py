"""CUDA graphs of UNet calls, one for each shape: the whole call is launched at once instead of kernel by kernel.

A shape is called as usual the first time, which loads and chooses kernels, and captured the second time. What cannot
be captured is called as usual for good. Belongs to the thread that draws.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from torch import Tensor

    Call = Callable[[Mapping[str, Tensor]], Tensor]

log = logging.getLogger(__name__)

MOST_GRAPHS = 12  # graphs of one pool share their memory, but each keeps its launches, some tens of MB
MOST_SHAPES = 256  # whose calls are counted


class Replay(Protocol):
    """A captured call."""

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The output for inputs of the captured shapes; the tensor is the caller's own."""


class Capture(Protocol):
    """Captures calls of one UNet."""

    def __call__(self, call: Call, inputs: Mapping[str, Tensor]) -> Replay:
        """Capture a call that has been made with these shapes before.

        Raises:
            RuntimeError: it cannot be captured; out of memory is one.

        """


class GraphCache:
    """The captured shapes, least recently used out."""

    def __init__(self, capture: Capture, most: int = MOST_GRAPHS) -> None:
        """Keep at most `most` graphs of what `capture` captures."""
        self._capture = capture
        self._most = most
        self._replays: OrderedDict[Hashable, Replay] = OrderedDict()
        self._seen: Counter[Hashable] = Counter()
        self._refused: set[Hashable] = set()

    def __len__(self) -> int:
        return len(self._replays)

    def run(self, key: Hashable, call: Call, inputs: Mapping[str, Tensor]) -> Tensor:
        """The call's output, from a graph where there is one. `key` names all that a graph depends on."""
        if key in self._refused:
            return call(inputs)
        replay = self._replays.get(key)
        if replay is None:
            if len(self._seen) >= MOST_SHAPES:
                self._seen.clear()
            self._seen[key] += 1
            if self._seen[key] == 1:
                return call(inputs)
            replay = self._try(key, call, inputs)
            if replay is None:
                return call(inputs)
        self._replays.move_to_end(key)
        return replay(inputs)

    def _try(self, key: Hashable, call: Call, inputs: Mapping[str, Tensor]) -> Replay | None:
        try:
            replay = self._capture(call, inputs)
        except RuntimeError as problem:
            # for lack of memory: the graphs there are hold some, which the picture under way needs more
            log.warning("a UNet call of shape %s is not captured: %s", key, str(problem).split("\n", maxsplit=1)[0])
            self._replays.clear()
            self._seen.clear()
            self._refused.add(key)
            return None
        while len(self._replays) >= self._most:
            self._replays.popitem(last=False)
        self._replays[key] = replay
        return replay

    def forget(self) -> bool:
        """Let go of every graph and its memory, and say whether there were any; they are captured anew in time."""
        some = bool(self._replays)
        self._replays.clear()
        self._seen.clear()
        return some


class CudaCapture:
    """Captures with `torch.cuda.graph`; the graphs share one pool of memory, as only one of them runs at a time."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._alive: WeakSet[Any] = WeakSet()

    def __call__(self, call: Call, inputs: Mapping[str, Tensor]) -> Replay:
        """See `Capture`."""
        if not self._alive:
            # PyTorch's allocator asserts on a pool that comes again after it has lost its last graph
            self._pool = torch.cuda.graph_pool_handle()
        placed = {name: tensor.clone() for name, tensor in inputs.items()}
        drawing = torch.cuda.current_stream()
        # on a stream of its own, as capture will be: libraries set up their workspaces by stream
        side = torch.cuda.Stream()
        side.wait_stream(drawing)
        with torch.cuda.stream(side):
            call(placed)
        drawing.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            # thread-local: another checkpoint may be on its way to the device on the loader's thread
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                output = call(placed)
        finally:
            # a capture that broke off leaves its own stream behind as the thread's
            torch.cuda.set_stream(drawing)
        self._alive.add(graph)

        def replay(inputs: Mapping[str, Tensor]) -> Tensor:
            for name, tensor in inputs.items():
                placed[name].copy_(tensor)
            graph.replay()
            return output.clone()  # the graph's own is overwritten by the next of the pool

        return replay
