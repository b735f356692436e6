"""LoRAs: a shelf of files with a bounded cache, and a switch that puts a set of them on a checkpoint's modules.

A LoRA runs beside the weights, never in them: every module that it touches gets a forward hook that adds
scale * alpha / rank * up(down(x)). Taking the hooks off leaves the modules exactly as they were.

Cost: per touched module and LoRA two small products and an addition. A LoRA of rank 16 on all of SDXL's transformers
adds about 1.6 % to the UNet's arithmetic (16 * (1280 + 1280) / 1280² of its linear layers) and some 2,200 kernel
launches to a step, which a CUDA device at batch 1 will feel; weights fused on a copy would be the fast path there.
Switching sets costs microseconds a module. Under model offload, a LoRA that was taken while its module was away is
copied to the device call by call.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from inference.engine.lora_files import lora_names, lora_path, read_lora
from inference.engine.lora_layers import Layer, fit, parts_of
from inference.engine.types import LoraError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from pathlib import Path

    from inference.engine.lora_layers import Part

    Hook = Callable[[Any, tuple[Any, ...], torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Lora:
    """A LoRA made to fit one checkpoint; it holds no module of it.

    `sha256` is over the file, in hexadecimal; `unused` are names in the file that have no module in this checkpoint.
    """

    name: str
    sha256: str
    layers: tuple[Layer, ...]
    unused: tuple[str, ...] = ()

    @property
    def changes_prompts(self) -> bool:
        """Whether it touches a text encoder, so that a prompt means something else with it."""
        return any(layer.part != "unet" for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(layer.nbytes for layer in self.layers)


class LoraShelf:
    """The LoRAs in one folder. What was taken lately is kept, at most `keep_bytes` of it; any thread may call.

    A LoRA that leaves the cache while a switch uses it lives until the switch lets go of it.
    """

    def __init__(self, folder: Path | None, *, keep_bytes: int) -> None:
        self.folder, self.keep_bytes = folder, keep_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str], tuple[Hashable, Lora]] = OrderedDict()

    def names(self) -> tuple[str, ...]:
        """Names that `take` accepts, sorted."""
        return lora_names(self.folder)

    def check(self, name: str) -> None:
        """Look whether there is a LoRA of this name, without reading it.

        Raises:
            UnknownLoraError: there is none.

        """
        lora_path(self.folder, name)

    def take(self, name: str, parts_key: str, unet: Any, text_encoders: Sequence[Any]) -> Lora:
        """A LoRA on the modules' device and in their type. A file that was replaced is read again.

        Args:
            name: of a file in the folder, without its suffix.
            parts_key: what tells this checkpoint's modules from another's.
            unet: the denoiser.
            text_encoders: one or two; None stands for one that is not there.

        Raises:
            UnknownLoraError: there is none of this name.
            LoraError: it cannot be used with this checkpoint, saying why.

        """
        path = lora_path(self.folder, name)
        state = _state(path)
        with self._lock:
            known = self._kept.get((name, parts_key))
            if known is not None and known[0] == state:
                self._kept.move_to_end((name, parts_key))
                return known[1]
            self._kept.pop((name, parts_key), None)
            file = read_lora(name, path)
            layers, unused = fit(name, file, parts_of(unet, text_encoders))
            lora = Lora(name, file.sha256, layers, unused)
            self._kept[name, parts_key] = (state, lora)
            self._shrink()
            return lora

    def forget(self, parts_key: str) -> None:
        """Let go of all that was made for a checkpoint."""
        with self._lock:
            for key in [key for key in self._kept if key[1] == parts_key]:
                del self._kept[key]

    @property
    def kept_bytes(self) -> int:
        """Bytes of tensors in the cache."""
        with self._lock:
            return self._bytes()

    def _bytes(self) -> int:
        return sum(lora.nbytes for _, lora in self._kept.values())

    def _shrink(self) -> None:
        while self._kept and self._bytes() > self.keep_bytes:
            self._kept.popitem(last=False)


def _state(path: Path) -> Hashable:
    try:
        found = path.stat()
    except OSError:  # gone since; reading says so
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


class LoraSwitch:
    """Puts sets of LoRAs on one checkpoint's modules; used by the thread that runs them."""

    def __init__(self, unet: Any, text_encoders: Sequence[Any]) -> None:
        parts = parts_of(unet, text_encoders)
        self._modules = {(part, path): item for part, root in parts.items() for path, item in root.named_modules()}
        self._applied: tuple[tuple[Lora, float], ...] = ()
        self._handles: list[Any] = []

    @property
    def applied(self) -> tuple[tuple[Lora, float], ...]:
        """What is on the modules now."""
        return self._applied

    def apply(self, uses: tuple[tuple[Lora, float], ...]) -> None:
        """Make the modules run with exactly these, which add up; `()` takes all off.

        Raises:
            LoraError: one was made for another checkpoint. None is on the modules then.

        """
        if self._is_applied(uses):
            return
        self._clear()
        sides: defaultdict[tuple[Part, str], list[tuple[Layer, float]]] = defaultdict(list)
        for lora, scale in uses:
            for layer in lora.layers if scale else ():
                sides[layer.part, layer.path].append((layer, scale * layer.factor))
        if missing := sides.keys() - self._modules.keys():
            raise LoraError(f"a LoRA was made for another checkpoint: this one has no {'.'.join(min(missing))}")
        for place, layers in sides.items():
            module = self._modules[place]
            self._handles.append(module.register_forward_hook(_side_path(module, layers)))
        self._applied = uses

    def _is_applied(self, uses: tuple[tuple[Lora, float], ...]) -> bool:
        return len(uses) == len(self._applied) and all(
            lora is other and scale == used for (lora, scale), (other, used) in zip(uses, self._applied, strict=True)
        )

    def _clear(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._applied = ()


def _side_path(module: Any, layers: Sequence[tuple[Layer, float]]) -> Hook:
    """A hook that adds what the layers say to the module's output."""
    side = _through_linear if isinstance(module, torch.nn.Linear) else _through_convolution

    def hook(of: Any, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        for layer, factor in layers:
            output = torch.add(output, side(of, layer, args[0]), alpha=factor)
        return output

    return hook


def _through_linear(_: Any, layer: Layer, x: torch.Tensor) -> torch.Tensor:
    down, up = layer.down.to(x.device), layer.up.to(x.device)
    return functional.linear(functional.linear(x, down), up)


def _through_convolution(module: Any, layer: Layer, x: torch.Tensor) -> torch.Tensor:
    kernel = layer.down if layer.mid is None else layer.mid
    if layer.mid is not None:
        x = functional.conv2d(x, layer.down.to(x.device))
    x = functional.conv2d(x, kernel.to(x.device), None, module.stride, module.padding, module.dilation)
    return functional.conv2d(x, layer.up.to(x.device))
