"""Prompt and settings as AUTOMATIC1111 writes them into a picture's file, so that viewers made for it read ours.

Format: its `create_infotext` and `quote`: the prompt, a line `Negative prompt: ...`, then `Name: value` pairs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inference.engine.types import EngineInfo, LoraUsed, PictureSpec

HASH_CHARS = 10  # of a sha256, as shown there
NAMES: dict[str, tuple[str, str]] = {
    "euler": ("Euler", ""),
    "euler_karras": ("Euler", "Karras"),
    "euler_a": ("Euler a", ""),
    "heun": ("Heun", ""),
    # without a schedule type these would be read as Karras
    "dpmpp_2m": ("DPM++ 2M", "Uniform"),
    "dpmpp_2m_karras": ("DPM++ 2M", "Karras"),
    "dpmpp_2m_sde": ("DPM++ 2M SDE", "Uniform"),
    "dpmpp_2m_sde_karras": ("DPM++ 2M SDE", "Karras"),
    "dpmpp_singlestep": ("DPM++ 2S", ""),
    "ddim": ("DDIM", ""),
    "unipc": ("UniPC", ""),
    "lcm": ("LCM", ""),
    "pndm": ("PLMS", ""),
    "lms": ("LMS", ""),
}
"""Sampler and schedule type, as shown there, by the engine's names."""
ALIASES = {
    "k_euler": "euler",
    "eulerdiscretescheduler": "euler",
    "euler karras": "euler_karras",
    "k_euler_ancestral": "euler_a",
    "euler_ancestral": "euler_a",
    "euler a": "euler_a",
    "k_euler_a": "euler_a",
    "dpmsolvermultistep": "dpmpp_2m",
    "dpm++ 2m": "dpmpp_2m",
    "k_dpmpp_2m": "dpmpp_2m",
    "dpm++ 2m karras": "dpmpp_2m_karras",
    "k_dpmpp_2m_ka": "dpmpp_2m_karras",
    "dpm++ 2m sde": "dpmpp_2m_sde",
    "dpm++ 2m sde karras": "dpmpp_2m_sde_karras",
    "dpmsolversinglestep": "dpmpp_singlestep",
    "uni_pc": "unipc",
    "klms": "lms",
    "k_lms": "lms",
    "plms": "pndm",
}
"""Names that requests use most; any other is written as it was sent."""


@dataclass(frozen=True, slots=True)
class DrawnWith:
    """What a picture was drawn with, as far as its file tells of it."""

    checkpoint: EngineInfo
    refiner: EngineInfo | None = None
    loras: tuple[LoraUsed, ...] = ()

    @property
    def hashed(self) -> bool:
        """Whether the hash of every checkpoint is known."""
        return bool(self.checkpoint.sha256 and (self.refiner is None or self.refiner.sha256))


def infotext(spec: PictureSpec, drawn: DrawnWith) -> str:
    """The text of a picture's `parameters`."""
    prompt = spec.prompt + "".join(f" <lora:{lora.name}:{lora.scale:g}>" for lora in drawn.loras)
    lines = [prompt]
    if spec.negative_prompt:
        lines.append(f"Negative prompt: {spec.negative_prompt}")
    lines.append(", ".join(f"{name}: {quote(value)}" for name, value in _settings(spec, drawn)))
    return "\n".join(lines)


def quote(text: str) -> str:
    """A value that holds a separator is written as a JSON string."""
    return json.dumps(text, ensure_ascii=False) if any(char in text for char in ",\n:") else text


def sampler_name(scheduler: str) -> tuple[str, str]:
    """Sampler and schedule type as shown there; ours where it has none."""
    lowered = scheduler.strip().lower()
    return NAMES.get(ALIASES.get(lowered, lowered), (scheduler, ""))


def _settings(spec: PictureSpec, drawn: DrawnWith) -> Iterator[tuple[str, str]]:
    sampler, schedule = sampler_name(spec.scheduler)
    yield "Steps", str(spec.steps)
    yield "Sampler", sampler
    if schedule:
        yield "Schedule type", schedule
    yield "CFG scale", f"{spec.guidance_scale:g}"
    yield "Seed", str(spec.seed)
    yield "Size", f"{spec.width}x{spec.height}"
    if drawn.checkpoint.sha256:
        yield "Model hash", drawn.checkpoint.sha256[:HASH_CHARS]
    yield "Model", drawn.checkpoint.checkpoint
    yield from _passes(spec, drawn)
    if drawn.loras:
        yield "Lora hashes", ", ".join(f"{lora.name}: {lora.sha256[:12]}" for lora in drawn.loras)
    yield "Version", f"IGen {VERSION}"


def _passes(spec: PictureSpec, drawn: DrawnWith) -> Iterator[tuple[str, str]]:
    if spec.init is not None:
        yield "Denoising strength", f"{spec.init.strength:g}"
    if (hires := spec.hires) is not None:
        if spec.init is None:
            yield "Denoising strength", f"{hires.strength:g}"
        across, down = hires.width / spec.width, hires.height / spec.height
        if across == down:
            yield "Hires upscale", f"{across:g}"
        else:
            yield "Hires resize", f"{hires.width}x{hires.height}"
        yield "Hires steps", str(hires.steps)
        yield "Hires upscaler", {"lanczos": "Lanczos", "latent": "Latent"}[hires.upscaler]
    if (refiner := spec.refiner) is not None:
        sha256 = drawn.refiner.sha256 if drawn.refiner is not None else ""
        yield "Refiner", refiner.checkpoint + (f" [{sha256[:HASH_CHARS]}]" if sha256 else "")
        yield "Refiner switch at", f"{refiner.switch_at:g}"
