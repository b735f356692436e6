"""A VAE that overflows in half precision, rescaled so that it does not, without other weights.

SDXL's VAE adds up activations past 65504, the largest number of fp16. Everything that it adds up is read through a
group normalisation, whose output does not change when its input is multiplied by a constant and its epsilon by the
constant's square. So each convolution that writes to the sum is made smaller by a power of two, and the pictures stay
what they were: to the last bits in float32, and in fp16 to its rounding, as the smallest weights become subnormal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

FACTOR = 2.0**-5
"""Leaves room for sums up to two million, 32 times what fp16 holds; the decoder looks whether it was enough."""


@torch.no_grad()
def rescale(vae: Any, factor: float = FACTOR) -> None:
    """Make the activations of an AutoencoderKL smaller by `factor`, a power of two, in place.

    Raises:
        ValueError: it has layers whose sums are not known to be read through a normalisation alone; nothing was
            changed.

    """
    plan = _Plan()
    for half in (vae.encoder, vae.decoder):
        plan.layer(half.conv_in)
        for block in (*_side_blocks(half), half.mid_block):
            _plan_block(block, plan)
        plan.norm(half.conv_norm_out)
    for tensor in plan.tensors:
        tensor.mul_(factor)
    for norm in plan.norms:
        norm.eps *= factor**2


class _Plan:
    """What is to be made smaller; noted first, so that a VAE is changed as a whole or not at all."""

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []
        self.norms: list[Any] = []

    def norm(self, norm: Any) -> None:
        if not isinstance(norm, nn.GroupNorm):
            raise ValueError("this VAE is not normalised as expected")  # noqa: TRY004 - of the model, not an argument
        self.norms.append(norm)

    def layer(self, layer: Any) -> None:
        """One that reads what is as it was, and writes what is to be smaller."""
        self.tensors.append(layer.weight)
        self.bias(layer)

    def bias(self, layer: Any) -> None:
        """Of a layer that reads what is smaller already."""
        if layer.bias is not None:
            self.tensors.append(layer.bias)


def _side_blocks(half: Any) -> list[Any]:
    blocks = getattr(half, "down_blocks", None)
    return list(half.up_blocks if blocks is None else blocks)


def _plan_block(block: Any, plan: _Plan) -> None:
    for resnet in block.resnets:
        plan.norm(resnet.norm1)
        plan.layer(resnet.conv1)  # what it writes is read by norm2 alone
        plan.norm(resnet.norm2)
        plan.layer(resnet.conv2)
        if resnet.conv_shortcut is not None:
            plan.bias(resnet.conv_shortcut)
    for attention in getattr(block, "attentions", None) or ():
        if attention is not None:
            if attention.rescale_output_factor != 1:
                raise ValueError("an attention of this VAE scales what it adds")
            plan.norm(attention.group_norm)
            plan.layer(attention.to_out[0])
    for sampler in (*(getattr(block, "downsamplers", None) or ()), *(getattr(block, "upsamplers", None) or ())):
        if getattr(sampler, "norm", None) is not None or sampler.conv is None:
            raise ValueError("a sampler of this VAE is not a convolution alone")
        plan.bias(sampler.conv)
