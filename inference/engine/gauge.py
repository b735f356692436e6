"""Measures the levers on the device, in some milliseconds to a second each, when a checkpoint has been loaded.

What cannot be told so quickly is left: compiling takes longer than it could gain before anyone knows that it gains.
"""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from inference.engine.attention import attention_context, choose_attention
from inference.engine.compiling import FastUnet, call_with
from inference.engine.counting import PIXELS_PER_LATENT
from inference.engine.half_vae import rescale
from inference.engine.tuning import fastest, median_s

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from inference.engine.levers import Levers

    Clock = Callable[[Callable[[], object]], float]

log = logging.getLogger(__name__)

TOKENS = 77
GUIDED_ROWS = 2
PROBE_LATENTS = 64  # a side; 512 pixels are enough to tell one precision of the VAE from the other
SAME_PICTURE = 0.02  # largest relative error of the VAE in half precision against float32


def device_clock(device: torch.device) -> Clock:
    """Seconds of a call until the device is idle again, what it takes to launch the kernels included."""

    def clock(call: Callable[[], object]) -> float:
        _wait(device)
        started = time.perf_counter()
        call()
        _wait(device)
        return time.perf_counter() - started

    return clock


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True, slots=True)
class Probe:
    """Of what to measure: the checkpoint's own size in pixels, and how many numbers its micro-conditioning has."""

    height: int
    width: int
    ids: int = 6
    rows: int = GUIDED_ROWS


def probe_inputs(unet: Any, probe: Probe) -> dict[str, Tensor]:
    """Random inputs of one UNet call, by the names that `FastUnet` has for them."""
    config = unet.config
    weight = next(unet.parameters())
    make = partial(torch.randn, device=weight.device, dtype=weight.dtype)
    pooled = config.projection_class_embeddings_input_dim - probe.ids * config.addition_time_embed_dim
    size = (probe.height // PIXELS_PER_LATENT, probe.width // PIXELS_PER_LATENT)
    return {
        "sample": make(probe.rows, config.in_channels, *size),
        "timestep": torch.full((probe.rows,), 500.0, device=weight.device),
        "states": make(probe.rows, TOKENS, config.cross_attention_dim),
        "text_embeds": make(probe.rows, pooled),
        "time_ids": torch.full((probe.rows, probe.ids), float(probe.height), device=weight.device).to(weight.dtype),
    }


class DeviceGauge:
    """Satisfies `levers.Gauge` for one checkpoint on its device."""

    def __init__(
        self, unet: Any, vae: Any | None, device: torch.device, probe: Probe, *, clock: Clock | None = None
    ) -> None:
        """`vae` is None where it is not on the device to stay; `clock` gives a call's seconds."""
        self._unet = unet
        self._vae = vae
        self._device = device
        self._probe = probe
        self._clock = clock or device_clock(device)

    @torch.inference_mode()
    def choose(self, lever: str, levers: Levers) -> Any:
        """See `levers.Gauge`."""
        try:
            return self._choose(lever, levers)
        except torch.OutOfMemoryError:
            log.warning("%s is not measured for lack of memory", lever)
            torch.cuda.empty_cache()
            return None

    def _choose(self, lever: str, levers: Levers) -> Any:
        if lever == "attention":
            return choose_attention(self._unet, "auto", self._device, self._fastest_attention)
        if lever == "vae":
            return self._choose_vae()
        if lever == "compile" or (lever == "fused_qkv" and levers.attention == "xformers"):
            return None
        return self._choose_switch(lever, levers)

    def _seconds(self, call: Callable[[], object]) -> float:
        return median_s(call, self._clock)

    # ---- attention, alone

    def _fastest_attention(self, names: Sequence[str]) -> str:
        tensors = [self._heads(*shape) for shape in self._attention_shapes()]
        runs = {name: partial(_attend, name, tensors) for name in names}
        return fastest(runs, self._seconds)

    def _attention_shapes(self) -> list[tuple[int, int, int]]:
        """Heads, tokens and channels of a head, for each level of the UNet that attends to itself."""
        config, probe = self._unet.config, self._probe
        heads = config.num_attention_heads or config.attention_head_dim
        found = []
        for level, kind in enumerate(config.down_block_types):
            if "CrossAttn" in kind:
                count = heads[level] if isinstance(heads, list | tuple) else heads
                side = PIXELS_PER_LATENT * 2**level
                tokens = (probe.height // side) * (probe.width // side)
                found.append((count, tokens, config.block_out_channels[level] // count))
        return found

    def _heads(self, heads: int, tokens: int, channels: int) -> Tensor:
        weight = next(self._unet.parameters())
        return torch.randn(self._probe.rows, heads, tokens, channels, device=weight.device, dtype=weight.dtype)

    # ---- the whole UNet

    def _choose_switch(self, lever: str, levers: Levers) -> bool:
        inputs = probe_inputs(self._unet, self._probe)

        def run(value: bool) -> Callable[[], object]:
            changes: dict[str, Any] = {lever: value}
            with torch.inference_mode(mode=False):  # weights made here stay, and are to be like all others
                fast = FastUnet(self._unet, replace(levers, compile="off", **changes))
            return lambda: call_with(fast, inputs)

        # the second is only built when its turn comes: it may need memory that the first has not left
        made: dict[str, Callable[[], object]] = {}

        def later() -> object:
            if "on" not in made:
                made["on"] = run(True)
                made["on"]()  # a graph is captured at the second call
            return made["on"]()

        return fastest({"off": run(False), "on": later}, self._seconds) == "on"

    # ---- the VAE

    def _choose_vae(self) -> str | None:
        if self._vae is None:
            return None
        if self._vae.dtype != torch.float32:
            return "fp16"  # it says itself that half precision is enough for it
        half = halved(copy.deepcopy(self._vae))
        if half is None:
            return "fp32"
        latents = torch.randn(1, self._vae.config.latent_channels, PROBE_LATENTS, PROBE_LATENTS, device=self._device)
        exact, rounded = _decode(self._vae, latents), _decode(half, latents)
        error = float((rounded - exact).norm() / exact.norm())
        if not error <= SAME_PICTURE:  # so that what is not a number does not pass
            log.info("the VAE stays in float32: in half precision it is wrong by %.3g", error)
            return "fp32"
        runs = {"fp32": partial(_decode, self._vae, latents), "fp16": partial(_decode, half, latents)}
        return fastest(runs, self._seconds)


def halved(vae: Any) -> Any | None:
    """The VAE itself, rescaled and in half precision; None where its architecture is not known to allow that."""
    try:
        rescale(vae)
    except (ValueError, AttributeError) as problem:
        log.info("the VAE stays in float32: %s", problem)
        return None
    return vae.to(dtype=torch.float16)


def _decode(vae: Any, latents: Tensor) -> Tensor:
    decoded: Tensor = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype), return_dict=False)[0]
    return decoded.float()


def _attend(name: str, tensors: Sequence[Tensor]) -> None:
    if name == "xformers":
        from xformers.ops import memory_efficient_attention  # noqa: PLC0415 - an option that may not be installed

        for tensor in tensors:
            rows = tensor.flatten(0, 1)
            memory_efficient_attention(rows, rows, rows)
        return
    with attention_context(name):
        for tensor in tensors:
            scaled_dot_product_attention(tensor, tensor, tensor)
