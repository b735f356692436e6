"""Checkpoints of the Hugging Face hub: found in a cache laid out as the hub's own, or fetched at a pinned commit.

Only the files that will be loaded are fetched, never code and never pickles.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.engine.catalogue import COMMIT
from inference.engine.layout import SCHEDULER_CONFIG, check_folder, check_index, choose_weights
from inference.engine.libraries import quiet_libraries
from inference.engine.types import CheckpointError
from inference.engine.weights import candidates, read_json, shards_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference.engine.layout import Layout

log = logging.getLogger(__name__)

VOCABULARY = (
    "tokenizer_config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
SMALL_FILE_S = 60.0  # the library's own retries of a hub that does not answer add up to several minutes


def required_files(layout: Layout) -> tuple[str, ...]:
    """Files that a checkpoint must have beside its `model_index.json` and its weights."""
    return (SCHEDULER_CONFIG, *(f"{part}/config.json" for part in layout.parts))


def optional_files(layout: Layout) -> tuple[str, ...]:
    """Files that are read where a checkpoint has them."""
    return ("igen.json", *(f"{tokenizer}/{file}" for tokenizer in layout.tokenizers for file in VOCABULARY))


def find_cached(name: str, revision: str | None, search: tuple[Path, ...]) -> Path | None:
    """The snapshot of a hub id in the search path, such as RunPod's cached models; its main one if not pinned.

    Raises:
        CheckpointError: `revision` is no commit.

    """
    if revision is not None and not COMMIT.match(revision):
        raise CheckpointError(
            f"IGEN_CHECKPOINT_REVISION must be the 40 hexadecimal digits of a commit of {name}, not '{revision}'"
        )
    for root in search:
        for cache in (root, root / "hub"):
            folder = cache / f"models--{name.replace('/', '--')}"
            wanted = revision or _main_of(folder)
            if wanted and (folder / "snapshots" / wanted / "model_index.json").is_file():
                return folder / "snapshots" / wanted
    return None


def _main_of(folder: Path) -> str | None:
    ref = folder / "refs" / "main"
    if not ref.is_file():
        return None
    commit = ref.read_text(encoding="utf-8", errors="replace").strip()
    return commit if COMMIT.match(commit) else None


def fetch(name: str, revision: str, *, weights: bool = True) -> Path:
    """The snapshot folder of a commit, from this user's cache of the hub where it is whole, else from the hub.

    `weights` false fetches only what describes the checkpoint.

    Raises:
        CheckpointError: it is not SDXL in safetensors, or the hub cannot be reached or says no.

    """
    quiet_libraries()
    cached = _get(name, revision, "model_index.json", local=True)
    if cached is not None and _is_whole(name, cached.parent, weights=weights):
        return cached.parent
    log.info("fetching %s at %s from the hub", name, revision)
    index = _required(name, revision, "model_index.json")
    layout = check_index(name, read_json(index))
    for file in required_files(layout):
        _required(name, revision, file)
    for file in optional_files(layout):
        _get(name, revision, file)
    check_folder(name, index.parent)
    for part in layout.parts if weights else ():
        _fetch_weights(name, revision, part)
    return index.parent


def _is_whole(name: str, folder: Path, *, weights: bool) -> bool:
    try:
        layout = check_folder(name, folder)
        if weights:
            choose_weights(name, folder, layout, half=True)
    except CheckpointError as problem:
        log.info("the cached %s is not whole: %s", name, problem)
        return False
    return True


def _fetch_weights(name: str, revision: str, part: str) -> None:
    for _variant, filename in candidates(part, half=True):  # half the bytes where the repository offers them
        found = _get(name, revision, f"{part}/{filename}", small=False)
        if found is None:
            continue
        for shard in shards_of(found) if found.suffix == ".json" else ():
            _required(name, revision, f"{part}/{shard.name}", small=False)
        return
    raise CheckpointError(f"{name} at {revision} has no safetensors weights of its {part}; pickles are not loaded")


def _required(name: str, revision: str, file: str, *, small: bool = True) -> Path:
    found = _get(name, revision, file, small=small)
    if found is None:
        raise CheckpointError(f"{name} at {revision} has no {file}")
    return found


def _get(name: str, revision: str, file: str, *, local: bool = False, small: bool = True) -> Path | None:
    """One file; None where the repository (or, `local`, the cache) has none.

    The wait for a `small` one is bounded as a whole, for others by the library's time-outs and number of retries.
    """
    from transformers.utils import cached_file  # noqa: PLC0415 - after quiet_libraries

    limit_s = SMALL_FILE_S if small else None
    try:
        found = _within(limit_s, lambda: cached_file(name, file, revision=revision, local_files_only=local))
    except TimeoutError:
        raise CheckpointError(f"{name}: the hub did not answer within {limit_s:.0f} s") from None
    except Exception as problem:
        # the library tells a file that is not there from every other trouble by naming no cause
        if local or (isinstance(problem, OSError) and problem.__cause__ is None):
            return None
        raise CheckpointError(f"{name} at {revision} could not be fetched from the hub: {problem}") from problem
    return None if found is None else Path(found)


def _within(seconds: float | None, call: Callable[[], Any]) -> Any:
    """The call's result; TimeoutError after `seconds`, and the call is left to end by itself."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as problem:  # noqa: BLE001 - raised again in the caller's thread by result()
            future.set_exception(problem)

    threading.Thread(target=run, name="igen-hub", daemon=True).start()
    return future.result(seconds)
