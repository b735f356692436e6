"""From a picture's specification to its passes: embeddings, schedule, what the latents begin with."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import torch

from inference.engine.canvas import enlarge, enlarge_latents, latent_mask
from inference.engine.counting import PIXELS_PER_LATENT
from inference.engine.slots import Inpaint, Pass, PassKind, Slot

if TYPE_CHECKING:
    from torch import Tensor

    from inference.engine.loaded import Loaded, LoraSet
    from inference.engine.samplers import Sampler
    from inference.engine.slots import GroupKey, Ticket
    from inference.engine.types import InitPicture, PictureSpec


def passes_of(spec: PictureSpec) -> list[PassKind]:
    """The passes of a picture, in order."""
    kinds = [PassKind.BASE]
    if spec.refiner is not None:
        kinds.append(PassKind.REFINER)
    if spec.hires is not None:
        kinds.append(PassKind.HIRES)
    return kinds


def checkpoint_of(spec: PictureSpec, kind: PassKind) -> str:
    """The catalogue name of a pass's checkpoint; empty for the engine's own."""
    return spec.refiner.checkpoint if kind is PassKind.REFINER and spec.refiner is not None else spec.checkpoint


def size_of(spec: PictureSpec, kind: PassKind) -> tuple[int, int]:
    """Height and width of a pass in pixels."""
    if kind is PassKind.HIRES and spec.hires is not None:
        return spec.hires.height, spec.hires.width
    return spec.height, spec.width


def open_slot(ticket: Ticket, index: int, key: GroupKey, serial: int, *, loaded: Loaded, loras: LoraSet) -> Slot:
    """A slot in its first pass. Its noise comes from its own seed, on the CPU: a seed means the same everywhere.

    Raises:
        FloatingPointError: the picture to begin with cannot be encoded.

    """
    spec = ticket.job.pictures[index]
    generator = torch.Generator("cpu").manual_seed(spec.seed)
    current = _pass(PassKind.BASE, spec, ticket, loaded, loras)
    noise = _noise(loaded, spec.height, spec.width, generator)
    latents = noise * current.sampler.init_noise_sigma
    if spec.init is not None:
        latents = _begin_with_picture(current, spec.init, noise, latents)
    if spec.refiner is not None:
        current.sampler.end_before(spec.refiner.switch_at)
    todo = deque(passes_of(spec)[1:])
    return Slot(serial, ticket, index, spec, key, generator, latents, current, todo)


def next_pass(slot: Slot, loaded: Loaded, loras: LoraSet) -> None:
    """Put a slot whose pass is over into its next one."""
    kind, spec = slot.todo[0], slot.spec
    following = _pass(kind, spec, slot.ticket, loaded, loras)
    if kind is PassKind.REFINER and spec.refiner is not None:
        following.sampler.begin_after(spec.refiner.switch_at)
        following.inpaint = slot.current.inpaint
    elif kind is PassKind.HIRES and spec.hires is not None:
        following.sampler.begin_at(spec.hires.strength)
        height, width = spec.hires.height, spec.hires.width
        if slot.pixels is None:
            clean = enlarge_latents(slot.latents, height, width)
        else:
            clean = loaded.encode(enlarge(slot.pixels, height, width))
        slot.latents = following.sampler.add_noise(clean, _noise(loaded, height, width, slot.generator))
    slot.todo.popleft()
    slot.pixels = slot.clean = None
    slot.current = following


def _pass(kind: PassKind, spec: PictureSpec, ticket: Ticket, loaded: Loaded, loras: LoraSet) -> Pass:
    height, width = size_of(spec, kind)
    negative = spec.negative_prompt
    steps = spec.steps
    if kind is PassKind.REFINER and spec.refiner is not None:
        negative, steps, loras = spec.refiner.negative_prompt, spec.refiner.steps, ()
    elif kind is PassKind.HIRES and spec.hires is not None:
        steps = spec.hires.steps
    texts = loaded.embed(spec.prompt, negative if spec.guided else None, syntax=spec.syntax, loras=loras)
    ticket.note(*texts.notes)
    return Pass(
        kind=kind,
        loaded=loaded,
        loras=loras,
        height=height,
        width=width,
        sampler=loaded.samplers.make(spec.scheduler, steps, loaded.checkpoint.device),
        positive=texts.positive,
        negative=texts.negative,
        positive_ids=loaded.time_ids(height, width, negative=False),
        negative_ids=loaded.time_ids(height, width, negative=True),
    )


def _begin_with_picture(current: Pass, init: InitPicture, noise: Tensor, plain: Tensor) -> Tensor:
    """The latents that a picture made from a picture begins with; what it keeps goes into the pass."""
    original = current.loaded.encode(init.pixels)
    sampler: Sampler = current.sampler
    sampler.begin_at(init.strength)
    if init.mask is not None:
        current.inpaint = Inpaint(original, noise, latent_mask(init.mask, original.device))
        if init.strength >= 1:
            return plain  # nothing of the old picture shows through where it is drawn anew
    return sampler.add_noise(original, noise)


def _noise(loaded: Loaded, height: int, width: int, generator: torch.Generator) -> Tensor:
    shape = (loaded.checkpoint.latent_channels, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
    return torch.randn((1, *shape), generator=generator, dtype=torch.float32)[0].to(loaded.checkpoint.device)
