"""Text to embeddings, as SDXL wants them: both encoders' penultimate states side by side, the second's pooled.

A text of any length is cut into chunks of 75 tokens, each encoded by itself between its own begin and end, and their
states are laid end to end; pooled is the first chunk's. Weights are A1111's original emphasis.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from inference.engine.chunks import Token, pack
from inference.engine.emphasis import parse, plain

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from torch import Tensor

    from inference.engine.emphasis import Parsed
    from inference.engine.types import PromptSyntax

MAX_CHUNKS: Final = 8
KEEP_BYTES: Final = 128 * 2**20
"""Memory of kept embeddings; on a device a chunk of SDXL in half precision is 0.3 MB."""
LEAST_RESTORED: Final = 0.5
FIELDS: Final = ("prompt", "negative_prompt")


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """One text: `states` [tokens, width], `pooled` [pooled width]."""

    states: Tensor
    pooled: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """What a picture is drawn from. Both embeddings have the same number of tokens, a multiple of 77.

    `notes` say in plain words, each with its field's name, what of the texts was left out or read otherwise.
    """

    positive: Embedding
    negative: Embedding | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class _Encoded:
    """A text as it is kept; `zero`: zeros stand for no text."""

    embedding: Embedding
    notes: tuple[str, ...]
    zero: bool


class PromptEncoder:
    """Encodes texts chunk by chunk, so that an embedding never depends on what else was asked; keeps the last few.

    Not thread-safe, on purpose: the fast tokenizers and the device belong to the engine's thread.
    """

    def __init__(
        self,
        tokenizers: tuple[Any, ...],
        encoders: tuple[Any, ...],
        *,
        zero_empty: bool,
        device: torch.device,
        dtype: torch.dtype,
        keep: int = 128,
        keep_bytes: int = KEEP_BYTES,
    ) -> None:
        """Hold a checkpoint's tokenizers and encoders: two each, or a refiner's one, the projecting encoder last.

        `zero_empty`: the checkpoint was trained with zeros for no text (`force_zeros_for_empty_prompt`). At most
        `keep` texts are kept, and `keep_bytes` of them.
        """
        self._tokenizers = tokenizers
        self._encoders = encoders
        self._zero_empty = zero_empty
        self._device = device
        self._dtype = dtype
        self._kept = _Kept(keep, keep_bytes)

    def encode(
        self,
        prompt: str,
        negative: str | None,
        *,
        syntax: PromptSyntax = "a1111",
        key: Hashable = (),
        fields: tuple[str, str] = FIELDS,
    ) -> Conditioning:
        """Both texts' embeddings, the shorter one filled with empty chunks.

        Args:
            prompt: what the picture shows.
            negative: what it does not show, `""` for nothing (zeros where the checkpoint was trained that way); None
                where guidance takes no part.
            syntax: how weights are written.
            key: names what changes the encoders, a set of LoRAs say.
            fields: the two texts' names in notes.

        """
        positive = self._text(prompt, syntax, key)
        notes = _named(fields[0], positive.notes)
        if negative is None:
            return Conditioning(positive.embedding, None, notes)
        other = self._text(negative, syntax, key, zero=self._zero_empty)
        tokens = max(_tokens(positive), _tokens(other))
        return Conditioning(
            self._filled(positive, tokens, key),
            self._filled(other, tokens, key),
            (*notes, *_named(fields[1], other.notes)),
        )

    def _text(self, text: str, syntax: PromptSyntax, key: Hashable, *, zero: bool = False) -> _Encoded:
        """One text, kept or new; with `zero`, zeros for one without any token."""
        name = (text, syntax, zero, key)
        found = self._kept.get(name)
        if found is None:
            found = self._encode(parse(text) if syntax == "a1111" else plain(text), zero=zero)
            self._kept.put(name, found)
        return found

    def _filled(self, text: _Encoded, tokens: int, key: Hashable) -> Embedding:
        """The embedding with as many empty chunks behind it as make `tokens` tokens."""
        states = text.embedding.states
        missing = tokens - len(states)
        if not missing:
            return text.embedding
        if text.zero:
            more = states.new_zeros(missing, states.shape[1])
        else:
            empty = self._text("", "plain", key).embedding.states
            more = empty.repeat(missing // len(empty), 1)
        return Embedding(torch.cat((states, more)), text.embedding.pooled)

    def _encode(self, parsed: Parsed, *, zero: bool) -> _Encoded:
        packed = [
            pack(_tokenize(tokenizer, parsed), _length(tokenizer, encoder) - 2, MAX_CHUNKS)
            for tokenizer, encoder in zip(self._tokenizers, self._encoders, strict=True)
        ]
        count = max(len(chunks) for chunks, _ in packed)
        dropped = max(dropped for _, dropped in packed)
        # one tokenizer may need more chunks than the other; the states stand side by side and need as many
        rows = [(*chunks, *[()] * (count - len(chunks))) for chunks, _ in packed]
        states, pooled = self._through_encoders(rows)
        empty = zero and not any(chunk for row in rows for chunk in row)
        if empty:
            states, pooled = torch.zeros_like(states), torch.zeros_like(pooled)
        notes = parsed.notes
        if dropped:
            notes = (*notes, f"its last {dropped} tokens did not fit into {MAX_CHUNKS} chunks and were left out")
        return _Encoded(Embedding(states, pooled), notes, empty)

    def _through_encoders(self, rows: Sequence[Sequence[Sequence[Token]]]) -> tuple[Tensor, Tensor]:
        """States [tokens, width] and pooled [width] of an equal number of chunks for each encoder."""
        columns, pooled = [], None
        for tokenizer, encoder, chunks in zip(self._tokenizers, self._encoders, rows, strict=True):
            parts = []
            for place, chunk in enumerate(chunks):
                out = self._run(tokenizer, encoder, chunk)
                if place == 0 and out[0].ndim == 2:  # noqa: PLR2004 - only the projecting encoder's is [batch, width]
                    pooled = out[0][0]
                parts.append(_weighed(out.hidden_states[-2][0], chunk))
            columns.append(torch.cat(parts))
        if pooled is None:
            raise RuntimeError("the checkpoint has no projecting text encoder")
        return torch.cat(columns, dim=-1).to(self._dtype), pooled.to(self._dtype)

    def _run(self, tokenizer: Any, encoder: Any, chunk: Sequence[Token]) -> Any:
        ids = [tokenizer.bos_token_id, *(token.id for token in chunk), tokenizer.eos_token_id]
        # the two tokenizers pad with different tokens
        ids += [tokenizer.pad_token_id] * (_length(tokenizer, encoder) - len(ids))
        return encoder(torch.tensor([ids], device=self._device), output_hidden_states=True)


class _Kept:
    """The texts used last, bounded in number and bytes."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._texts: OrderedDict[Hashable, _Encoded] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._texts)

    def get(self, name: Hashable) -> _Encoded | None:
        if name in self._texts:
            self._texts.move_to_end(name)
        return self._texts.get(name)

    def put(self, name: Hashable, text: _Encoded) -> None:
        self._texts[name] = text
        self.bytes += _size(text)
        while self._texts and (len(self._texts) > self._most or self.bytes > self._most_bytes):
            self.bytes -= _size(self._texts.popitem(last=False)[1])


