from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from inference.engine.chunks import Token
from inference.engine.prompts import MAX_CHUNKS, PromptEncoder, _weighed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inference.engine.checkpoint import Checkpoint
    from inference.engine.prompts import Conditioning, Embedding

CHUNK = 77
PLAIN = "a red circle on a blue background"
TEXTS = ("", PLAIN, "x", "red, " * 37, "extraordinary xylophones, ünïcode 日本 <|endoftext|> after", "red " * 75)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def make_encoder(checkpoint: Checkpoint) -> Callable[..., PromptEncoder]:
    def make(**changes: Any) -> PromptEncoder:
        options = {
            "zero_empty": False,
            "device": checkpoint.device,
            "dtype": checkpoint.dtype,
            **changes,
        }
        return PromptEncoder(checkpoint.tokenizers, checkpoint.text_encoders, **options)

    return make


@pytest.fixture
def encoder(make_encoder: Callable[..., PromptEncoder]) -> PromptEncoder:
    return make_encoder()


@pytest.fixture
def refiner(checkpoint: Checkpoint) -> PromptEncoder:
    return PromptEncoder(
        checkpoint.tokenizers[1:],
        checkpoint.text_encoders[1:],
        zero_empty=False,
        device=checkpoint.device,
        dtype=checkpoint.dtype,
    )


