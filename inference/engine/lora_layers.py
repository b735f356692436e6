"""From a LoRA file's names to the modules of a checkpoint, and whether the tensors fit them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from inference.engine.types import LoraError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from inference.engine.lora_files import LoraFile, Pair

Part = Literal["unet", "text_encoder", "text_encoder_2"]

MAX_RANK = 1024
SHOWN = 3
# the longest that fits counts
PREFIXES: tuple[tuple[str, Part], ...] = (
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te_", "text_encoder"),
    ("text_encoder_2.", "text_encoder_2"),
    ("text_encoder.", "text_encoder"),
    ("lora_unet_", "unet"),
    ("base_model.model.unet.", "unet"),
    ("base_model.model.", "unet"),
    ("diffusion_model.", "unet"),
    ("unet.", "unet"),
    ("", "unet"),
)
# diffusers' own names before it used PEFT's: layers of an attention's processor
OLDER = (
    ("_processor_", "_"),
    *((f"self_attn_to_{letter}", f"self_attn_{letter}_proj") for letter in ("q", "k", "v", "out")),
)
# one block of the original code, in diffusers' words
SGM_ENDS = {
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
    "input_blocks_0_0": "conv_in",
    "out_2": "conv_out",
}
SGM_INNER = {
    "in_layers_2": "conv1",
    "out_layers_3": "conv2",
    "emb_layers_1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
    "op": "conv",  # of a downsampler
}
BLOCK = re.compile(r"^\w+_blocks?(\.\d+)?\.\w+\.\d+")
SGM_BLOCK = re.compile(r"^((?:input|output)_blocks_\d+_\d+|middle_block_\d+)_(.+)$")


@dataclass(frozen=True, slots=True)
class Layer:
    """What a LoRA adds to one module: `factor` * up(mid(down(x))); `factor` is alpha / rank.

    Linear: `down` [rank, in], `up` [out, rank]. Convolution: `down` [rank, in, h, w] with the module's own stride,
    `up` [out, rank, 1, 1]; with a `mid` [rank, rank, h, w], which then has the stride, `down` is 1x1.
    """

    part: Part
    path: str
    down: torch.Tensor
    up: torch.Tensor
    mid: torch.Tensor | None
    factor: float

    @property
    def nbytes(self) -> int:
        return self.down.nbytes + self.up.nbytes + (0 if self.mid is None else self.mid.nbytes)


def parts_of(unet: Any, text_encoders: Iterable[Any]) -> dict[Part, Any]:
    """The modules by name; the second text encoder is the one that projects, alone in a refiner."""
    found: dict[Part, Any] = {"unet": unet}
    for encoder in text_encoders:
        if encoder is not None:
            found["text_encoder_2" if hasattr(encoder, "text_projection") else "text_encoder"] = encoder
    return found


def fit(name: str, file: LoraFile, modules: Mapping[Part, Any]) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    """The layers on their modules' device and in their type, and the names of those that have no module here.

    Raises:
        LoraError: none has, or one does not fit its module (a LoRA for another architecture).

    """
    table = {part: _Names(part, module) for part, module in modules.items()}
    layers: list[Layer] = []
    wrong: list[str] = []
    unused = list(file.unused)
    taken: set[tuple[Part, str]] = set()
    for pair in file.pairs:
        found = _find(pair.base, table)
        if found is None or found[:2] in taken:
            unused.append(pair.base)
            continue
        part, path, module = found
        taken.add((part, path))
        problem = _misfit(pair, module)
        if problem:
            wrong.append(f"{pair.base} ({problem})")
        elif not wrong:
            layers.append(_place(name, pair, (part, path), module, _alpha(file.adapter, part, path, pair)))
    if wrong:
        raise LoraError(f"LoRA '{name}' is for another architecture: {_few(wrong)} do not fit this checkpoint")
    if not layers:
        raise LoraError(f"LoRA '{name}' fits nothing of this checkpoint: {_few(unused)} have no module in it")
    return tuple(layers), tuple(unused)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


class _Names:
    """Every name that a module of one part goes by in LoRA files, with dots as underscores."""

    def __init__(self, part: Part, root: Any) -> None:
        self.modules = {
            path: module
            for path, module in root.named_modules()
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
        }
        # transformers has dropped the leading text_model. from one of its two classes
        self._paths = {path.replace(".", "_").removeprefix("text_model_"): path for path in self.modules}
        self._blocks = dict(_sgm_blocks(self.modules)) if part == "unet" else {}

    def find(self, name: str) -> str | None:
        """The module's path; `name` is without the part's prefix."""
        name = name.replace(".", "_").removeprefix("text_model_")
        for candidate in (name, self._from_sgm(name), _from_older(name)):
            if candidate in self._paths:
                return self._paths[candidate]
        return None

    def _from_sgm(self, name: str) -> str:
        if name in SGM_ENDS:
            return SGM_ENDS[name]
        found = SGM_BLOCK.match(name)
        if found is None or found[1] not in self._blocks:
            return name
        return f"{self._blocks[found[1]]}_{SGM_INNER.get(found[2], found[2])}"


def _from_older(name: str) -> str:
    for old, new in OLDER:
        name = name.replace(old, new)
    return f"{name}_0" if name.endswith("_to_out") else name


def _sgm_blocks(paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Blocks of the original code and what diffusers calls them: the original counts through what diffusers nests."""
    blocks = {found[0] for path in paths if (found := BLOCK.match(path))}
    yield from _sgm_side("input", "down", 1, blocks)  # input block 0 is conv_in
    yield from _sgm_side("output", "up", 0, blocks)
    for place, inner in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        yield f"middle_block_{place}", _flat(f"mid_block.{inner}")