def _size(text: _Encoded) -> int:
    return text.embedding.states.nbytes + text.embedding.pooled.nbytes


def _tokens(text: _Encoded) -> int:
    return len(text.embedding.states)


def _named(field: str, notes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{field}: {note}" for note in notes)


def _length(tokenizer: Any, encoder: Any) -> int:
    """Tokens of one chunk with its begin and end, 77 for CLIP; some tokenizers' own figure is no real bound."""
    return int(min(tokenizer.model_max_length, encoder.config.max_position_embeddings))


def _tokenize(tokenizer: Any, parsed: Parsed) -> list[list[Token]]:
    """Each section's tokens, tokenized span by span."""
    sections: list[list[Token]] = []
    for section in parsed.sections:
        sections.append(tokens := [])
        for number, span in enumerate(section):
            ids = tokenizer(span.text, add_special_tokens=False, truncation=False, verbose=False).input_ids
            for token, text in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
                # byte pairs of CLIP: what ends a word says so
                tokens.append(Token(token, span.weight, number, text == ",</w>", text.endswith("</w>")))
    return sections


def _weighed(states: Tensor, chunk: Sequence[Token]) -> Tensor:
    """One chunk's states [tokens, width], each token's times its weight, then all scaled to the mean of before.

    That is A1111's default ("Original"). There, states whose positive and negative numbers nearly cancel make the
    scale huge or turn the sign, a known fault with SDXL (its pull request 14874). Where they do not cancel, the scale
    lies between the inverses of the largest and of the smallest weight, so that here it is held within these, and the
    upper one to 2.
    """
    if all(token.weight == 1 for token in chunk):
        return states
    weights = [1.0, *(token.weight for token in chunk)]
    weights += [1.0] * (len(states) - len(weights))
    before = states.float()
    after = before * torch.tensor(weights, device=states.device)[:, None]
    scale = (before.mean() / after.mean()).abs().nan_to_num(1.0)
    scale = scale.clamp(1 / max(weights), 1 / max(LEAST_RESTORED, min(weights)))
    return (after * scale).to(states.dtype)
