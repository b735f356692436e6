"""The weight files of a checkpoint: which ones are loaded, whether they are whole, and their fingerprint.

Only the headers of the files are read here; a safetensors file is a length, a JSON header and the tensors' bytes
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inference.engine.types import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

PICKLE_SUFFIXES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle"})
STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
LENGTH_BYTES = 8
LFS_POINTER = b"version https://git-lfs"
SHA256_NAME = re.compile(r"^[0-9a-f]{64}$")


@dataclass(frozen=True, slots=True)
class Weights:
    """The files that one part is loaded from. `variant` is `fp16` where they carry that name."""

    files: tuple[Path, ...]
    variant: str | None = None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: there is no such file, or it holds something else.

    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as problem:
        raise CheckpointError(f"{path} cannot be read: {problem}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return data


def refuse_pickle(name: str, path: Path) -> None:
    """Say why a pickle is not loaded.

    Raises:
        CheckpointError: the path names one.

    """
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise CheckpointError(f"{name} is a pickle, which can run code when it is loaded; convert it to .safetensors")


def candidates(part: str, *, half: bool) -> Iterator[tuple[str | None, str]]:
    """Variant and file name of a part's weights, in the order of preference.

    `half` prefers the files that are in half precision already. diffusers looks for an index of shards before a
    single file, transformers the other way round; this order is theirs.
    """
    stem = STEMS[part]
    for variant in ("fp16", None) if half else (None, "fp16"):
        infix = f".{variant}" if variant else ""
        names = (f"{stem}.safetensors.index{infix}.json", f"{stem}{infix}.safetensors")
        for name in names if stem.startswith("diffusion") else reversed(names):
            yield variant, name


def find_weights(name: str, folder: Path, *, half: bool) -> Weights:
    """The files that the part in `folder` is loaded from, each looked at.

    Raises:
        CheckpointError: there are none, only pickles, or one of them is not whole.

    """
    for variant, filename in candidates(folder.name, half=half):
        path = folder / filename
        if path.is_file():
            files = shards_of(path) if path.suffix == ".json" else (path,)
            for file in files:
                read_header(file)
            return Weights(files, variant)
    if any(item.suffix.lower() in PICKLE_SUFFIXES for item in _items(folder)):
        raise CheckpointError(
            f"{name}: {folder.name} has its weights only as a pickle, which can run code when it is loaded; "
            "convert them to .safetensors"
        )
    raise CheckpointError(f"{name}: {folder.name} has no {STEMS[folder.name]}.safetensors")


def _items(folder: Path) -> Iterable[Path]:
    return folder.iterdir() if folder.is_dir() else ()


def shards_of(index: Path) -> tuple[Path, ...]:
    """The files that an index of shards names.

    Raises:
        CheckpointError: it names anything but safetensors files beside it.

    """
    named = read_json(index).get("weight_map")
    names = sorted({str(value) for value in named.values()}) if isinstance(named, dict) else []
    if not names or any("/" in item or "\\" in item or not item.endswith(".safetensors") for item in names):
        raise CheckpointError(f"{index} must name .safetensors files beside it and nothing else")
    return tuple(index.parent / item for item in names)


def read_header(path: Path) -> Mapping[str, Any]:
    """Names, types and places of the tensors in a file, after looking that none of its bytes are missing.

    Raises:
        CheckpointError: it is missing, cut short, or no safetensors file.

    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
            if start == LFS_POINTER:
                raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; fetch them with `git lfs pull`")
            length = int.from_bytes(start[:LENGTH_BYTES], "little")
            if len(start) < LENGTH_BYTES or length > min(MAX_HEADER_BYTES, size):
                raise CheckpointError(f"{path} is cut short or no safetensors file")
            file.seek(LENGTH_BYTES)
            header = json.loads(file.read(length))
        end = max(
            (int(entry["data_offsets"][1]) for key, entry in header.items() if key != "__metadata__"), default=0
        )
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as problem:
        raise CheckpointError(f"{path} cannot be read: {problem.strerror}") from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise CheckpointError(f"{path} is no safetensors file: its header makes no sense") from None
    if size != LENGTH_BYTES + length + end:
        raise CheckpointError(f"{path} is damaged: {size} bytes instead of {LENGTH_BYTES + length + end}")
    header.pop("__metadata__", None)
    found: Mapping[str, Any] = header
    return found


def fingerprint(folder: Path, files: Iterable[Path]) -> str:
    """One SHA-256, in hexadecimal, over the names and digests of the files. A file alone has its own digest."""
    ordered = sorted(files)
    if len(ordered) == 1:
        return file_sha256(ordered[0])
    total = hashlib.sha256()
    for path in ordered:
        total.update(f"{path.relative_to(folder).as_posix()}:{file_sha256(path)}\n".encode())
    return total.hexdigest()


def file_sha256(path: Path) -> str:
    """Of the content, in hexadecimal; taken from the name where a hub's cache names the blob by it.

    Raises:
        CheckpointError: the file cannot be read.

    """
    if path.is_symlink():
        blob = path.resolve()
        # models--<org>--<name>/blobs/<sha256>, the hub's name for every file that it keeps in large-file storage
        if blob.parent.name == "blobs" and blob.parent.parent.name.startswith("models--") and _is_sha256(blob.name):
            return blob.name
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as problem:
        raise CheckpointError(f"{path} cannot be read: {problem.strerror}") from None


def _is_sha256(name: str) -> bool:
    return SHA256_NAME.match(name) is not None