@pytest.fixture(scope="module")
def pipeline(checkpoint: Checkpoint) -> Any:
    """Stock diffusers on the same modules."""
    import diffusers

    made = diffusers.StableDiffusionXLPipeline(
        vae=checkpoint.vae,
        text_encoder=checkpoint.text_encoders[0],
        text_encoder_2=checkpoint.text_encoders[1],
        tokenizer=checkpoint.tokenizers[0],
        tokenizer_2=checkpoint.tokenizers[1],
        unet=checkpoint.unet,
        scheduler=diffusers.EulerDiscreteScheduler.from_config(dict(checkpoint.scheduler_config)),
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def negative_of(conditioning: Conditioning) -> Embedding:
    assert conditioning.negative is not None
    return conditioning.negative


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


# as stock


@pytest.mark.parametrize("syntax", ["a1111", "plain"])
@pytest.mark.parametrize("prompt", TEXTS)
def test_what_fits_one_chunk_is_stock_diffusers_to_the_bit(
    encoder: PromptEncoder, pipeline: Any, prompt: str, syntax: Any
) -> None:
    made = encoder.encode(prompt, "blurry, noisy", syntax=syntax)
    states, negative, pooled, negative_pooled = pipeline.encode_prompt(
        prompt, negative_prompt="blurry, noisy", device="cpu"
    )
    assert made.notes == ()
    assert torch.equal(made.positive.states, states[0])
    assert torch.equal(made.positive.pooled, pooled[0])
    assert torch.equal(negative_of(made).states, negative[0])
    assert torch.equal(negative_of(made).pooled, negative_pooled[0])


def test_a_refiner_has_the_projecting_encoder_alone(
    refiner: PromptEncoder, encoder: PromptEncoder, checkpoint: Checkpoint, pipeline: Any
) -> None:
    import diffusers

    stock = diffusers.StableDiffusionXLImg2ImgPipeline(
        vae=checkpoint.vae,
        text_encoder=None,
        text_encoder_2=checkpoint.text_encoders[1],
        tokenizer=None,
        tokenizer_2=checkpoint.tokenizers[1],
        unet=checkpoint.unet,
        scheduler=pipeline.scheduler,
        add_watermarker=False,
    )
    states, _, pooled, _ = stock.encode_prompt(PLAIN, negative_prompt="", device="cpu")
    made = refiner.encode(PLAIN, "blurry, " * 60)
    assert torch.equal(made.positive.states[:CHUNK], states[0])
    assert torch.equal(made.positive.pooled, pooled[0])
    width = checkpoint.text_encoders[1].config.hidden_size
    assert torch.equal(
        negative_of(made).states, negative_of(encoder.encode(PLAIN, "blurry, " * 60)).states[:, -width:]
    )


def test_without_a_projecting_encoder_nothing_can_be_drawn(checkpoint: Checkpoint) -> None:
    lone = PromptEncoder(
        checkpoint.tokenizers[:1],
        checkpoint.text_encoders[:1],
        zero_empty=False,
        device=checkpoint.device,
        dtype=checkpoint.dtype,
    )
    with pytest.raises(RuntimeError, match="no projecting text encoder"):
        lone.encode("x", None)


def test_half_precision_is_the_encoders_own(
    checkpoint: Checkpoint, make_encoder: Callable[..., PromptEncoder]
) -> None:
    made = make_encoder(dtype=torch.float16).encode("a (red:1.3) circle", "")
    assert {made.positive.states.dtype, made.positive.pooled.dtype} == {torch.float16}


# no text


def test_no_negative_text_is_zeros_only_where_the_checkpoint_was_trained_so(
    make_encoder: Callable[..., PromptEncoder],
) -> None:
    zeroing, plain = make_encoder(zero_empty=True), make_encoder(zero_empty=False)
    for nothing in ("", "  ", "<lora:x:1>", "()"):
        negative = negative_of(zeroing.encode("red", nothing))
        assert negative.states.shape == (CHUNK, negative.states.shape[1])
        assert negative.states.abs().max() == 0
        assert negative.pooled.abs().max() == 0
    assert negative_of(plain.encode("red", "")).states.abs().max() > 0
    assert negative_of(zeroing.encode("red", "blurry")).states.abs().max() > 0
    assert zeroing.encode("", "").positive.states.abs().max() > 0
    assert negative_of(zeroing.encode("", "")).states.abs().max() == 0


def test_zeros_stay_zeros_beside_a_long_prompt(make_encoder: Callable[..., PromptEncoder]) -> None:
    made = make_encoder(zero_empty=True).encode("red, " * 60, "")
    assert negative_of(made).states.shape == made.positive.states.shape == (2 * CHUNK, made.positive.states.shape[1])
    assert negative_of(made).states.abs().max() == 0


def test_without_guidance_there_is_no_negative(encoder: PromptEncoder) -> None:
    assert encoder.encode("red", None).negative is None


# long texts


def test_a_long_text_is_its_chunks_end_to_end(encoder: PromptEncoder) -> None:
    first, second = "red, " * 37, "a blue circle, green, white"
    made = encoder.encode(first + second, "")
    assert made.notes == ()
    assert made.positive.states.shape[0] == 2 * CHUNK
    assert torch.equal(made.positive.states[:CHUNK], encoder.encode(first, None).positive.states)
    assert torch.equal(made.positive.states[CHUNK:], encoder.encode(second, None).positive.states)
    assert torch.equal(made.positive.pooled, encoder.encode(first, None).positive.pooled)


def test_the_last_words_of_a_long_text_matter(encoder: PromptEncoder) -> None:
    red = encoder.encode("on a white background, " * 20 + "a red circle", None)
    blue = encoder.encode("on a white background, " * 20 + "a blue circle", None)
    assert red.positive.states.shape[0] == 2 * CHUNK
    assert difference(red.positive.states, blue.positive.states) > 1e-3


def test_break_begins_a_chunk(encoder: PromptEncoder) -> None:
    made = encoder.encode("a red circle BREAK a blue star", None)
    expected = [encoder.encode(text, None).positive.states for text in ("a red circle", "a blue star")]
    assert torch.equal(made.positive.states, torch.cat(expected))
    assert encoder.encode("BREAK a BREAK BREAK b BREAK", None).positive.states.shape[0] == 2 * CHUNK
    assert encoder.encode("a BREAK b", None, syntax="plain").positive.states.shape[0] == CHUNK


@pytest.mark.parametrize(("prompt", "negative"), [("red, " * 100, "blurry"), ("red", "blurry, " * 100)])
def test_the_shorter_text_is_filled_with_empty_chunks(encoder: PromptEncoder, prompt: str, negative: str) -> None:
    made = encoder.encode(prompt, negative)
    assert made.positive.states.shape == negative_of(made).states.shape
    assert made.positive.states.shape[0] == 3 * CHUNK
    shorter = made.positive if prompt == "red" else negative_of(made)
    alone = encoder.encode(min(prompt, negative, key=len), None).positive
    empty = encoder.encode("", None).positive.states
    assert torch.equal(shorter.states, torch.cat((alone.states, empty, empty)))
    assert torch.equal(shorter.pooled, alone.pooled)


def test_what_does_not_fit_is_counted_and_said(encoder: PromptEncoder) -> None:
    made = encoder.encode("red " * 75 * MAX_CHUNKS + "blue blue", "")
    assert made.positive.states.shape[0] == MAX_CHUNKS * CHUNK
    assert made.notes == ("prompt: its last 2 tokens did not fit into 8 chunks and were left out",)
    assert encoder.encode("red " * 75 * MAX_CHUNKS, "").notes == ()


def test_a_tokenizer_that_states_no_bound_has_the_encoders(
    checkpoint: Checkpoint, encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounded = encoder.encode("red " * 100, None).positive.states
    for tokenizer in checkpoint.tokenizers:
        monkeypatch.setattr(tokenizer, "model_max_length", 10**30)
    again = PromptEncoder(
        checkpoint.tokenizers,
        checkpoint.text_encoders,
        zero_empty=False,
        device=checkpoint.device,
        dtype=checkpoint.dtype,
    )
    assert torch.equal(again.encode("red " * 100, None).positive.states, bounded)


class Chatty:
    """A tokenizer that makes each word two tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: str, **options: Any) -> Any:
        found = self._tokenizer(text, **options)
        found["input_ids"] = [token for token in found["input_ids"] for _ in range(2)]
        return found


def test_tokenizers_may_need_a_different_number_of_chunks(checkpoint: Checkpoint, encoder: PromptEncoder) -> None:
    uneven = PromptEncoder(
        (checkpoint.tokenizers[0], Chatty(checkpoint.tokenizers[1])),
        checkpoint.text_encoders,
        zero_empty=False,
        device=checkpoint.device,
        dtype=checkpoint.dtype,
    )
    states = uneven.encode("red " * 50, None).positive.states
    width = checkpoint.text_encoders[0].config.hidden_size
    assert states.shape[0] == 2 * CHUNK
    assert torch.equal(states[:CHUNK, :width], encoder.encode("red " * 50, None).positive.states[:, :width])
    assert torch.equal(states[CHUNK:, :width], encoder.encode("", None).positive.states[:, :width])


# weights


def test_a_weight_moves_its_own_tokens_and_more_the_larger_it_is(encoder: PromptEncoder) -> None:
    base = encoder.encode(PLAIN, None).positive
    red = 2  # begin, "a", "red"
    moved = []
    for weight in ("1.2", "1.5", "3"):
        made = encoder.encode(f"a (red:{weight}) circle on a blue background", None).positive
        grown = made.states[red].norm() / made.states[0].norm() / (base.states[red].norm() / base.states[0].norm())
        assert float(grown) == pytest.approx(float(weight), rel=1e-3)
        assert torch.equal(made.pooled, base.pooled), "as in A1111, pooled knows no weights"
        moved.append(difference(made.states, base.states))
    assert moved == sorted(moved)
    assert moved[0] > 0.1


def test_plain_text_has_no_weights(encoder: PromptEncoder) -> None:
    written = "a (red:1.5) circle"
    assert encoder.encode(written, None, syntax="plain").notes == ()
    one, other = (encoder.encode(written, None, syntax=syntax).positive.states for syntax in ("plain", "a1111"))
    assert difference(one, other) > 0.1
    assert torch.equal(encoder.encode(r"a \(red:1.5\) circle", None).positive.states, one)


def test_weights_that_are_all_one_change_nothing(encoder: PromptEncoder) -> None:
    assert torch.equal(
        encoder.encode("a (red:1.0) circle, ([big])", None).positive.states,
        encoder.encode("a red circle, big", None).positive.states,
    )


def test_the_mean_is_restored_as_a1111_does() -> None:
    states = torch.rand(CHUNK, 16, generator=torch.Generator().manual_seed(1)) + 0.1
    made = _weighed(states, [Token(1, 1.5), Token(2), Token(3, 0.5)])
    weights = torch.ones(CHUNK)
    weights[1], weights[3] = 1.5, 0.5
    weighted = states * weights[:, None]
    assert torch.allclose(made, weighted * (states.mean() / weighted.mean()))
    assert float(made.mean()) == pytest.approx(float(states.mean()), rel=1e-5)


@pytest.mark.parametrize("offset", [0.0, 0.001, -0.002])
def test_a_mean_near_nothing_makes_no_huge_states(offset: float) -> None:
    # states that nearly cancel: the plain ratio would be 0, hundreds, or negative
    states = torch.ones(CHUNK, 2)
    states[:, 1] = -1
    states[3, 0] = 1 + CHUNK * offset
    made = _weighed(states, [Token(1, 1.4), Token(2), Token(3, 2.0)])
    scale = float(made[0, 0])
    assert 1 / 2.0 <= scale <= 1
    assert torch.allclose(made[1], torch.tensor([1.4, -1.4]) * scale)


def test_weights_show_in_the_picture(encoder: PromptEncoder, pipeline: Any) -> None:
    def redness(prompt: str) -> float:
        made = encoder.encode(prompt, "")
        picture = pipeline(
            prompt_embeds=made.positive.states[None],
            pooled_prompt_embeds=made.positive.pooled[None],
            negative_prompt_embeds=negative_of(made).states[None],
            negative_pooled_prompt_embeds=negative_of(made).pooled[None],
            width=128,
            height=128,
            num_inference_steps=8,
            guidance_scale=2.5,
            generator=torch.Generator().manual_seed(3),
            output_type="np",
        ).images[0]
        centre = picture[50:78, 50:78].mean((0, 1))
        return float(centre[0] - centre[2])

    none, more, less = map(
        redness, ("a red blue circle", "a (red:3) (blue:0.1) circle", "a (red:0.1) (blue:3) circle")
    )
    assert less < none < more
    assert more - less > 0.05


# notes


def test_notes_name_the_field(encoder: PromptEncoder) -> None:
    made = encoder.encode("a <lora:x:0.8> cat", "[a|b]", fields=("prompt", "refiner_negative_prompt"))
    assert made.notes == (
        "prompt: `<lora:x:0.8>` is not read from the prompt; send it as `loras`",
        "refiner_negative_prompt: `[a|b]` does not alternate here; `a` was read throughout",
    )
    assert encoder.encode("a <lora:x:0.8> cat", None).notes == made.notes[:1], "kept texts keep their notes"
    same = encoder.encode("a  cat", None).positive.states
    assert torch.equal(made.positive.states, same)


# the cache


def test_the_cache_returns_the_same(encoder: PromptEncoder) -> None:
    first = encoder.encode("one", None).positive
    assert encoder.encode("one", None).positive is first
    assert encoder.encode("one", None, key=("lora", 0.5)).positive is not first
    assert encoder.encode("one", None, syntax="plain").positive is not first


def test_what_changes_the_encoders_changes_the_embedding(
    encoder: PromptEncoder, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = encoder.encode("one, " * 60, "").negative
    weight = checkpoint.text_encoders[0].get_input_embeddings().weight
    kept = weight.detach().clone()
    weight.data.mul_(1.5)
    try:
        stale, fresh = encoder.encode("one, " * 60, ""), encoder.encode("one, " * 60, "", key="lora")
    finally:
        weight.data.copy_(kept)
    assert before is not None
    assert torch.equal(negative_of(stale).states, before.states)
    assert difference(negative_of(fresh).states[:CHUNK], before.states[:CHUNK]) > 1e-3
    assert difference(negative_of(fresh).states[CHUNK:], before.states[CHUNK:]) > 1e-3, "empty chunks too"


def test_the_cache_is_bounded_in_number_and_bytes(make_encoder: Callable[..., PromptEncoder]) -> None:
    made = make_encoder(keep=2)
    first = made.encode("one", None).positive
    for text in ("two", "three"):
        made.encode(text, None)
    again = made.encode("one", None).positive
    assert again is not first
    assert torch.equal(again.states, first.states)
    assert len(made._kept) == 2

    size = first.states.nbytes + first.pooled.nbytes
    made = make_encoder(keep_bytes=int(2.5 * size))
    for number in range(10):
        made.encode(f"text {number}", "")
        assert made._kept.bytes <= 2.5 * size
    assert len(made._kept) == 2
    made.encode("red, " * 200, None)
    assert (len(made._kept), made._kept.bytes) == (0, 0), "larger than all that is kept"
