"""A CLIP tokenizer with a small vocabulary of our own: bytes, and merges for every word that captions use."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING

from transformers import CLIPTokenizer

from scripts.train_tiny.architecture import CONTEXT_LENGTH

if TYPE_CHECKING:
    from collections.abc import Iterable

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
_PRINTABLE = (range(ord("!"), ord("~") + 1), range(0xA1, 0xAD), range(0xAE, 0x100))


def byte_alphabet() -> list[str]:
    """Return the 256 printable stand-ins for bytes in CLIP's order: printable bytes first, so "!" is 0."""
    printable = [code for span in _PRINTABLE for code in span]
    return [chr(code) for code in printable] + [chr(256 + n) for n in range(256 - len(printable))]


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Merge the commonest neighbours until every word is one token.

    Merging stops only when no word has two parts left, so at inference the same merges in the same order
    take each of these words to a single token, and any other word to pieces or bytes.
    """
    split = [[*word[:-1], word[-1] + WORD_END] for word in sorted(set(words)) if word]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for parts in split for pair in itertools.pairwise(parts))
        if not pairs:
            return merges
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        split = [_merge(parts, best) for parts in split]


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    position = 0
    while position < len(parts):
        if tuple(parts[position : position + 2]) == pair:
            merged.append(pair[0] + pair[1])
            position += 2
        else:
            merged.append(parts[position])
            position += 1
    return merged


def build_tokenizers(words: Iterable[str]) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """Build both tokenizers: one vocabulary, and SDXL's two habits of padding ("<|endoftext|>" and "!")."""
    merges = learn_merges(words)
    alphabet = byte_alphabet()
    tokens = [*alphabet, *(byte + WORD_END for byte in alphabet)]
    tokens += dict.fromkeys(left + right for left, right in merges)
    vocabulary = {token: number for number, token in enumerate([*tokens, START, END])}
    first, second = (
        CLIPTokenizer(
            vocab=vocabulary,
            merges=list(merges),
            unk_token=END,
            bos_token=START,
            eos_token=END,
            pad_token=pad,
            model_max_length=CONTEXT_LENGTH,
        )
        for pad in (END, "!")
    )
    return first, second