def _sgm_side(side: str, way: str, first: int, blocks: Collection[str]) -> Iterator[tuple[str, str]]:
    place = first
    for block in range(_count(f"{way}_blocks.", blocks)):
        inner = f"{way}_blocks.{block}"
        for number in range(_count(f"{inner}.resnets.", blocks)):
            yield f"{side}_blocks_{place}_0", _flat(f"{inner}.resnets.{number}")
            yield f"{side}_blocks_{place}_1", _flat(f"{inner}.attentions.{number}")
            place += 1
        if f"{inner}.downsamplers.0" in blocks:  # a place of its own
            yield f"{side}_blocks_{place}_0", _flat(f"{inner}.downsamplers.0")
            place += 1
        if f"{inner}.upsamplers.0" in blocks:  # the last one's third, or its second where there is no attention
            third = 2 if f"{inner}.attentions.0" in blocks else 1
            yield f"{side}_blocks_{place - 1}_{third}", _flat(f"{inner}.upsamplers.0")


def _count(start: str, blocks: Iterable[str]) -> int:
    return 1 + max((int(item[len(start) :].split(".")[0]) for item in blocks if item.startswith(start)), default=-1)


def _flat(path: str) -> str:
    return path.replace(".", "_")


def _find(base: str, table: Mapping[Part, _Names]) -> tuple[Part, str, Any] | None:
    part, prefix = next((part, prefix) for prefix, part in PREFIXES if base.startswith(prefix))
    names = table.get(part)
    path = names.find(base.removeprefix(prefix)) if names else None
    return None if names is None or path is None else (part, path, names.modules[path])


def _misfit(pair: Pair, module: Any) -> str | None:
    """What is wrong with a pair for its module, None where it fits."""
    down, up, mid = _shape(pair.down), _shape(pair.up), _shape(pair.mid)
    rank = down[0] if down else 0
    out, into, *kernel = module.weight.shape
    if not 1 <= rank <= MAX_RANK:
        return f"rank {rank}, of at most {MAX_RANK}"
    if isinstance(module, torch.nn.Linear) or mid:
        kernel = [1] * (len(down) - 2)
    if mid and (isinstance(module, torch.nn.Linear) or mid != (rank, rank, *module.weight.shape[2:])):
        return f"middle {list(mid)}, rank {rank}"
    if _padded(down) != _padded((rank, into, *kernel)) or _padded(up) != _padded((out, rank)):
        return f"{list(down)} and {list(up)} for {list(module.weight.shape)}"
    if not all(tensor is None or tensor.is_floating_point() for tensor in (pair.down, pair.up, pair.mid)):
        return "whole numbers"
    return None


def _shape(tensor: torch.Tensor | None) -> tuple[int, ...]:
    return () if tensor is None else tuple(tensor.shape)


def _padded(shape: tuple[int, ...]) -> tuple[int, ...]:
    # a 1x1 convolution may be written as a linear layer and the other way round
    return (*shape, 1, 1) if len(shape) == 2 else shape  # noqa: PLR2004 - [out, in]


def _place(name: str, pair: Pair, place: tuple[Part, str], module: Any, alpha: float | None) -> Layer:
    assert pair.down is not None  # noqa: S101 - reading refuses halves of a pair
    assert pair.up is not None  # noqa: S101 - as above
    dims = module.weight.ndim
    down, up = (_to(name, pair.base, tensor, module.weight, dims) for tensor in (pair.down, pair.up))
    mid = None if pair.mid is None else _to(name, pair.base, pair.mid, module.weight, dims)
    rank = down.shape[0]
    return Layer(*place, down, up, mid, (rank if alpha is None else alpha) / rank)


def _to(name: str, base: str, tensor: torch.Tensor, weight: torch.Tensor, dims: int) -> torch.Tensor:
    shape = (*tensor.shape, 1, 1)[:dims]
    # copied always: what was read shares its memory with the whole file
    placed = tensor.reshape(shape).to(device=weight.device, dtype=weight.dtype, copy=True)
    if not bool(placed.isfinite().all()):
        raise LoraError(f"LoRA '{name}' is damaged: {base} holds values that are no numbers in {weight.dtype}")
    return placed


def _alpha(adapter: Mapping[str, Any], part: Part, path: str, pair: Pair) -> float | None:
    """The pair's own alpha, else PEFT's for this module; None where neither says one, which means the rank."""
    if pair.alpha is not None:
        return pair.alpha
    # as PEFT matches its patterns: the whole path, or its end after a dot
    patterns = adapter.get(f"{part}.alpha_pattern")
    found = adapter.get(f"{part}.lora_alpha")
    for key, value in patterns.items() if isinstance(patterns, dict) else ():
        if any(f".{own}".endswith(f".{key}") for own in (path, pair.base)):
            found = value
            break
    if not isinstance(found, int | float) or isinstance(found, bool) or not math.isfinite(found):
        return None
    rank = _shape(pair.down)[0]
    # rank-stabilised LoRA divides by the root of the rank
    return float(found) * math.sqrt(rank) if adapter.get(f"{part}.use_rslora") is True else float(found)
