"""LoRA files: what may be opened, and what the tensors in one are for. safetensors only; nothing is unpickled.

Understood are kohya's names (`lora_unet_..._attn1_to_q.lora_down.weight`, blocks named as in SDXL's original code or
as in diffusers) and those of diffusers and PEFT (`unet.down_blocks....to_q.lora_A.weight`), linear and convolution.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load

from inference.engine.types import LoraError, UnknownLoraError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

LORA_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_. -]*$")
SUFFIX = ".safetensors"
MAX_NAME_CHARS = 200
MAX_FILE_BYTES = 4 * 1024**3  # rank 512 on every layer of SDXL in halves is about 3 GB
MAX_HEADER_BYTES = 16 * 1024**2  # 2,800 tensors, all of SDXL, take 0.4 MB
LENGTH_BYTES = 8
SHOWN = 20

PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
LFS_START = b"version "
# marks, in tensors' names, of adapters that are no plain low-rank pairs
OTHER_KINDS = (
    (("dora_scale", "lora_magnitude_vector"), "a DoRA"),
    (("hada_w",), "a LoHa"),
    (("lokr_w",), "a LoKr"),
    (("oft_blocks", "oft_diag", "oft_R", "boft"), "an OFT"),
    ((".on_input",), "an IA3"),
    ((".a1.weight", ".b1.weight"), "a GLoRA"),
    ((".diff", ".diff_b", ".set_weight"), "a full difference of weights"),
    (("lora_B.bias", "lora_up.bias", "lora.up.bias"), "a LoRA with biases"),
    (("lora_controlnet",), "a Control-LoRA"),
)
ROLES = (
    (re.compile(r"[._]lora(?:_linear_layer)?[._](down|up|mid)\.weight$"), None),
    (re.compile(r"\.lora_(A|B)(?:\.[A-Za-z0-9_-]+)?\.weight$"), {"A": "down", "B": "up"}),
    (re.compile(r"(?:\.lora)?\.(alpha)$"), None),
)
ADAPTER_METADATA = "lora_adapter_metadata"  # diffusers' `LORA_ADAPTER_METADATA_KEY`


@dataclass(slots=True)
class Pair:
    """One layer's tensors as the file has them; `base` is the layer's name there."""

    base: str
    down: torch.Tensor | None = None
    up: torch.Tensor | None = None
    mid: torch.Tensor | None = None
    alpha: float | None = None


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A file's layers, its SHA-256 in hexadecimal, names that mean nothing, and PEFT's settings where it has any."""

    pairs: tuple[Pair, ...]
    sha256: str
    unused: tuple[str, ...] = ()
    adapter: Mapping[str, Any] = field(default_factory=dict)


def lora_names(folder: Path | None) -> tuple[str, ...]:
    """Names that `lora_path` finds, sorted."""
    if folder is None or not folder.is_dir():
        return ()
    found = (item.name.removesuffix(SUFFIX) for item in folder.glob(f"*{SUFFIX}"))
    return tuple(sorted(name for name in found if _inside(folder, name) is not None))


def lora_path(folder: Path | None, name: str) -> Path:
    """The file of a LoRA, which lies in the folder itself: no path, and no link that leads out.

    Raises:
        UnknownLoraError: there is none of this name.

    """
    path = None if folder is None else _inside(folder, name)
    if path is None:
        names = lora_names(folder)
        listed = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        raise UnknownLoraError(f"there is no LoRA '{name[:MAX_NAME_CHARS]}'; there are: {listed or 'none'}")
    return path


def _inside(folder: Path, name: str) -> Path | None:
    if len(name) > MAX_NAME_CHARS or not LORA_NAME.fullmatch(name):
        return None
    try:
        path = (folder / f"{name}{SUFFIX}").resolve(strict=True)
        is_ours = path.is_file() and path.is_relative_to(folder.resolve(strict=True))
    except (OSError, RuntimeError):  # not there, no permission, a loop of links
        return None
    return path if is_ours else None


