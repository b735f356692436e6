"""The UNet with its levers set: attention kernels, fused projections, compilation, CUDA graphs.

LoRAs act through hooks on the modules, which compiled code and graphs would not notice. So what is fused or compiled
is a twin: other modules over the same weights, that no hook is ever put on. A batch with LoRAs runs the original,
kernel by kernel.
"""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

import torch

from inference.engine.attention import attention_context
from inference.engine.graphs import CudaCapture, GraphCache
from inference.engine.types import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

    from torch import Tensor

    from inference.engine.graphs import Capture
    from inference.engine.levers import Levers

log = logging.getLogger(__name__)

RECOMPILES = 64  # one for each batch size and width of block; torch's own 8 would be too few, and raise
REGIONAL_MODE, WHOLE_MODE = "default", "max-autotune-no-cudagraphs"


class FastUnet:
    """Called as the UNet is, in the way that the denoising step calls it; returns a tuple of one tensor."""

    def __init__(
        self, unet: Any, levers: Levers, *, capture: Capture | None = None, backend: str = "inductor"
    ) -> None:
        """Build what the levers need over the weights of `unet`, which stays as it is.

        Args:
            unet: on its device, in its precision, its attention processors set.
            levers: what to turn.
            capture: makes the CUDA graphs; None for torch's.
            backend: of `torch.compile`.

        Raises:
            CheckpointError: the levers contradict each other.

        """
        if levers.fused_qkv and levers.attention == "xformers":
            raise CheckpointError("IGEN_FUSED_QKV works with PyTorch's attention only, not with xformers")
        self.levers = levers
        self._unet = unet
        self._twin = twin_of(unet) if levers.twin else unet
        if levers.fused_qkv:
            fuse(unet, self._twin)
        if levers.compile != "off":
            _compile(self._twin, levers.compile, backend)
        self._graphs = GraphCache(capture or CudaCapture()) if levers.cuda_graphs else None
        self._compiled: set[Hashable] = set()

    @property
    def graphs(self) -> int:
        """How many shapes have been captured."""
        return 0 if self._graphs is None else len(self._graphs)

    def original(self, sample: Tensor, timestep: Tensor, **inputs: Any) -> tuple[Tensor]:
        """The UNet's own modules, hooks and all, with the attention kernels that were chosen."""
        with attention_context(self.levers.attention):
            answer: tuple[Tensor] = self._unet(sample, timestep, **inputs)
        return answer

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor,
        *,
        encoder_hidden_states: Tensor,
        added_cond_kwargs: Mapping[str, Tensor],
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """One UNet call; `return_dict` is there to be like the module's and has no other value."""
        assert not return_dict  # noqa: S101 - the caller's fault alone
        inputs = {
            "sample": sample,
            "timestep": timestep,
            "states": encoder_hidden_states,
            "text_embeds": added_cond_kwargs["text_embeds"],
            "time_ids": added_cond_kwargs["time_ids"],
        }
        with attention_context(self.levers.attention):
            if self._graphs is None:
                return (self._call(inputs),)
            return (self._graphs.run((_shape_of(inputs), self._uses_twin(inputs)), self._call, inputs),)

    def prepare(self, shapes: Iterable[Mapping[str, Tensor]]) -> None:
        """Compile for these inputs. Others run uncompiled for good: compiling takes seconds to minutes, not now."""
        if self.levers.compile == "off":
            return
        with torch.inference_mode(), attention_context(self.levers.attention):
            for given in shapes:
                # cloned here: compiled code is for tensors made in inference mode, as the engine's are, or not
                inputs = {name: tensor.clone() for name, tensor in given.items()}
                call_with(self._twin, inputs)
                self._compiled.add(_shape_of(inputs))

    def forget(self) -> bool:
        """Give back the memory of the graphs; whether there were any."""
        return self._graphs is not None and self._graphs.forget()

    def _uses_twin(self, inputs: Mapping[str, Tensor]) -> bool:
        return self.levers.compile == "off" or _shape_of(inputs) in self._compiled

    def _call(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return call_with(self._twin if self._uses_twin(inputs) else self._unet, inputs)


def call_with(unet: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Call a UNet, fast or not, as the denoising step does."""
    output: Tensor = unet(
        inputs["sample"],
        inputs["timestep"],
        encoder_hidden_states=inputs["states"],
        added_cond_kwargs={"text_embeds": inputs["text_embeds"], "time_ids": inputs["time_ids"]},
        return_dict=False,
    )[0]
    return output


def _shape_of(inputs: Mapping[str, Tensor]) -> Hashable:
    return tuple(tuple(tensor.shape) for tensor in inputs.values())


def twin_of(unet: Any) -> Any:
    """Other modules over the same weights: hooks and processors of one are none of the other."""
    shared = {id(tensor): tensor for tensor in (*unet.parameters(), *unet.buffers())}
    return copy.deepcopy(unet, shared)


@torch.no_grad()
def fuse(unet: Any, twin: Any) -> None:
    """Let the twin compute queries, keys and values in one product, without a second copy of their weights.

    The original's weights become views into the twin's: to_q, to_k and to_v are rows of to_qkv.
    """
    twin.fuse_qkv_projections()
    originals = dict(unet.named_modules())
    for name, module in twin.named_modules():
        parts = ("to_k", "to_v") if getattr(module, "is_cross_attention", False) else ("to_q", "to_k", "to_v")
        fused = getattr(module, "to_kv" if len(parts) == 2 else "to_qkv", None)  # noqa: PLR2004 - of the two above
        if fused is None:
            continue
        fused.requires_grad_(requires_grad=False)
        first = 0
        for part in parts:
            layer = getattr(originals[name], part)
            rows = layer.weight.shape[0]
            layer.weight.data = fused.weight.data[first : first + rows]
            if layer.bias is not None:
                layer.bias.data = fused.bias.data[first : first + rows]
            first += rows


def _compile(twin: Any, how: str, backend: str) -> None:
    # fullgraph: a break in the graph would cost more than compiling gains, and is a fault to hear of
    options: dict[str, Any] = {"backend": backend, "fullgraph": True, "dynamic": False}
    torch._dynamo.config.recompile_limit = RECOMPILES  # noqa: SLF001 - where torch documents it
    modal = backend == "inductor"  # other backends know no modes
    if how == "regional":
        twin.compile_repeated_blocks(**options, **({"mode": REGIONAL_MODE} if modal else {}))
    else:
        twin.compile(**options, **({"mode": WHOLE_MODE} if modal else {}))
