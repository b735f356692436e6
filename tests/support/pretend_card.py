"""A CUDA card that is not there: its tensors are the CPU's in disguise, and it is as strict as a real one.

An operation over a tensor of the card and one of the host is refused, as CUDA refuses it, so that a tensor made in
the wrong place is found without a GPU; the numbers are real, in half precision, so that everything that looks at them
runs too. A CUDA graph runs again what was run while it was captured, on the very same tensors. Times and kernels are
not imitated; running out of memory is, on demand. See `pretend_card`.
"""

from __future__ import annotations

import threading
import weakref
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from safetensors import safe_open
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from inference.engine import straight

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

NAME = "Pretend Card"
CARD, HOST = torch.device("cuda:0"), torch.device("cpu")
ACROSS = {"aten::copy_", "aten::_to_copy", "aten::to", "aten::_has_compatible_shallow_copy_type"}
"""What CUDA does with a tensor of each side."""


class CardTensor(torch.Tensor):
    """Says that it is on the card; `held` is what it is made of."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls: type[Self], held: torch.Tensor) -> Self:
        made: Self = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]  # torch's own way
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=CARD,
        )
        made.held = held
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> CardTensor:
        if id(self) not in memo:
            made = CardTensor(self.held.clone())
            if isinstance(self, torch.nn.Parameter):
                made = torch.nn.Parameter(made, requires_grad=False)  # type: ignore[assignment]
            memo[id(self)] = made
        return memo[id(self)]

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"CardTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_function__(cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _of.copy_:
            _refuse_while_capturing(any(not isinstance(each, CardTensor) for each in args[:2]))
            args[0].copy_(_held(args[1])) if args[0] is _held(args[0]) else args[0].held.copy_(_held(args[1]))
            return _noted(func, args, {}, args[0])
        if func in AT_ONCE:  # these ask for a real card before they can be dispatched
            _look(func.__name__, args)
            _refuse_while_capturing(func in LOOKING)
            return _noted(func, args, {}, tree_map(_worn, func(*tree_map(_held, args))))
        with torch._C.DisableTorchFunctionSubclass():  # or what a host's tensor answers would wear this class
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return on_card(func, args, kwargs or {})


_of = torch.Tensor
LOOKING = frozenset({_of.__float__, _of.__bool__, _of.__int__, _of.item, _of.tolist})
"""For these the host waits for the card and reads."""
AT_ONCE = LOOKING | {_of.__getitem__, _of.__setitem__, _of.contiguous}


class NumbersToCard(TorchFunctionMode):
    """`torch.tensor`, which asks for a real card before it can be dispatched."""

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if func is torch.tensor and torch.device(options.get("device") or HOST).type == "cuda":
            options.pop("device")
            return func(*args, **options).to(CARD)
        return func(*args, **options)


class CardMode(TorchDispatchMode):
    """Within it tensors may be made on the card. Belongs to one thread, as every mode of torch."""

    def __enter__(self) -> Self:
        self._numbers = NumbersToCard()
        self._numbers.__enter__()
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *about: object) -> None:
        super().__exit__(*about)
        self._numbers.__exit__(*about)

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return on_card(func, args, kwargs or {})


def on_card(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation on what is held, after looking that everything is in one place."""
    name = func._schema.name
    flat, card = _look(name, (args, kwargs))
    if card:
        STRICT.check(name, flat)
    devices = [value for value in flat if isinstance(value, torch.device)]
    place = devices[0] if devices else (CARD if _leads(name, args, card) else HOST)
    _refuse_while_capturing(name in ACROSS and (place.type != "cuda" or len(card) < _tensors(flat)))
    found = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    if _writes(func):
        return _noted(func, args, kwargs, args[0])
    return _noted(func, args, kwargs, tree_map(_worn, found)) if place.type == "cuda" else found


def _refuse_while_capturing(wrong: bool) -> None:
    if wrong and Capture.current is not None:
        raise RuntimeError("operation not permitted when stream is capturing")


def _noted(func: Any, args: Any, kwargs: Any, found: Any) -> Any:
    if Capture.current is not None:
        Capture.current.add(func, args, kwargs, found)
    return found


def _tensors(flat: list[Any]) -> int:
    return sum(isinstance(value, torch.Tensor) for value in flat)


def _look(name: str, given: Any) -> tuple[list[Any], list[CardTensor]]:
    """All that an operation is given, and what of it is on the card; refuse what CUDA would."""
    flat, _ = tree_flatten(given)
    card = [value for value in flat if isinstance(value, CardTensor)]
    host = [value for value in flat if isinstance(value, torch.Tensor) and not isinstance(value, CardTensor)]
    if card and name not in ACROSS and any(tensor.ndim for tensor in host):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {name} got {[tuple(each.shape) for each in card]} "
            f"on the card and {[tuple(each.shape) for each in host]} on the host"
        )
    return flat, card


def _leads(name: str, args: Any, card: list[CardTensor]) -> bool:
    """Whether the answer is on the card; a copy's is where its target is."""
    if name == "aten::copy_":
        return isinstance(args[0], CardTensor)
    if name == "aten::to" and len(args) > 1 and isinstance(args[1], torch.Tensor):
        return isinstance(args[1], CardTensor)
    return bool(card)


