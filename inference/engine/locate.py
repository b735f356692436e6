"""From a checkpoint's name to files on this machine. Nothing is unpickled and nothing is loaded here.

A name is one of: a name in the search path (`tiny`: a diffusers folder, or `tiny.safetensors`), a diffusers folder, a
single `.safetensors` file, or a Hugging Face id (`org/name`) with a pinned revision.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.engine.hub import COMMIT, HUB_ID, fetch, find_cached
from inference.engine.layout import check_folder, choose_weights
from inference.engine.single_file import check_keys, find_configuration
from inference.engine.types import CheckpointError
from inference.engine.weights import refuse_pickle

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inference.engine.weights import Weights

CATALOGUE_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_. -]*$")


@dataclass(frozen=True, slots=True)
class Located:
    """Where a checkpoint lies: a diffusers folder, or one file with the folder that holds its configuration.

    `weights` are a folder's files by part; `scheduler_settings` are those that a single file itself demands.
    """

    name: str
    folder: Path
    single_file: Path | None = None
    weights: Mapping[str, Weights] = field(default_factory=dict)
    scheduler_settings: Mapping[str, Any] = field(default_factory=dict)


def locate(name: str, revision: str | None, search: tuple[Path, ...], *, half: bool = False) -> Located:
    """Find a checkpoint, downloading it only when it is a hub id that no folder holds.

    Args:
        name: see above.
        revision: commit of a hub id.
        search: folders of checkpoints, and caches laid out as the hub's own.
        half: prefer weight files in half precision where there are both.

    Raises:
        CheckpointError: saying what is missing or refused.

    """
    try:
        return _locate(name, revision, search, half=half)
    except (OSError, RuntimeError) as problem:  # no permission, name too long, loop of links, unknown ~user
        raise CheckpointError(f"checkpoint '{name}' cannot be looked up: {problem}") from problem


def _locate(name: str, revision: str | None, search: tuple[Path, ...], *, half: bool) -> Located:
    path = Path(name).expanduser()
    refuse_pickle(name, path)
    if CATALOGUE_NAME.match(name):
        for root in search:
            if (file := _catalogue_file(root, name)).is_file():
                return _single_file(file, search)
            if (root / name / "model_index.json").is_file():
                return _folder(name, root / name, half=half)
    if (path / "model_index.json").is_file():
        return _folder(path.resolve().name, path, half=half)
    if path.suffix.lower() == ".safetensors":
        return _single_file(path, search)
    if HUB_ID.match(name) and not path.is_dir():
        return _folder(name, _from_hub(name, revision, search), half=half)
    if path.is_dir():
        raise CheckpointError(f"{name} is no checkpoint: it holds no model_index.json")
    raise CheckpointError(f"there is no checkpoint '{name}'; found here: {', '.join(catalogue(search)) or 'none'}")


def catalogue(search: tuple[Path, ...]) -> list[str]:
    """Names of the checkpoints in the search path."""
    folders = {item.parent.name for root in search for item in root.glob("*/model_index.json")}
    return sorted(folders | {item.stem for root in search for item in root.glob("*.safetensors")})


def _catalogue_file(root: Path, name: str) -> Path:
    return root / (name if name.endswith(".safetensors") else f"{name}.safetensors")


def _folder(name: str, folder: Path, *, half: bool) -> Located:
    check_folder(name, folder)
    return Located(name, folder, weights=choose_weights(name, folder, half=half))


def _single_file(path: Path, search: tuple[Path, ...]) -> Located:
    settings = check_keys(path)
    return Located(path.stem, find_configuration(path, search), path, scheduler_settings=settings)


def _from_hub(name: str, revision: str | None, search: tuple[Path, ...]) -> Path:
    cached = find_cached(name, revision, search)
    if cached is not None:
        return cached
    if revision is None or not COMMIT.match(revision):
        raise CheckpointError(
            f"{name} is a hub id: pin it with IGEN_CHECKPOINT_REVISION, the 40 hexadecimal digits of a commit"
        )
    return fetch(name, revision)
