"""Faster at the price of other pictures; measured beside the rest, marked, and never chosen by `auto`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from inference.engine.compiling import twin_of

if TYPE_CHECKING:
    import torch

EVERY = 2


class CachedUnet:
    """DeepCache (Ma et al. 2023, arXiv 2312.00858): every other step only the outermost blocks run.

    The input of the last up block, which changes little from step to step, is kept from the last whole step. Called
    as the denoising step calls a UNet, for one batch that goes through one schedule together.
    """

    def __init__(self, unet: Any, every: int = EVERY) -> None:
        """`every` which step is whole; 1 for all."""
        self._unet = unet
        self._every = every
        self._kept: torch.Tensor | None = None
        self._since = 0
        self._last = float("-inf")
        unet.up_blocks[-1].register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, _: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        self._kept = inputs["hidden_states"] if "hidden_states" in inputs else args[0]

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor, **inputs: Any) -> tuple[torch.Tensor]:
        """One call; whole at the beginning of a schedule, for another shape, and every so many."""
        now = float(timestep[0])
        begins = now > self._last or self._kept is None or self._kept.shape[0] != sample.shape[0]
        self._last = now
        self._since = 0 if begins else (self._since + 1) % self._every
        if self._since == 0:
            answer: tuple[torch.Tensor] = self._unet(sample, timestep, **inputs)
            return answer
        return (self.shallow(sample, timestep, inputs["encoder_hidden_states"], inputs["added_cond_kwargs"]),)

    def shallow(self, sample: torch.Tensor, timestep: torch.Tensor, states: torch.Tensor, added: Any) -> torch.Tensor:
        """The UNet's outermost blocks around what was kept."""
        unet = self._unet
        embedding = unet.time_embedding(unet.get_time_embed(sample, timestep))
        embedding = embedding + unet.get_aug_embed(embedding, states, added)
        sample = unet.conv_in(sample)
        _, skipped = unet.down_blocks[0](sample, embedding)
        last = unet.up_blocks[-1]
        across = (sample, *skipped)[: len(last.resnets)]
        kept = self._kept
        hidden = last(hidden_states=kept, temb=embedding, res_hidden_states_tuple=across)
        output: torch.Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
        return output


def in_fp8(unet: Any) -> Any:
    """A twin whose linear layers compute in fp8, through torchao.

    Raises:
        ImportError: torchao is not installed.

    """
    torchao = import_module("torchao.quantization")
    twin = twin_of(unet)
    torchao.quantize_(twin, torchao.Float8DynamicActivationFloat8WeightConfig())
    return twin
