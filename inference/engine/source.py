"""The checkpoints that requests may name: found in the search path, described without loading, opened when wanted."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from inference.engine.catalogue import Catalogue
from inference.engine.checkpoint import choose_device, describe, dtype_on, load_checkpoint, metadata_of
from inference.engine.fitting import Tuning
from inference.engine.levers import WantedLevers
from inference.engine.locate import catalogue, locate
from inference.engine.parts import read_scheduler_config
from inference.engine.types import CheckpointError, UnknownCheckpointError
from inference.engine.weights import read_header

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from inference.engine.checkpoint import Checkpoint, Kind
    from inference.engine.locate import Located
    from inference.engine.types import EngineInfo


@dataclass(frozen=True, slots=True)
class Described:
    """A checkpoint that need not be loaded. `bytes` are those that its weights would take on the device."""

    info: EngineInfo
    kind: Kind
    bytes: int
    scheduler_config: Mapping[str, Any]


class CheckpointSource:
    """May be asked from any thread."""

    def __init__(
        self,
        own: str,
        revision: str | None,
        search: tuple[Path, ...],
        *,
        device: str = "auto",
        attention: str = "auto",
        memory_mode: str = "auto",
        tuning: Tuning | None = None,
    ) -> None:
        """`own` is the engine's own checkpoint, by any name that `locate` knows; `search` are folders of others.

        `tuning` says how its levers are chosen; the others get the same as the first that was opened.
        """
        self._own = own, revision
        self._search = search
        self._options: dict[str, Any] = {"device": device, "attention": attention, "memory_mode": memory_mode}
        self._options["tuning"] = tuning
        self._known: dict[str, Described] = {}
        self._lock = threading.Lock()

    def names(self, kind: Kind) -> tuple[str, ...]:
        """Every checkpoint of a kind that can be described, sorted."""
        return tuple(name for name in self._all() if self._is_of(name, kind))

    def _all(self) -> list[str]:
        """Names in the folders and in their catalogues, whether usable or not; a hub id or a path is none."""
        return sorted({*catalogue(self._search), *Catalogue.in_folders(self._search).entries})

    def _is_of(self, name: str, kind: Kind) -> bool:
        try:
            return self.describe(name).kind == kind
        except UnknownCheckpointError:
            return False

    def describe(self, name: str) -> Described:
        """What is known of a checkpoint before it is loaded.

        Raises:
            UnknownCheckpointError: there is none of this name, or it is broken.

        """
        with self._lock:
            found = self._known.get(name)
            if found is None:
                found = self._known[name] = self._look(name)
        return found

    def open(self, name: str = "", kind: Kind = "base") -> Checkpoint:
        """Load a checkpoint, the engine's own without a name; blocks for as long as that takes.

        Raises:
            CheckpointError: it cannot be loaded.

        """
        wanted, revision = (name, None) if name else self._own
        loaded = load_checkpoint(wanted, revision, self._search, kind=kind, **self._options)
        self._settle(loaded)
        return replace(loaded, info=replace(loaded.info, checkpoint=name)) if name else loaded

    def _settle(self, loaded: Checkpoint) -> None:
        """Choose once: a measurement beside pictures that are being drawn would tell little, and cost them time."""
        if loaded.device.type == "cuda":
            # of compiling the first one alone takes the time: nobody is to wait for the others' compiler
            wanted = replace(WantedLevers.exactly(loaded.levers), compile="off")
            self._options |= {"attention": wanted.attention, "tuning": Tuning(wanted)}

    def _look(self, name: str) -> Described:
        try:
            if name not in self._all():
                raise UnknownCheckpointError(f"'{name}' is not in the catalogue")
            located = locate(name, None, self._search, kind=None)
            described = metadata_of(located)
            config = {**read_scheduler_config(located), **described.scheduler_overrides}
            device = choose_device(self._options["device"])
            info = describe(described, config, device=device)
            size = _size(located, dtype_on(device).itemsize)
        except CheckpointError as problem:
            raise UnknownCheckpointError(f"checkpoint '{name}' cannot be used: {problem}") from problem
        return Described(replace(info, checkpoint=name), located.kind, size, config)


def _size(located: Located, element: int) -> int:
    """Bytes of all weights, numbers with a point at `element` bytes each: files in fp16 double on a CPU."""
    if located.single_file is not None:
        files = [located.single_file]
    else:
        files = [file for weights in located.weights.values() for file in weights.files]
    return sum(_placed(entry, element) for file in files for entry in read_header(file).values())


def _placed(entry: Mapping[str, Any], element: int) -> int:
    if str(entry["dtype"]).startswith(("F", "BF")):
        return math.prod(entry["shape"]) * element
    first, end = entry["data_offsets"]
    return int(end - first)