def _held(value: Any) -> Any:
    if isinstance(value, CardTensor):
        return value.held
    return HOST if isinstance(value, torch.device) and value.type == "cuda" else value


def _worn(value: Any) -> Any:
    return CardTensor(value) if isinstance(value, torch.Tensor) and not isinstance(value, CardTensor) else value


def _writes(func: Any) -> bool:
    returned = func._schema.returns
    return len(returned) == 1 and returned[0].alias_info is not None and returned[0].alias_info.is_write


class Strictness:
    """What the card is made to do: refuse batches, count."""

    def __init__(self) -> None:
        self.most_rows: int | None = None
        self.refused = 0

    def check(self, name: str, flat: list[Any]) -> None:
        if self.most_rows is None or "conv" not in name:
            return
        if flat[0].shape[0] > self.most_rows:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than the card has.")


STRICT = Strictness()


class Graph:
    """What was run while it was captured, on the very tensors that it was run on: a replay sees no others."""

    def __init__(self) -> None:
        self.steps: list[tuple[Any, Any, Any, Any]] = []

    def add(self, func: Any, args: Any, kwargs: Any, found: Any) -> None:
        self.steps.append((func, args, kwargs, found))

    def replay(self) -> None:
        """Run it again; what each step gives goes to where it went when it was captured."""
        for func, args, kwargs, found in self.steps:
            again = func(*tree_map(_held, args), **tree_map(_held, kwargs))
            for old, new in zip(tree_flatten(found)[0], tree_flatten(again)[0], strict=True):
                if isinstance(old, CardTensor) and new is not old.held:
                    old.held.copy_(new)


class Capture:
    """`torch.cuda.graph`: one at a time, in a pool that has never lost all of its graphs."""

    pools: ClassVar[dict[int, weakref.WeakSet[Graph]]] = {}
    current: ClassVar[Graph | None] = None
    fails: ClassVar[bool] = False

    def __init__(self, graph: Graph, pool: int, capture_error_mode: str = "global") -> None:
        assert capture_error_mode == "thread_local", "or a checkpoint that is being loaded would break it"
        self._graph, self._pool = graph, pool

    def __enter__(self) -> None:
        known = Capture.pools.get(self._pool)
        if known is not None and not known:
            raise RuntimeError("INTERNAL ASSERT FAILED: it->second->use_count > 0")
        Capture.pools.setdefault(self._pool, weakref.WeakSet()).add(self._graph)
        if Capture.fails:
            raise torch.OutOfMemoryError("CUDA out of memory while capturing")
        Capture.current = self._graph

    def __exit__(self, *_: object) -> None:
        Capture.current = None


def new_pool() -> int:
    """`torch.cuda.graph_pool_handle`."""
    return len(Capture.pools) + 1


@contextmanager
def _nothing(*_: Any, **__: Any) -> Iterator[None]:
    yield


class _Event:
    def record(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...


class _Stream:
    def wait_stream(self, _: Any) -> None: ...


class _SafeOpen:
    """safetensors' own copies through pinned memory, which only a real card has."""

    def __init__(self, path: str, *, framework: str, device: str) -> None:
        self._opened = safe_open(path, framework=framework, device="cpu")
        self._device = torch.device(device)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def keys(self) -> list[str]:
        return list(self._opened.keys())

    def get_tensor(self, name: str) -> torch.Tensor:
        found: torch.Tensor = self._opened.get_tensor(name)
        return found.to(self._device)


GB = 1 << 30
PATCHED: dict[str, Any] = {
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "_lazy_init": lambda: None,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "synchronize": lambda *_: None,
    "empty_cache": lambda: None,
    "mem_get_info": lambda *_: (70 * GB, 80 * GB),
    "memory_reserved": lambda *_: 0,
    "memory_allocated": lambda *_: 0,
    "max_memory_allocated": lambda *_: 0,
    "reset_peak_memory_stats": lambda *_: None,
    "get_device_name": lambda *_: NAME,
    "get_device_capability": lambda *_: (9, 0),
    "get_device_properties": lambda *_: SimpleNamespace(name=NAME, total_memory=80 * GB, major=9, minor=0),
    "is_bf16_supported": lambda *_, **__: True,
    "Event": _Event,
    "Stream": _Stream,
    "stream": _nothing,
    "current_stream": lambda *_: _Stream(),
    "set_stream": lambda _: None,
    "CUDAGraph": Graph,
    "graph": Capture,
    "graph_pool_handle": new_pool,
}


@contextmanager
def pretend_card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Strictness]:
    """Until the end of it this process has a card, in every thread that begins in it."""
    torch._C._ensureCUDADeviceGuardSet()  # type: ignore[attr-defined]
    before = threading.Thread.run

    def run(thread: threading.Thread) -> None:
        with CardMode():
            before(thread)

    STRICT.most_rows, STRICT.refused = None, 0
    Capture.fails = False
    with monkeypatch.context() as patch:
        for name, value in PATCHED.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(threading.Thread, "run", run)
        patch.setattr(straight, "safe_open", _SafeOpen)
        # or a parameter moved to the card would stay the host's object with the card's data in it
        before_flag = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with CardMode():
                yield STRICT
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(before_flag)
