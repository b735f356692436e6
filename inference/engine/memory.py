"""Where a checkpoint's modules wait and how large a piece the VAE works on, for devices of little memory."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from inference.engine.counting import PIXELS_PER_LATENT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

log = logging.getLogger(__name__)

MemoryMode = Literal["resident", "tiled", "offload"]
"""`resident`: everything on the device, the VAE works on whole pictures. `tiled`: the VAE works on one picture at a
time, in tiles. `offload`: as `tiled`, and the text encoders and the VAE wait in host memory until they are needed."""
MEMORY_MODES: tuple[str, ...] = ("auto", *get_args(MemoryMode))

TILE_PIXELS = 512  # a side; SDXL's own sample size, diffusers' default, would not tile 1024x1024 at all
SPARE = 0.92  # of the free memory: the rest is for the allocator's fragments and the libraries' workspaces


@dataclass(frozen=True, slots=True)
class MemoryNeeds:
    """Bytes on the device, estimated by counting; `needs_of` says how.

    `waiting` is the part of `weights` that `offload` keeps in host memory; of it only the text encoders or the VAE
    are on the device at once, `largest_waiting` at most.
    """

    weights: int
    waiting: int
    largest_waiting: int
    step: int
    decode: int
    decode_tile: int

    @property
    def resident(self) -> int:
        """With everything on the device."""
        return self.weights + max(self.step, self.decode)

    @property
    def tiled(self) -> int:
        """With the VAE in tiles."""
        return self.weights + max(self.step, self.decode_tile)

    @property
    def offload(self) -> int:
        """With what can wait in host memory."""
        return self.weights - self.waiting + max(self.step, self.largest_waiting + self.decode_tile)


def needs_of(
    unet: Any, text_encoders: Sequence[Any], vae: Any, *, height: int, width: int, rows: int, pictures: int = 1
) -> MemoryNeeds:
    """What drawing takes, in `rows` of a UNet batch and with `pictures` in one VAE call.

    Weights are counted exactly. Activations are derived from the architecture: the VAE's last block holds about four
    maps of its second channel count at full size (SDXL in fp16 at 1024x1024: 4 x 256 x 2 bytes x 1 Mpixel = 2 GiB);
    a UNet row about forty maps of its first channel count at the latents' size (SDXL: 0.4 GiB).
    """
    apart = (sum(_bytes_of(encoder) for encoder in text_encoders), _bytes_of(vae))
    area = height * width
    latents = area // PIXELS_PER_LATENT**2
    channels = vae.config.block_out_channels
    per_pixel = 4 * channels[min(1, len(channels) - 1)] * _element(vae)
    return MemoryNeeds(
        weights=_bytes_of(unet) + sum(apart),
        waiting=sum(apart),
        largest_waiting=max(apart),
        step=40 * unet.config.block_out_channels[0] * _element(unet) * latents * rows,
        decode=per_pixel * area * pictures,
        decode_tile=per_pixel * min(area, TILE_PIXELS**2),
    )


def _bytes_of(module: Any) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _element(module: Any) -> int:
    return int(next(module.parameters()).element_size())


def choose_mode(wanted: str, free_bytes: int | None, needs: MemoryNeeds | None) -> MemoryMode:
    """The mode asked for, or for `auto` the fastest that fits; `offload` where none does.

    `free_bytes` is what the device has before the weights are on it; None on a device without memory of its own (a
    CPU), where `auto` is `resident`.

    Raises:
        ValueError: there is no such mode.

    """
    if wanted not in MEMORY_MODES:
        raise ValueError(f"memory mode '{wanted}' is not one of {', '.join(MEMORY_MODES)}")
    for mode in get_args(MemoryMode):
        if mode == wanted:
            return mode
    if free_bytes is None or needs is None or needs.resident <= SPARE * free_bytes:
        return "resident"
    return "tiled" if needs.tiled <= SPARE * free_bytes else "offload"


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a CUDA device, what torch holds unused included; None for a CPU."""
    if device.type != "cuda":
        return None
    free, _total = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


class MemoryKeeper:
    """Puts one checkpoint's text encoders and VAE where its memory mode wants them, for one thread.

    Work with them belongs inside `text()` and `vae()`. `moves` counts how often a module was brought or sent away;
    on a CPU, which is host memory itself, a move changes nothing and is counted all the same.
    """

    def __init__(self, text_encoders: Sequence[Any], vae: Any, mode: MemoryMode, device: torch.device) -> None:
        """Take over the modules, wherever they are; after this they are where the mode wants them to wait."""
        self.mode: MemoryMode = mode
        self.moves = 0
        self._device = device
        self._rest = torch.device("cpu") if mode == "offload" else device
        self._text, self._vae = tuple(text_encoders), vae
        self._inside = {"text": 0, "vae": 0}
        if mode != "resident":
            _tile(vae)
        for module in (*self._text, vae):
            module.to(self._rest)

    @contextmanager
    def text(self) -> Iterator[None]:
        """The text encoders are on the device. May be nested."""
        with self._at_hand("text", self._text):
            yield

    @contextmanager
    def vae(self) -> Iterator[None]:
        """The VAE is on the device. May be nested."""
        with self._at_hand("vae", (self._vae,)):
            yield

    @contextmanager
    def _at_hand(self, name: str, modules: Sequence[Any]) -> Iterator[None]:
        if self.mode != "offload":
            yield
            return
        self._inside[name] += 1
        try:
            if self._inside[name] == 1:
                self._move(modules, self._device)
            yield
        finally:
            self._inside[name] -= 1
            if not self._inside[name]:
                self._move(modules, self._rest)
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()  # or the UNet's next call finds the room taken by free blocks

    def _move(self, modules: Sequence[Any], where: torch.device) -> None:
        for module in modules:
            module.to(where)
            self.moves += 1


def _tile(vae: Any) -> None:
    vae.enable_slicing()
    vae.enable_tiling()
    vae.tile_sample_min_size = TILE_PIXELS
    vae.tile_latent_min_size = TILE_PIXELS // PIXELS_PER_LATENT
