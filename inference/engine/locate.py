"""From a checkpoint's name to files on this machine. Nothing is unpickled, ever.

A name is one of: a folder name in the search path (`tiny`), a diffusers folder, a single `.safetensors` file, or a
Hugging Face id (`org/name`) with a pinned revision.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.engine.types import CheckpointDefaults, CheckpointError

PICKLE_SUFFIXES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle"})
WEIGHTED = ("unet", "vae", "text_encoder", "text_encoder_2")
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
COMMIT = re.compile(r"^[0-9a-f]{40}$")


@dataclass(frozen=True, slots=True)
class Located:
    """Where a checkpoint lies: a diffusers folder, or one file with the folder that holds its configuration.

    `variant` is `fp16` where the folder has its weights only under that name.
    """

    name: str
    folder: Path
    single_file: Path | None = None
    variant: str | None = None


@dataclass(frozen=True, slots=True)
class Metadata:
    """`igen.json` beside `model_index.json`; all of it is optional."""

    name: str
    demonstration: bool
    defaults: CheckpointDefaults


def locate(name: str, revision: str | None, search: tuple[Path, ...]) -> Located:
    """Find a checkpoint, downloading it only when it is a hub id that no folder holds.

    Raises:
        CheckpointError: saying what is missing or refused.

    """
    for root in search:
        if "/" not in name and (root / name / "model_index.json").is_file():
            return check_folder(name, root / name)
    path = Path(name).expanduser()
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise CheckpointError(f"{name} is a pickle, which can run code when it is loaded; convert it to .safetensors")
    if path.is_dir():
        return check_folder(path.name, path)
    if path.suffix.lower() == ".safetensors":
        return _single_file(path)
    if HUB_ID.match(name):
        return check_folder(name, _from_hub(name, revision, search))
    found = sorted({item.parent.name for root in search for item in root.glob("*/model_index.json")})
    raise CheckpointError(f"there is no checkpoint '{name}'; found here: {', '.join(found) or 'none'}")


def check_folder(name: str, folder: Path) -> Located:
    """A diffusers folder, after looking that it is SDXL, complete, and in safetensors.

    Raises:
        CheckpointError: naming the part that is wrong.

    """
    index = _read_json(folder / "model_index.json")
    kind = str(index.get("_class_name"))
    if not kind.startswith("StableDiffusionXL"):
        raise CheckpointError(f"{name} is a {kind}, not a StableDiffusionXLPipeline")
    variants = {_weights_variant(name, folder / part) for part in WEIGHTED if index.get(part, [None])[0]}
    if not index.get("text_encoder", [None])[0]:
        raise CheckpointError(f"{name} has one text encoder; refiner checkpoints cannot draw on their own")
    return Located(name, folder, None, "fp16" if "fp16" in variants else None)


def _weights_variant(name: str, folder: Path) -> str | None:
    files = [path.name for path in folder.glob("*")] if folder.is_dir() else []
    plain = [file for file in files if file.endswith(".safetensors") and ".fp16" not in file]
    if plain:
        return None
    if any(file.endswith(".safetensors") for file in files):
        return "fp16"
    if any(Path(file).suffix in PICKLE_SUFFIXES for file in files):
        raise CheckpointError(
            f"{name}: {folder.name} has its weights only as a pickle, which can run code when it is loaded; "
            "convert them to .safetensors"
        )
    raise CheckpointError(f"{name}: {folder.name} has no .safetensors file")


def _single_file(path: Path) -> Located:
    """One file in the original layout; its configuration is the diffusers folder of the same name beside it."""
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    beside = path.with_suffix("")
    folder = beside if (beside / "model_index.json").is_file() else path.parent
    return Located(path.stem, folder, path)


def _from_hub(name: str, revision: str | None, search: tuple[Path, ...]) -> Path:
    for root in search:  # a cache in the hub's own layout, such as RunPod's cached models
        cached = root / f"models--{name.replace('/', '--')}"
        wanted = revision or _main_of(cached)
        if wanted and (cached / "snapshots" / wanted / "model_index.json").is_file():
            return cached / "snapshots" / wanted
    if revision is None or not COMMIT.match(revision):
        raise CheckpointError(
            f"{name} is a hub id: pin it with IGEN_CHECKPOINT_REVISION, the 40 hexadecimal digits of a commit"
        )
    return _download(name, revision)


def _main_of(cached: Path) -> str | None:
    ref = cached / "refs" / "main"
    return ref.read_text().strip() if ref.is_file() else None


def _download(name: str, revision: str) -> Path:
    from diffusers import StableDiffusionXLPipeline  # noqa: PLC0415 - seconds of import, needed for hub ids only

    errors = []
    for variant in ("fp16", None):  # half the bytes where the repository offers them
        try:
            return Path(
                StableDiffusionXLPipeline.download(name, revision=revision, variant=variant, use_safetensors=True)
            )
        except (OSError, ValueError) as problem:
            errors.append(str(problem).splitlines()[0])
    raise CheckpointError(f"{name} at {revision} could not be fetched from the hub: {errors[-1]}")


def read_metadata(located: Located) -> Metadata:
    """`igen.json`, or SDXL's usual defaults where a checkpoint has none.

    Raises:
        CheckpointError: the file is there and wrong.

    """
    path = located.folder / "igen.json"
    data = _read_json(path) if path.is_file() else {}
    try:
        defaults = CheckpointDefaults(**data.get("defaults", {}))
    except TypeError as problem:
        raise CheckpointError(f"{path}: defaults: {problem}") from None
    return Metadata(str(data.get("name", located.name)), bool(data.get("demonstration", False)), defaults)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"{path} cannot be read: {problem}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return data
