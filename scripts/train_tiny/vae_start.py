"""The autoencoder's encoder, and where its decoder's training starts: weights set by hand.

The encoder is not trained at all. By its weights a latent holds its 8x8 block's mean red, green and blue and
one slope, how much its shade grows downwards and, by half, rightwards. That says where an edge runs
through a block nearly as well as a learned code, costs no training, and gives the denoiser smooth latents
that cannot shift under it. The decoder starts as a smooth enlargement of the mean colours and learns edges.

Two further channels carry a constant and its negative from end to end, so that the group norms, which would
divide a flat picture's colour away, have something of fixed size to measure it by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from torch import Tensor, nn

_BANDS = 3
_SLOPE = 5
_CARRIED = 6
"""Channels that pass through: three bands, the constant, its negative, and the slope."""
_LIFT = 4.0
"""Above about this input the SiLU is a straight line."""
_LOG_VARIANCE = -7.4
_ENCODER_CONSTANT, _DECODER_CONSTANT = 4.0, 2.0
_FEATURE_GAIN = 3.0
_SLOPE_GAIN = 0.25
_SIDEWAYS = 0.5
_SHADE = (0.7, 0.55, -0.45)
"""What the slope is measured in: a mixture of red, green and blue in which no two of the named colours are near
each other. In plain brightness red, green, blue and purple are one."""


def _kernel(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows)


@torch.no_grad()
def set_start(vae: AutoencoderKL) -> None:
    """Set `vae`'s encoder for good, and its decoder to enlarge mean colours."""
    _set_encoder(vae.encoder, vae.config.latent_channels)
    _set_decoder(vae.decoder)
    for layer in (vae.quant_conv, vae.post_quant_conv):
        layer.weight.copy_(torch.eye(len(layer.weight))[:, :, None, None])
        layer.bias.zero_()


def _set_encoder(encoder: Any, latent_channels: int) -> None:
    point, box = _kernel([[0, 0, 0], [0, 1, 0], [0, 0, 0]]), _kernel([[0.25, 0.25, 0], [0.25, 0.25, 0], [0, 0, 0]])
    down, right = _kernel([[-1, -1, 0], [1, 1, 0], [0, 0, 0]]), _kernel([[-1, 1, 0], [-1, 1, 0], [0, 0, 0]])
    _enter(encoder.conv_in, point, _BANDS, _ENCODER_CONSTANT)
    _quiet(encoder, [resnet for block in encoder.down_blocks for resnet in block.resnets])
    level = 0
    for block in encoder.down_blocks:
        for layer in block.downsamplers or ():
            _carry(layer.conv, box, range(_CARRIED))
            # Each level adds its own, twice as wide difference: together they weigh a block by a ramp.
            for band, share in enumerate(_SHADE):
                layer.conv.weight[_SLOPE, band] = _SLOPE_GAIN * share * 2**level * (down + _SIDEWAYS * right)
            level += 1
    _lift(encoder.conv_norm_out, (*range(_BANDS), _SLOPE), _ENCODER_CONSTANT)
    out = encoder.conv_out
    out.weight.zero_()
    _bias(out)[:latent_channels] = -_LIFT
    _bias(out)[latent_channels:] = _LOG_VARIANCE
    for row, channel in enumerate((*range(_BANDS), _SLOPE)):
        out.weight[row, channel] = point


def _set_decoder(decoder: Any) -> None:
    point = _kernel([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
    smooth = _kernel([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    decoder.conv_in.weight *= _FEATURE_GAIN
    _enter(decoder.conv_in, point, _BANDS, _DECODER_CONSTANT)
    _quiet(decoder, [resnet for block in decoder.up_blocks for resnet in block.resnets])
    for block in decoder.up_blocks:
        for layer in block.upsamplers or ():
            _carry(layer.conv, smooth, range(_BANDS))
            _carry(layer.conv, point, range(_BANDS, _SLOPE))
    _lift(decoder.conv_norm_out, range(_BANDS), _DECODER_CONSTANT)
    _carry(decoder.conv_out, point, range(_BANDS))
    _bias(decoder.conv_out)[:_BANDS] = -_LIFT


def _enter(conv: nn.Conv2d, point: Tensor, bands: int, constant: float) -> None:
    """Take the bands in, make the two constants, and start the slope at nothing."""
    _carry(conv, point, range(bands))
    conv.weight[bands:_CARRIED] = 0
    _bias(conv)[bands:_CARRIED] = torch.tensor([constant, -constant, 0.0])


def _carry(conv: nn.Conv2d, kernel: Tensor, channels: range) -> None:
    conv.weight[channels] = 0
    _bias(conv)[channels] = 0
    for channel in channels:
        conv.weight[channel, channel] = kernel


def _quiet(half: Any, resnets: list[Any]) -> None:
    """Let residual branches and attention leave the carried channels alone."""
    for resnet in [*half.mid_block.resnets, *resnets]:
        resnet.conv2.weight[:_CARRIED] = 0
        resnet.conv2.bias[:_CARRIED] = 0
        if resnet.conv_shortcut is not None:
            _carry(resnet.conv_shortcut, torch.ones(1, 1), range(_CARRIED))
    for attention in half.mid_block.attentions:
        attention.to_out[0].weight[:_CARRIED] = 0
        attention.to_out[0].bias[:_CARRIED] = 0


def _lift(norm: nn.GroupNorm, channels: Any, constant: float) -> None:
    """Undo the last norm's scale and lift over the SiLU's bend."""
    spread = ((2 * constant**2 + 1.5) / norm.num_channels) ** 0.5
    norm.weight[list(channels)] = spread
    norm.bias[list(channels)] = _LIFT


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias
