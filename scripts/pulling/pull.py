"""A whole checkpoint from a hub or an address into a folder of checkpoints.

It is put together in a staging folder and moved into its place when every file of it has been checked, so that
nothing ever finds half of one. A pull that was cut off, killed or out of room goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from inference.engine.catalogue import COMMIT
from inference.engine.hub import optional_files, required_files
from inference.engine.layout import check_folder, check_index, choose_weights, refuse_other_kind
from inference.engine.single_file import (
    SDXL_BASE,
    SDXL_BASE_COMMIT,
    SDXL_REFINER,
    SDXL_REFINER_COMMIT,
    check_keys,
)
from inference.engine.weights import candidates, read_json, shards_of
from scripts.pulling.download import MissingError, PullError
from scripts.pulling.records import FileRecord, Record, read_record, write_record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from inference.engine.catalogue import Entry
    from inference.engine.layout import Layout
    from scripts.pulling.download import Downloader, Fetched, Meter

STAGING = ".staging"
STATE = "pull.json"
INDEX = "model_index.json"


class Reporter(Protocol):
    """Shows progress."""

    def meter(self, file: str) -> Meter:
        """Where a file's progress is told."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where checkpoints lie and where hub ids are looked up; `half` prefers weights in half precision."""

    folder: Path
    endpoint: str
    half: bool = True


class Pull:
    """One checkpoint on its way. `downloader` is the origin's; descriptions of single files come by the hub's."""

    def __init__(
        self, entry: Entry, place: Place, downloader: Downloader, hub: Downloader, reporter: Reporter
    ) -> None:
        self._entry, self._place, self._reporter = entry, place, reporter
        self._downloader, self._hub = downloader, hub
        self._staging = place.folder / STAGING / entry.name
        self._fetched: dict[str, Fetched] = {}

    async def run(self) -> Record:
        """Fetch what is missing and put the checkpoint in its place.

        Raises:
            PullError: saying why not; what came is kept.
            CheckpointError: it is none that can be drawn with.

        """
        if self._entry.origin == "path":
            raise PullError(f"{self._entry.name} is {self._entry.path} on this machine; there is nothing to pull")
        known = self._complete()
        if known is not None:
            return known
        with _locked(self._place.folder, self._entry.name):
            commit = await self._resolve()
            self._begin(commit)
            if self._entry.origin == "hub":
                await self._fetch_repository(self._entry.source, commit or "")
            else:
                await self._fetch_single_file()
            self._describe()
            return await asyncio.to_thread(self._finish, commit)

    def _complete(self) -> Record | None:
        """The record of an earlier pull of just this, whose files all lie as they were."""
        known = read_record(self._place.folder, self._entry.name)
        if known is None or not known.files or known.source != self._entry.source:
            return None
        is_same = self._entry.revision in (None, known.revision) if self._entry.origin == "hub" else True
        files = {self._place.folder / path: file for path, file in known.files.items()}
        wanted = {self._placed(path): digest for path, digest in self._entry.sha256.items()}
        is_right = all(file.sha256 == wanted.get(path, file.sha256) for path, file in known.files.items())
        return (
            known if is_same and is_right and all(file.is_as_it_was(path) for path, file in files.items()) else None
        )

    async def _resolve(self) -> str | None:
        """The commit to fetch; a hub id without one is pinned to what its main branch is now."""
        if self._entry.origin == "url":
            return None
        if self._entry.revision is not None:
            return self._entry.revision
        place = self._place.folder / STAGING / f"{self._entry.name}.index"
        place.unlink(missing_ok=True)
        url = self._url(self._entry.source, "main", INDEX)
        found = await self._downloader.fetch(url, place, self._reporter.meter(INDEX))
        place.unlink()
        if found.commit is None or not COMMIT.match(found.commit):
            raise PullError(f"{url}: the hub does not say which commit this is; name one with --revision")
        return found.commit

    def _begin(self, commit: str | None) -> None:
        """Keep what an earlier try left of the same version, and nothing else."""
        state = {"source": self._entry.source, "revision": commit}
        note = self._staging / STATE
        if not note.is_file() or read_json(note) != state:
            shutil.rmtree(self._staging, ignore_errors=True)
            self._staging.mkdir(parents=True)
            note.write_text(json.dumps(state), encoding="utf-8")

    async def _fetch_repository(self, source: str, commit: str) -> None:
        layout = await self._fetch_description(source, commit)
        refuse_other_kind(self._entry.name, layout.kind, self._entry.kind)
        for part in layout.parts:
            await self._fetch_weights(source, commit, part)
        choose_weights(self._entry.name, self._tree, layout, half=self._place.half)

    async def _fetch_description(self, source: str, commit: str) -> Layout:
        """All but the weights."""
        await self._fetch(source, commit, INDEX)
        layout = check_index(self._entry.name, read_json(self._tree / INDEX))
        for file in required_files(layout):
            await self._fetch(source, commit, file)
        for file in optional_files(layout):
            await self._fetch(source, commit, file, optional=True)
        return check_folder(self._entry.name, self._tree)

    async def _fetch_weights(self, source: str, commit: str, part: str) -> None:
        for _, name in candidates(part, half=self._place.half):
            if not await self._fetch(source, commit, f"{part}/{name}", optional=True):
                continue
            if name.endswith(".json"):
                for shard in shards_of(self._tree / part / name):
                    await self._fetch(source, commit, f"{part}/{shard.name}")
            return
        raise PullError(f"{source} at {commit} has no safetensors weights of its {part}; pickles are not fetched")

    async def _fetch_single_file(self) -> None:
        """The file, and beside it the folder that describes it, so that no hub is needed when it is loaded."""
        kind = self._entry.kind
        if not (self._place.folder / self._entry.name / INDEX).is_file():
            source = (SDXL_BASE, SDXL_BASE_COMMIT) if kind == "base" else (SDXL_REFINER, SDXL_REFINER_COMMIT)
            await self._fetch_description(*source)
        meter, digest = self._reporter.meter(self._weights.name), self._entry.sha256.get("")
        found = await self._downloader.fetch(self._entry.source, self._weights, meter, sha256=digest)
        self._fetched[self._weights.name] = found
        is_kind, _ = check_keys(self._weights)
        refuse_other_kind(self._entry.name, is_kind, kind)

    async def _fetch(self, source: str, commit: str, file: str, *, optional: bool = False) -> bool:
        url, target = self._url(source, commit, file), self._tree / file
        try:
            found = await self._hub.fetch(
                url, target, self._reporter.meter(file), sha256=self._entry.sha256.get(file)
            )
        except MissingError:
            if optional:
                return False
            raise PullError(f"{source} at {commit} has no {file}") from None
        self._fetched[f"{self._entry.name}/{file}"] = found
        return True

    def _url(self, source: str, commit: str, file: str) -> str:
        return f"{self._place.endpoint.rstrip('/')}/{source}/resolve/{commit}/{file}"

    @property
    def _tree(self) -> Path:
        return self._staging / "tree"

    @property
    def _weights(self) -> Path:
        return self._staging / f"{self._entry.name}.safetensors"

    def _staged(self, path: str) -> Path:
        """Where a file lies that will lie at `path` below the folder of checkpoints."""
        return self._weights if path == self._weights.name else self._tree / path.removeprefix(f"{self._entry.name}/")

    def _placed(self, file: str) -> str:
        """A file of the catalogue's entry, by its path below the folder of checkpoints."""
        return f"{self._entry.name}/{file}" if file else f"{self._entry.name}.safetensors"

    def _describe(self) -> None:
        """Write the entry's defaults beside the index where the checkpoint brings none of its own."""
        path = self._tree / "igen.json"
        if not self._tree.is_dir() or path.is_file():
            return
        said: dict[str, Any] = {"name": self._entry.name}
        for key in ("title", "licence", "preset", "defaults"):
            if value := getattr(self._entry, key):
                said[key] = value
        path.write_text(json.dumps(said, indent=2), encoding="utf-8")

    def _finish(self, commit: str | None) -> Record:
        """Move everything into its place, the weights of a single file last.

        The record comes first: a move keeps size and time, so a process that ends in between has only moves left.
        """
        entry, folder = self._entry, self._place.folder
        files = {path: FileRecord.of(self._staged(path), item.sha256) for path, item in self._fetched.items()}
        record = Record(entry.name, "", files, entry.source, commit, entry.kind, entry.licence)
        write_record(folder, record)
        if self._tree.is_dir():
            old = self._staging / "old"
            shutil.rmtree(old, ignore_errors=True)
            if (folder / entry.name).exists():
                (folder / entry.name).rename(old)
            self._tree.rename(folder / entry.name)
        if self._weights.is_file():
            self._weights.replace(folder / self._weights.name)
        shutil.rmtree(self._staging)
        return record


@contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    """One pull of a name at a time; the lock ends with the process that holds it."""
    staging = folder / STAGING
    staging.mkdir(parents=True, exist_ok=True)
    with (staging / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PullError(f"another pull of {name} is running") from None
        yield
