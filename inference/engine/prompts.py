"""Text to embeddings, as SDXL wants them: both encoders' penultimate states side by side, the second's pooled."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Embedding:
    """One text: `states` [tokens, width], `pooled` [pooled width]; `dropped` tokens did not fit."""

    states: Tensor
    pooled: Tensor
    dropped: int


class PromptEncoder:
    """Encodes texts one by one, so that an embedding never depends on what else was asked, and keeps the last few.

    Not thread-safe, on purpose: the fast tokenizers and the device belong to the engine's thread.
    """

    def __init__(
        self,
        tokenizers: tuple[Any, Any],
        encoders: tuple[Any, Any],
        *,
        zero_empty: bool,
        device: torch.device,
        dtype: torch.dtype,
        keep: int = 128,
    ) -> None:
        """`zero_empty`: the checkpoint was trained with zeros for no text (`force_zeros_for_empty_prompt`)."""
        self._tokenizers = tokenizers
        self._encoders = encoders
        self._zero_empty = zero_empty
        self._device = device
        self._dtype = dtype
        self._kept: OrderedDict[tuple[str, bool], Embedding] = OrderedDict()
        self._keep = keep

    def positive(self, text: str) -> Embedding:
        """The prompt's embedding."""
        return self._cached(text, zero=False)

    def negative(self, text: str) -> Embedding:
        """The negative prompt's; zeros for no text where the checkpoint was trained that way."""
        return self._cached(text, zero=self._zero_empty and not text)

    def _cached(self, text: str, *, zero: bool) -> Embedding:
        key = (text, zero)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        embedding = self._encode(text)
        if zero:
            embedding = Embedding(torch.zeros_like(embedding.states), torch.zeros_like(embedding.pooled), 0)
        self._kept[key] = embedding
        while len(self._kept) > self._keep:
            self._kept.popitem(last=False)
        return embedding

    def _encode(self, text: str) -> Embedding:
        states, pooled, dropped = [], None, 0
        for tokenizer, encoder in zip(self._tokenizers, self._encoders, strict=True):
            limit = tokenizer.model_max_length
            ids = tokenizer(
                text, padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
            ).input_ids
            dropped = max(dropped, len(tokenizer(text, truncation=False, verbose=False).input_ids) - limit)
            out = encoder(ids.to(self._device), output_hidden_states=True)
            if out[0].ndim == 2:  # noqa: PLR2004 - only the projecting encoder's first output is [batch, width]
                pooled = out[0][0]
            states.append(out.hidden_states[-2][0])
        if pooled is None:
            raise RuntimeError("the checkpoint has no projecting text encoder")
        joined = torch.cat(states, dim=-1).to(self._dtype)
        return Embedding(joined, pooled.to(self._dtype), max(0, dropped))
