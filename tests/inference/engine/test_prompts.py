from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from inference.engine.prompts import PromptEncoder

if TYPE_CHECKING:
    from inference.engine.checkpoint import Checkpoint


def encoder(checkpoint: Checkpoint, *, zero_empty: bool = False, keep: int = 128) -> PromptEncoder:
    return PromptEncoder(
        checkpoint.tokenizers,
        checkpoint.text_encoders,
        zero_empty=zero_empty,
        device=checkpoint.device,
        dtype=checkpoint.dtype,
        keep=keep,
    )


@torch.inference_mode()
def test_shapes_and_that_words_matter(checkpoint: Checkpoint) -> None:
    made = encoder(checkpoint)
    red, blue = made.positive("a red circle"), made.positive("a blue circle")
    assert red.states.shape == (77, checkpoint.unet.config.cross_attention_dim)
    assert red.pooled.shape == blue.pooled.shape
    assert (red.states - blue.states).abs().max() > 1e-3
    assert (red.pooled - blue.pooled).abs().max() > 1e-4
    assert red.dropped == 0


@torch.inference_mode()
def test_empty_negative_is_zeros_only_where_the_checkpoint_was_trained_so(checkpoint: Checkpoint) -> None:
    assert encoder(checkpoint, zero_empty=True).negative("").states.abs().max() == 0
    assert encoder(checkpoint, zero_empty=True).negative("").pooled.abs().max() == 0
    assert encoder(checkpoint, zero_empty=False).negative("").states.abs().max() > 0
    zeroing = encoder(checkpoint, zero_empty=True)
    assert zeroing.negative("blurry").states.abs().max() > 0
    zeroing.negative("")
    assert zeroing.positive("").states.abs().max() > 0


@torch.inference_mode()
def test_what_does_not_fit_is_counted(checkpoint: Checkpoint) -> None:
    made = encoder(checkpoint)
    fitting = made.positive("red")
    long = made.positive("red " * 100)
    assert fitting.dropped == 0
    assert long.dropped > 0
    assert long.states.shape == fitting.states.shape


@torch.inference_mode()
def test_the_cache_is_bounded_and_returns_the_same(checkpoint: Checkpoint) -> None:
    made = encoder(checkpoint, keep=2)
    first = made.positive("one")
    assert made.positive("one") is first
    made.positive("two")
    made.positive("three")
    again = made.positive("one")
    assert again is not first
    assert torch.equal(again.states, first.states)
    assert len(made._kept) == 2
