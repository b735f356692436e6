"""What a diffusers folder must look like to be drawn with: SDXL's parts, their standard classes, fitting sizes.

There are two kinds: a base draws alone; a refiner, which takes over a base's last steps, has the second text encoder
and its tokenizer only.

The folder is data. Classes are never taken from it, so nothing in it can name code to be run; one that asks for
classes of its own is refused, because the standard ones would misread it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from inference.engine.counting import PIXELS_PER_LATENT
from inference.engine.types import CheckpointError
from inference.engine.weights import STEMS, Weights, find_weights, read_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PIPELINES = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline")
CLASSES = {
    "unet": ("diffusers", ("UNet2DConditionModel",)),
    "vae": ("diffusers", ("AutoencoderKL",)),
    "text_encoder": ("transformers", ("CLIPTextModel",)),
    "text_encoder_2": ("transformers", ("CLIPTextModelWithProjection",)),
    "tokenizer": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
    "tokenizer_2": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
}
TOKENIZERS = ("tokenizer", "tokenizer_2")
FIRST_ENCODER = ("text_encoder", "tokenizer")  # what a refiner does without
ENCODERS = ("text_encoder", "text_encoder_2")
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
# those that share SDXL's noise schedule, so that the engine's own samplers can take their settings over; EDM,
# flow matching and consistency schedulers mean something else by the UNet's answer
SCHEDULERS = tuple(
    f"{kind}Scheduler"
    for kind in (
        "DDIM", "DDPM", "PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete",
        "KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep", "DPMSolverSDE",
        "DEISMultistep", "UniPCMultistep", "SASolver",
    )
)  # fmt: skip
PREDICTIONS = ("epsilon", "v_prediction", "sample")
# keys by which a model's config asks its library for code or packages beyond the library itself
UNSAFE_KEYS = ("auto_map", "attn_implementation", "quantization_config")
# numbers beside the prompt: original size, crop and target size, or original size, crop and a score
TIME_IDS, TIME_IDS_WITH_SCORE = 6, 5

Kind = Literal["base", "refiner"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Which parts a checkpoint has; `requires_aesthetics_score` puts a score in the place of the target size."""

    kind: Kind = "base"
    requires_aesthetics_score: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that have weights."""
        return tuple(part for part in STEMS if part not in self._left_out)

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """Names of the tokenizers' folders."""
        return tuple(part for part in TOKENIZERS if part not in self._left_out)

    @property
    def time_ids(self) -> int:
        """How many numbers the UNet takes beside the pooled prompt."""
        return TIME_IDS_WITH_SCORE if self.requires_aesthetics_score else TIME_IDS

    @property
    def _left_out(self) -> tuple[str, ...]:
        return FIRST_ENCODER if self.kind == "refiner" else ()


BASE = Layout()


def refuse_other_kind(name: str, found: Kind, wanted: Kind | None) -> None:
    """Say why a checkpoint is not for its place; None wants either.

    Raises:
        CheckpointError: it is of the other kind.

    """
    if wanted == "base" and found == "refiner":
        raise CheckpointError(f"{name} has one text encoder; refiner checkpoints cannot draw on their own")
    if wanted == "refiner" and found == "base":
        raise CheckpointError(f"{name} is a base checkpoint, not a refiner")


def check_index(name: str, index: Mapping[str, Any]) -> Layout:
    """Look at a `model_index.json`, and return what the folder is to hold.

    Raises:
        CheckpointError: it is not SDXL, lacks a part, or asks for a class of its own.

    """
    kind = index.get("_class_name")
    if kind not in PIPELINES:
        raise CheckpointError(f"{name} is a {_class_name(kind)}, not a StableDiffusionXLPipeline")
    layout = _layout(index)
    for part in (*layout.parts, *layout.tokenizers):
        library, classes = CLASSES[part]
        declared = _declared(index, part)
        if declared is None:
            raise CheckpointError(f"{name}: model_index.json names no {part}")
        if declared[0] != library or declared[1] not in classes:
            raise CheckpointError(
                f"{name}: {part} is {declared[0]}.{declared[1]}, and only {library}.{classes[0]} is supported"
            )
    scheduler = _declared(index, "scheduler")
    if scheduler is None or scheduler[0] != "diffusers":
        raise CheckpointError(f"{name}: model_index.json names no scheduler of diffusers")
    return layout


