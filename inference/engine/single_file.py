"""Single files in SDXL's original layout: what is in them, and where their configuration comes from.

Such a file holds weights alone. Sizes, vocabularies and the scheduler's settings come from a diffusers folder: the
one beside the file, else SDXL base's own, found in a cache or fetched (a few MB).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inference.engine.hub import fetch, find_cached
from inference.engine.layout import check_folder
from inference.engine.types import CheckpointError
from inference.engine.weights import read_header

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from inference.engine.layout import Kind, Layout

SDXL_BASE = "stabilityai/stable-diffusion-xl-base-1.0"
SDXL_BASE_COMMIT = "462165984030d82259a11f4367a4eed129e94a7b"
SDXL_REFINER = "stabilityai/stable-diffusion-xl-refiner-1.0"
SDXL_REFINER_COMMIT = "5d4cfe854c9a9a87939ff3653551c2b3c99a4356"

PREFIXES = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": ("conditioner.embedders.0.transformer.text_model.",),
    "text_encoder_2": ("conditioner.embedders.1.model.",),
}
# a refiner's one encoder is the second of the two, at the first's place
REFINER_PREFIXES = {
    "unet": PREFIXES["unet"],
    "vae": PREFIXES["vae"],
    "text_encoder_2": ("conditioner.embedders.0.model.",),
}
OLDER_PREFIX = "cond_stage_model."
LORA_PREFIXES = ("lora_", "unet.down_blocks.")
EDM_KEYS = ("edm_mean", "edm_vpred.sigma_max")
# empty tensors by which trainers mark what a file's UNet predicts; ComfyUI reads the same ones
V_PREDICTION_KEY, ZERO_SNR_KEY = "v_pred", "ztsnr"


def check_keys(path: Path) -> tuple[Kind, dict[str, Any]]:
    """Look at the tensors' names; returns the kind, and the scheduler settings that the file itself demands.

    Raises:
        CheckpointError: it is damaged or is not a whole SDXL checkpoint, saying what it is instead.

    """
    keys = read_header(path)
    is_refiner = any(key.startswith(REFINER_PREFIXES["text_encoder_2"]) for key in keys)
    wanted = REFINER_PREFIXES if is_refiner else PREFIXES
    missing = [part for part, prefixes in wanted.items() if not any(key.startswith(prefixes) for key in keys)]
    if missing:
        raise CheckpointError(f"{path.name} {_what_it_is(keys, missing)}")
    if any(key in keys for key in EDM_KEYS):
        raise CheckpointError(f"{path.name} is trained in the EDM formulation, which is not supported")
    return "refiner" if is_refiner else "base", _scheduler_settings(keys)


def _what_it_is(keys: Mapping[str, Any], missing: Collection[str]) -> str:
    if any(key.startswith(OLDER_PREFIX) for key in keys):
        return "is a Stable Diffusion 1 or 2 checkpoint, not SDXL"
    if any(key.startswith(LORA_PREFIXES) or ".lora" in key for key in keys):
        return "is a LoRA or a part of one, not a checkpoint"
    return f"is not a whole SDXL checkpoint in the original layout: it has no {', no '.join(missing)}"


def _scheduler_settings(keys: Collection[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if V_PREDICTION_KEY in keys:
        settings["prediction_type"] = "v_prediction"
    if ZERO_SNR_KEY in keys:
        settings |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return settings


def find_configuration(path: Path, search: tuple[Path, ...], kind: Kind = "base") -> tuple[Path, Layout]:
    """The diffusers folder that describes a single file, and what that folder says it holds.

    In this order: the folder of the file's name beside it, the file's own folder, SDXL base (or the refiner) in the
    search path or in a cache of the hub, the same from the hub at a fixed commit.

    Raises:
        CheckpointError: none of these is there, or one is and is wrong.

    """
    beside = path.with_suffix("")
    usual, commit = (SDXL_BASE, SDXL_BASE_COMMIT) if kind == "base" else (SDXL_REFINER, SDXL_REFINER_COMMIT)
    near = [(path.name, folder) for folder in (beside, path.parent)]
    far = [(folder.name, folder) for root in search for folder in (root / usual.split("/")[1],)]
    for name, folder in near + far:
        if (folder / "model_index.json").is_file():
            return folder, _same_kind(path, check_folder(name, folder), kind)
    try:
        folder = find_cached(usual, None, search) or fetch(usual, commit, weights=False)
        return folder, _same_kind(path, check_folder(usual, folder), kind)
    except CheckpointError as problem:
        raise CheckpointError(
            f"{path.name} needs a diffusers folder that describes it: put one named {beside.name} beside it "
            f"({beside}) with SDXL's model_index.json, scheduler, tokenizers and config.json files; the usual one "
            f"could not be had: {problem}"
        ) from problem


def _same_kind(path: Path, layout: Layout, kind: Kind) -> Layout:
    if layout.kind != kind:
        raise CheckpointError(f"{path.name} is a {kind} checkpoint, and the folder that describes it a {layout.kind}")
    return layout
