"""From a checkpoint's name to files on this machine. Nothing is unpickled and nothing is loaded here.

A name is one of: a name in the search path (`tiny`: a diffusers folder, or `tiny.safetensors`), a diffusers folder, a
single `.safetensors` file, or a Hugging Face id (`org/name`) with a pinned revision. A name that no folder of the
search path holds is looked up in their catalogues.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.engine.catalogue import COMMIT, HUB_ID, NAME, Catalogue
from inference.engine.hub import fetch, find_cached
from inference.engine.layout import BASE, check_folder, choose_weights, refuse_other_kind
from inference.engine.single_file import check_keys, find_configuration
from inference.engine.types import CheckpointError
from inference.engine.weights import refuse_pickle

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inference.engine.catalogue import Entry
    from inference.engine.layout import Kind, Layout
    from inference.engine.weights import Weights

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Located:
    """Where a checkpoint lies: a diffusers folder, or one file with the folder that holds its configuration.

    `weights` are a folder's files by part; `scheduler_settings` are those that a single file itself demands;
    `layout` says which parts there are; `entry` is the catalogue's, where the name was found in one.
    """

    name: str
    folder: Path
    single_file: Path | None = None
    weights: Mapping[str, Weights] = field(default_factory=dict)
    scheduler_settings: Mapping[str, Any] = field(default_factory=dict)
    layout: Layout = BASE
    entry: Entry | None = None

    @property
    def kind(self) -> Kind:
        """Whether it draws alone or takes over from one that does."""
        return self.layout.kind


def locate(
    name: str, revision: str | None, search: tuple[Path, ...], *, half: bool = False, kind: Kind | None = "base"
) -> Located:
    """Find a checkpoint, downloading it only when it is a hub id that no folder holds.

    Args:
        name: see above.
        revision: commit of a hub id.
        search: folders of checkpoints, and caches laid out as the hub's own.
        half: prefer weight files in half precision where there are both.
        kind: what it must be; None takes either.

    Raises:
        CheckpointError: saying what is missing or refused.

    """
    try:
        located = _locate(name, revision, search, half=half)
    except (OSError, RuntimeError) as problem:  # no permission, name too long, loop of links, unknown ~user
        raise CheckpointError(f"checkpoint '{name}' cannot be looked up: {problem}") from problem
    refuse_other_kind(located.name, located.kind, kind)
    return located


def _locate(name: str, revision: str | None, search: tuple[Path, ...], *, half: bool) -> Located:
    path = Path(name).expanduser()
    refuse_pickle(name, path)
    if NAME.match(name):
        for root in search:
            if (file := _catalogue_file(root, name)).is_file():
                return _single_file(file, search)
            if (root / name / "model_index.json").is_file():
                return _folder(name, root / name, half=half)
        if entry := Catalogue.in_folders(search).entry(name):
            return replace(_of_entry(entry, search, half=half), name=name, entry=entry)
    if (path / "model_index.json").is_file():
        return _folder(path.resolve().name, path, half=half)
    if path.suffix.lower() == ".safetensors":
        return _single_file(path, search)
    if HUB_ID.match(name) and not path.is_dir():
        return _folder(name, _from_hub(name, revision, search), half=half)
    if path.is_dir():
        raise CheckpointError(f"{name} is no checkpoint: it holds no model_index.json")
    raise CheckpointError(f"there is no checkpoint '{name}'; found here: {', '.join(catalogue(search)) or 'none'}")


def available(search: tuple[Path, ...]) -> dict[str, Kind]:
    """Names that `locate` finds on this machine without a download, and their kinds; broken ones are left out.

    Looks at every one's description, so it is not for a hot path.

    Raises:
        CheckpointError: a catalogue is wrong.

    """
    found: dict[str, Kind] = {}
    for name in sorted({*catalogue(search), *Catalogue.in_folders(search).entries}):
        try:
            found[name] = locate(name, None, search, kind=None).kind
        except CheckpointError as problem:
            log.info("checkpoint %s is not available: %s", name, problem)
    return found


def catalogue(search: tuple[Path, ...]) -> list[str]:
    """Names of the checkpoints in the search path."""
    folders = {item.parent.name for root in search for item in root.glob("*/model_index.json")}
    return sorted(folders | {item.stem for root in search for item in root.glob("*.safetensors")})


def _catalogue_file(root: Path, name: str) -> Path:
    return root / (name if name.endswith(".safetensors") else f"{name}.safetensors")


def _of_entry(entry: Entry, search: tuple[Path, ...], *, half: bool) -> Located:
    """A catalogue's checkpoint, which must be here already: nothing large is fetched while a server starts."""
    if entry.path is not None:
        refuse_pickle(entry.name, entry.path)
        if (entry.path / "model_index.json").is_file():
            return _folder(entry.name, entry.path, half=half)
        return _single_file(entry.path, search)
    cached = find_cached(entry.source, entry.revision, search) if entry.origin == "hub" else None
    if cached is None:
        raise CheckpointError(
            f"{entry.name} is in the catalogue and not here yet: run scripts/checkpoints pull {entry.name}"
        )
    return _folder(entry.name, cached, half=half)


def _folder(name: str, folder: Path, *, half: bool) -> Located:
    layout = check_folder(name, folder)
    return Located(name, folder, weights=choose_weights(name, folder, layout, half=half), layout=layout)


def _single_file(path: Path, search: tuple[Path, ...]) -> Located:
    kind, settings = check_keys(path)
    folder, layout = find_configuration(path, search, kind)
    return Located(path.stem, folder, path, scheduler_settings=settings, layout=layout)


def _from_hub(name: str, revision: str | None, search: tuple[Path, ...]) -> Path:
    cached = find_cached(name, revision, search)
    if cached is not None:
        return cached
    if revision is None or not COMMIT.match(revision):
        raise CheckpointError(
            f"{name} is a hub id: pin it with IGEN_CHECKPOINT_REVISION, the 40 hexadecimal digits of a commit"
        )
    return fetch(name, revision)