def _layout(index: Mapping[str, Any]) -> Layout:
    has_first = any(_declared(index, part) is not None for part in FIRST_ENCODER)
    has_second = _declared(index, "text_encoder_2") is not None
    score = index.get("requires_aesthetics_score", False)
    if not isinstance(score, bool):
        raise CheckpointError("model_index.json: requires_aesthetics_score must be true or false")
    return Layout("base" if has_first or not has_second else "refiner", score)


def _class_name(kind: object) -> str:
    return kind if isinstance(kind, str) else "pipeline with code of its own"


def _declared(index: Mapping[str, Any], part: str) -> tuple[str, str] | None:
    """Library and class of a part, None where there is none."""
    value = index.get(part)
    if value is None or value == [None, None]:
        return None
    if not (isinstance(value, list) and len(value) == len(("library", "class"))):
        raise CheckpointError(f"model_index.json: {part} must be a library and a class")
    return str(value[0]), str(value[1])


def check_configs(name: str, folder: Path, layout: Layout = BASE) -> None:
    """Look at the parts' own configurations, and whether the parts fit each other.

    Raises:
        CheckpointError: naming the part that is missing, unsafe, or of another size.

    """
    configs = {part: read_json(folder / part / "config.json") for part in layout.parts}
    for part, config in configs.items():
        for key in UNSAFE_KEYS:
            if key in config:
                raise CheckpointError(f"{name}: {part}/config.json sets {key}, which is not supported")
    unet, vae = configs["unet"], configs["vae"]
    if unet.get("addition_embed_type") != "text_time":
        raise CheckpointError(f"{name}: its unet is not SDXL's (addition_embed_type is not text_time)")
    channels = _whole(unet, "in_channels", 4)
    text_width = sum(_whole(config, "hidden_size", 512) for part, config in configs.items() if part in ENCODERS)
    numbers = layout.time_ids * _whole(unet, "addition_time_embed_dim", 256)
    pooled = _whole(configs["text_encoder_2"], "projection_dim", 512) + numbers
    depth = vae.get("block_out_channels")
    expected = (
        ("unet in_channels", channels, _whole(vae, "latent_channels", 4)),
        ("unet out_channels", _whole(unet, "out_channels", 4), channels),
        ("unet cross_attention_dim", _whole(unet, "cross_attention_dim", 1280), text_width),
        ("unet projection_class_embeddings_input_dim", unet.get("projection_class_embeddings_input_dim"), pooled),
        ("vae pixels per latent", 2 ** (len(depth) - 1) if isinstance(depth, list) else None, PIXELS_PER_LATENT),
    )
    for what, found, wanted in expected:
        if found != wanted:
            raise CheckpointError(f"{name}: its parts do not fit: {what} is {found}, expected {wanted}")


def _whole(config: Mapping[str, Any], key: str, default: int) -> int:
    """A number of a config; `default` is the library's, for configs that leave it out."""
    value = config.get(key, default)
    if not isinstance(value, int):
        raise CheckpointError(f"config.json: {key} must be a whole number, not {value!r}")
    return value


def check_helpers(name: str, folder: Path, layout: Layout = BASE) -> None:
    """Look for the scheduler's settings and the vocabularies.

    Raises:
        CheckpointError: naming what is missing.

    """
    scheduler = read_json(folder / SCHEDULER_CONFIG)
    if scheduler.get("_class_name") not in SCHEDULERS:
        raise CheckpointError(f"{name}: its scheduler {scheduler.get('_class_name')} is not supported")
    if scheduler.get("prediction_type", "epsilon") not in PREDICTIONS:
        raise CheckpointError(f"{name}: its prediction type {scheduler['prediction_type']} is not supported")
    for part in layout.tokenizers:
        files = folder / part
        legacy = (files / "vocab.json").is_file() and (files / "merges.txt").is_file()
        if not legacy and not (files / "tokenizer.json").is_file():
            raise CheckpointError(f"{name}: {part} has neither tokenizer.json nor vocab.json with merges.txt")


def check_folder(name: str, folder: Path) -> Layout:
    """All that can be told without the weights; returns what the folder holds.

    Raises:
        CheckpointError: naming the part that is wrong.

    """
    layout = check_index(name, read_json(folder / "model_index.json"))
    check_configs(name, folder, layout)
    check_helpers(name, folder, layout)
    return layout


def choose_weights(name: str, folder: Path, layout: Layout = BASE, *, half: bool) -> dict[str, Weights]:
    """The weight files of every part; `half` prefers those in half precision.

    Raises:
        CheckpointError: naming the part whose weights are missing, damaged or a pickle.

    """
    return {part: find_weights(name, folder / part, half=half) for part in layout.parts}
