"""`igen.json` beside a checkpoint's `model_index.json`: its name and what a field that was not sent becomes."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeGuard

from inference.engine.counting import PIXELS_PER_LATENT
from inference.engine.types import CheckpointDefaults, CheckpointError
from inference.engine.weights import read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

# the wire's hard bounds
MIN_SIDE, MAX_SIDE = 64, 4096
MAX_STEPS = 150
MAX_GUIDANCE = 50
MAX_CHARS = 1000


@dataclass(frozen=True, slots=True)
class Preset:
    """How a kind of distilled checkpoint wants to be drawn: defaults, and changes to its scheduler's settings."""

    defaults: Mapping[str, Any] = field(default_factory=dict)
    scheduler: Mapping[str, Any] = field(default_factory=dict)


TRAILING = {"timestep_spacing": "trailing"}  # few steps must begin at the noisiest one (Lin et al. 2023, section 3.3)
PRESETS: Mapping[str, Preset] = {
    "none": Preset(),
    # stabilityai/sdxl-turbo's model card: 1 to 4 steps at 512x512 without guidance
    "turbo": Preset(
        {"width": 512, "height": 512, "num_inference_steps": 4, "guidance_scale": 0.0, "scheduler": "euler_a"},
        TRAILING,
    ),
    # ByteDance/SDXL-Lightning's model card: 2, 4 or 8 steps as the checkpoint was made, without guidance
    "lightning": Preset({"num_inference_steps": 4, "guidance_scale": 0.0, "scheduler": "euler"}, TRAILING),
    # diffusers' guide to latent consistency: 4 to 8 steps, guidance 1 to 2; above 1 doubles the work
    "lcm": Preset({"num_inference_steps": 4, "guidance_scale": 1.0, "scheduler": "lcm"}),
}


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a checkpoint says of itself.

    `scheduler_overrides` are laid over the checkpoint's scheduler settings: `Samplers({**config, **overrides})`.
    """

    name: str
    demonstration: bool
    defaults: CheckpointDefaults
    preset: str = "none"
    scheduler_overrides: Mapping[str, Any] = field(default_factory=dict)


def read_metadata(
    name: str, folder: Path, *, preset: str = "none", defaults: Mapping[str, Any] | None = None
) -> Metadata:
    """`igen.json`; what it does not say is the preset's, then the UNet's native size and SDXL's usual defaults.

    `preset` and `defaults` are for what the file is silent about, or where there is none: the catalogue's entry's.

    Raises:
        CheckpointError: the file is there and wrong, or there is no such preset.

    """
    path = folder / "igen.json"
    known = dict(defaults or {})
    if not path.is_file():
        return _described(name, _preset(name, preset), known, folder, demonstration=False)
    data = read_json(path)
    shown, demonstration = data.get("name", name), data.get("demonstration", False)
    if not isinstance(shown, str) or not shown.strip():
        raise CheckpointError(f"{path}: name must be text")
    if not isinstance(demonstration, bool):
        raise CheckpointError(f"{path}: demonstration must be true or false")
    values = data.get("defaults", {})
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: defaults must be an object")
    _check_defaults(path, values)
    chosen = _preset(str(path), data.get("preset", preset))
    return _described(shown, chosen, known | values, folder, demonstration=demonstration)


def _preset(where: str, name: object) -> str:
    if not isinstance(name, str) or name not in PRESETS:
        raise CheckpointError(f"{where}: preset must be one of {', '.join(PRESETS)}")
    return name


def _described(name: str, preset: str, values: Mapping[str, Any], folder: Path, *, demonstration: bool) -> Metadata:
    chosen = PRESETS[preset]
    defaults = CheckpointDefaults(**{**_native_size(folder), **chosen.defaults, **values})
    return Metadata(name, demonstration, defaults, preset, chosen.scheduler)


def _native_size(folder: Path) -> dict[str, Any]:
    """Width and height in pixels of the UNet's training, as diffusers reckons them; empty where it does not say.

    `sample_size` is in latents, one number or [height, width].
    """
    size = read_json(folder / "unet" / "config.json").get("sample_size")
    height, width = size if isinstance(size, list) and len(size) == len(("height", "width")) else (size, size)
    if not (_is_whole(width) and _is_whole(height)):
        return {}
    pixels = {"width": width * PIXELS_PER_LATENT, "height": height * PIXELS_PER_LATENT}
    return pixels if all(_is_side(value) for value in pixels.values()) else {}


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_side(value: Any) -> bool:
    return _is_whole(value) and MIN_SIDE <= value <= MAX_SIDE and value % PIXELS_PER_LATENT == 0


def _is_steps(value: Any) -> bool:
    return _is_whole(value) and 1 <= value <= MAX_STEPS


def _is_guidance(value: Any) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and 0 <= value <= MAX_GUIDANCE


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_CHARS


RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "width": (_is_side, f"a whole number of pixels from {MIN_SIDE} to {MAX_SIDE}, a multiple of 8"),
    "height": (_is_side, f"a whole number of pixels from {MIN_SIDE} to {MAX_SIDE}, a multiple of 8"),
    "num_inference_steps": (_is_steps, f"a whole number from 1 to {MAX_STEPS}"),
    "guidance_scale": (_is_guidance, f"a number from 0 to {MAX_GUIDANCE}"),
    "scheduler": (_is_text, "the name of a sampler"),
    "negative_prompt": (_is_text, f"text of at most {MAX_CHARS} characters"),
}


def _check_defaults(path: Path, values: Mapping[str, Any]) -> None:
    known = [field.name for field in fields(CheckpointDefaults)]
    for key, value in values.items():
        if key not in known:
            raise CheckpointError(f"{path}: defaults has no '{key}'; there are {', '.join(known)}")
        accepts, wanted = RULES[key]
        if not accepts(value):
            raise CheckpointError(f"{path}: defaults.{key} must be {wanted}")