def read_lora(name: str, path: Path) -> LoraFile:
    """Read a file once, whole: its digest is over the bytes that are used.

    Raises:
        LoraError: it is damaged, no safetensors file, or an adapter of another kind, saying which.

    """
    data = _read(name, path)
    header = _header(name, data)
    metadata = header.pop("__metadata__", None)
    _refuse_other_kinds(name, header)
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, TypeError, KeyError) as problem:
        raise LoraError(f"LoRA '{name}' is damaged: {problem}") from None
    pairs, unused = _sort(name, tensors)
    return LoraFile(pairs, hashlib.sha256(data).hexdigest(), unused, _adapter(metadata))


def _read(name: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            # read, not mapped: a file that is cut short while it is mapped kills the process
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise UnknownLoraError(f"LoRA '{name}' is no longer there") from None
    except OSError as problem:
        raise LoraError(f"LoRA '{name}' cannot be read: {problem.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise LoraError(f"LoRA '{name}' is larger than {MAX_FILE_BYTES} bytes")
    return data


def _header(name: str, data: bytes) -> dict[str, Any]:
    """The JSON at a safetensors file's start (https://github.com/huggingface/safetensors#format)."""
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    if len(data) >= LENGTH_BYTES and length <= len(data) - LENGTH_BYTES:
        if length > MAX_HEADER_BYTES:
            raise LoraError(f"LoRA '{name}' has a header of {length} bytes; at most {MAX_HEADER_BYTES} are read")
        try:
            header = json.loads(data[LENGTH_BYTES : LENGTH_BYTES + length])
        except (ValueError, RecursionError):
            header = None
        if isinstance(header, dict):
            return header
    raise LoraError(f"LoRA '{name}' {_what_it_is(data)}")


def _what_it_is(data: bytes) -> str:
    if data.startswith(PICKLE_STARTS):
        return "is a pickle, which can run code when it is loaded; convert it to safetensors"
    if data.startswith(LFS_START):
        return "is a Git LFS pointer, not the weights; fetch them with `git lfs pull`"
    return "is cut short or no safetensors file"


def _refuse_other_kinds(name: str, header: Mapping[str, Any]) -> None:
    for marks, kind in OTHER_KINDS:
        found = next((key for key in header if any(_has(key, mark) for mark in marks)), None)
        if found is not None:
            raise LoraError(f"LoRA '{name}' is {kind} ({found}), which is not supported; plain LoRA and LoCon are")


def _has(key: str, mark: str) -> bool:
    # a mark that begins with a dot is a whole ending, so that `.diff` does not mean `.different`
    return key.endswith(mark) if mark.startswith(".") else mark in key


def _sort(name: str, tensors: Mapping[str, torch.Tensor]) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    """Tensors by the layer that they belong to, and the names of those that belong to none."""
    pairs: dict[str, Pair] = {}
    keys: defaultdict[str, list[str]] = defaultdict(list)
    unused: list[str] = []
    for key, tensor in tensors.items():
        found = _role(key)
        if found is None:
            unused.append(key)
            continue
        base, role = found
        pair = pairs.setdefault(base, Pair(base))
        keys[base].append(key)
        if role == "alpha":
            pair.alpha = _number(name, key, tensor)
        else:
            setattr(pair, role, tensor)
    for base, pair in list(pairs.items()):
        if pair.down is None and pair.up is None:  # an alpha without anything to scale
            unused += keys[base]
            del pairs[base]
        elif pair.down is None or pair.up is None:
            raise LoraError(f"LoRA '{name}' is damaged: {keys[base][0]} lacks its other half")
    if not pairs:
        raise LoraError(f"LoRA '{name}' holds no low-rank layers; it begins with {', '.join(list(tensors)[:3])}")
    return tuple(pairs.values()), tuple(unused)


def _role(key: str) -> tuple[str, str] | None:
    for pattern, renamed in ROLES:
        found = pattern.search(key)
        if found:
            return key[: found.start()], renamed[found[1]] if renamed else found[1]
    return None


def _number(name: str, key: str, tensor: torch.Tensor) -> float:
    if tensor.numel() != 1 or not bool(tensor.isfinite().all()):
        raise LoraError(f"LoRA '{name}' is damaged: {key} is no finite number")
    return float(tensor.item())


def _adapter(metadata: Any) -> Mapping[str, Any]:
    """PEFT's configuration, which diffusers saves as JSON text: `unet.lora_alpha`, `unet.alpha_pattern` and so on."""
    text = metadata.get(ADAPTER_METADATA) if isinstance(metadata, dict) else None
    try:
        found = json.loads(text) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
