"""The whole engine on a card that is not there: what would mix devices or precisions on a GPU is found here."""

from __future__ import annotations

import queue
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from inference.engine.checkpoint import load_checkpoint
from inference.engine.compiling import FastUnet, call_with
from inference.engine.factory import EngineOptions, open_engine
from inference.engine.gauge import Probe, probe_inputs
from inference.engine.levers import Levers
from inference.engine.types import (
    Completed,
    EngineJob,
    Failed,
    HiresPass,
    InitPicture,
    LoraUse,
    OutOfMemoryError,
    PictureDone,
    PictureSpec,
    Previewed,
    RefinerPass,
)
from tests.support import checkpoints as made
from tests.support.pretend_card import CARD, NAME, CardTensor, pretend_card
from tests.support.pretend_card import Capture as CardCapture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from inference.engine.engine import BatchingEngine
    from tests.support.pretend_card import Strictness

SIDE = 64
SMALL = PictureSpec("a (red:1.3) circle", "blurry", SIDE, SIDE, 3, 2.5, 7, "euler")
PIXELS = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
MASK = np.zeros((SIDE, SIDE), np.uint8)
MASK[: SIDE // 2] = 255
PLAIN = {"attention": "sdpa", "cuda_graphs": "off", "fused_qkv": "off", "vae_precision": "fp32"}


@pytest.fixture(scope="module")
def whole_card() -> Iterator[Strictness]:
    with pytest.MonkeyPatch.context() as patch, pretend_card(patch) as strict:
        yield strict


@pytest.fixture
def card(whole_card: Strictness) -> Iterator[Strictness]:
    yield whole_card
    whole_card.most_rows = None


def open_one(name: str = "tiny", *search: Path, **options: Any) -> BatchingEngine:
    values = {"device": "cuda:0", "max_batch": 2, **PLAIN, **options}
    return open_engine(EngineOptions(name, search=search or (made.CATALOGUE,), **values))


@pytest.fixture
def open_on_card(card: Strictness) -> Iterator[Callable[..., BatchingEngine]]:
    engines: list[BatchingEngine] = []

    def make(*words: Any, **options: Any) -> BatchingEngine:
        engines.append(open_one(*words, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def plain(whole_card: Strictness) -> Iterator[BatchingEngine]:
    """An engine with no lever, for tests that do not change it."""
    engine = open_one()
    yield engine
    engine.close()


def draw(engine: BatchingEngine, *specs: PictureSpec, previews: int = 0) -> list[Any]:
    """Every picture's pixels, and the previews' after them."""
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    engine.submit(EngineJob(f"job-{id(events)}", specs, preview_every=previews), events.put)
    pictures, shown = [], []
    while True:
        event = events.get(timeout=120)
        if isinstance(event, PictureDone):
            pictures.append(event.pixels)
        elif isinstance(event, Previewed):
            shown.append(event.pixels)
        elif isinstance(event, Failed):
            raise event.error
        elif isinstance(event, Completed):
            return [*pictures, *shown]


# ---- the card itself: a check that cannot fail finds nothing


def test_the_card_refuses_what_cuda_refuses(card: Strictness) -> None:
    there, here = torch.ones(2, device=CARD), torch.ones(2)
    with pytest.raises(RuntimeError, match="on the same device"):
        there + here
    with pytest.raises(RuntimeError, match="on the same device"):
        torch.stack([there, here])
    with pytest.raises(RuntimeError, match="on the same device"):
        there[torch.tensor([0])]
    with pytest.raises(RuntimeError, match="dtype"):
        torch.nn.functional.linear(there[None], there[None].half())
    with pytest.raises(RuntimeError, match="numpy"):
        there.numpy()
    assert isinstance(there + torch.tensor(1.0), CardTensor), "a number of the host is taken"
    assert torch.equal((there + 1).cpu(), here + 1)


def test_a_graph_sees_what_it_was_captured_with(card: Strictness) -> None:
    there = torch.ones(2, device=CARD)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=torch.cuda.graph_pool_handle(), capture_error_mode="thread_local"):
        doubled = (there * 2)[:1] + 1
        with pytest.raises(RuntimeError, match="capturing"):
            float(there[0])
        with pytest.raises(RuntimeError, match="capturing"):
            torch.ones(1).to(CARD)
    there.copy_(torch.full((2,), 5.0))
    graph.replay()
    assert doubled.tolist() == [11.0]


# ---- every way through the engine


@pytest.mark.parametrize("mode", ["resident", "offload"])
def test_every_kind_of_picture_is_drawn(mode: str, open_on_card: Callable[..., BatchingEngine]) -> None:
    engine = open_on_card(memory_mode=mode, vae_precision="auto" if mode == "resident" else "fp16")
    assert (engine.info.device, engine.info.dtype, engine.info.memory_mode) == (NAME, "float16", mode)
    hires = HiresPass(96, 96, 3, 0.5, "latent")
    assert len(draw(engine, SMALL, replace(SMALL, seed=8, guidance_scale=1.0), previews=2)) == 4
    draw(engine, replace(SMALL, init=InitPicture(PIXELS, 0.5)))
    draw(engine, replace(SMALL, init=InitPicture(PIXELS, 0.8, MASK), scheduler="euler_a"), previews=1)
    assert draw(engine, replace(SMALL, hires=hires))[0].shape == (96, 96, 3)
    draw(engine, replace(SMALL, hires=replace(hires, upscaler="lanczos"), init=InitPicture(PIXELS, 1.0, MASK)))


def test_every_scheduler_steps_on_the_card(open_on_card: Callable[..., BatchingEngine], tmp_path: Path) -> None:
    made.save_epsilon_copy(tmp_path / "epsilon")
    engine = open_on_card("epsilon", tmp_path, max_batch=8)
    names = engine.info.schedulers
    assert len(names) > 12
    begun = InitPicture(PIXELS, 0.7, MASK)
    assert len(draw(engine, *(replace(SMALL, scheduler=name) for name in names))) == len(names)
    assert len(draw(engine, *(replace(SMALL, scheduler=name, init=begun) for name in names))) == len(names)


def test_side_weights_other_checkpoints_and_refiners(
    open_on_card: Callable[..., BatchingEngine], tmp_path: Path
) -> None:
    made.copy_tiny(tmp_path / "tiny")
    made.save_second_checkpoint(tmp_path / "second", 1)
    made.save_tiny_refiner(tmp_path / "refiner")
    (tmp_path / "loras").mkdir()
    made.save_lora(
        tmp_path / "loras" / "bright.safetensors", load_checkpoint("tiny", None, (tmp_path,), device="cpu"), 1
    )
    engine = open_on_card("tiny", tmp_path, lora_folder=tmp_path / "loras", cuda_graphs="on", fused_qkv="on")
    plain = draw(engine, SMALL)[0]
    assert not np.array_equal(draw(engine, replace(SMALL, loras=(LoraUse("bright", 4.0),)))[0], plain)
    assert np.array_equal(draw(engine, SMALL)[0], plain), "what was captured has no part in LoRAs"
    draw(engine, replace(SMALL, checkpoint="second"))
    draw(engine, replace(SMALL, refiner=RefinerPass("refiner", 4, 0.5)))


@pytest.mark.parametrize("mode", ["resident", "offload"])
def test_a_vae_with_statistics_of_its_own(
    mode: str, open_on_card: Callable[..., BatchingEngine], tmp_path: Path
) -> None:
    made.copy_tiny(tmp_path / "tiny")
    made.edit_json(
        tmp_path / "tiny" / "vae" / "config.json", latents_mean=[0.1] * 4, latents_std=[1.1] * 4, force_upcast=True
    )
    engine = open_on_card("tiny", tmp_path, memory_mode=mode)
    draw(engine, replace(SMALL, init=InitPicture(PIXELS, 0.5)), previews=1)


# ---- levers


def test_auto_measures_its_way_through(open_on_card: Callable[..., BatchingEngine]) -> None:
    engine = open_on_card(attention="auto", cuda_graphs="auto", fused_qkv="auto", vae_precision="auto")
    assert engine.info.attention in {"sdpa", "cudnn", "flash", "efficient"}
    draw(engine, SMALL)


def unet_of(engine: BatchingEngine) -> Any:
    return engine._loop._pool.own.unet


@pytest.mark.parametrize("fused", [False, True])
def test_what_is_captured_follows_its_inputs(fused: bool, plain: BatchingEngine) -> None:
    unet = unet_of(plain)
    fast = FastUnet(unet, Levers(cuda_graphs=True, fused_qkv=fused))
    with torch.inference_mode():
        for turn in range(4):
            inputs = probe_inputs(unet, Probe(SIDE, SIDE, rows=2))
            found, right = call_with(fast, inputs), call_with(unet, inputs)
            torch.testing.assert_close(found.cpu(), right.cpu(), rtol=2e-2, atol=2e-2)
            assert fast.graphs == min(turn, 1)
            fast_again = call_with(fast, probe_inputs(unet, Probe(SIDE, SIDE, rows=2)))
            assert not torch.equal(fast_again.cpu(), found.cpu())


def test_graphs_that_were_let_go_are_captured_again(plain: BatchingEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that has lost its graphs is not to be used again: PyTorch's allocator asserts on it."""
    fast = FastUnet(unet_of(plain), Levers(cuda_graphs=True))
    with torch.inference_mode():
        inputs = probe_inputs(unet_of(plain), Probe(SIDE, SIDE, rows=1))
        for _ in range(2):
            for _ in range(3):
                call_with(fast, inputs)
            assert fast.graphs == 1
            fast.forget()
        monkeypatch.setattr(CardCapture, "fails", True)
        first, second = call_with(fast, inputs), call_with(fast, inputs)
        assert fast.graphs == 0
        assert torch.equal(first.cpu(), second.cpu()), "what cannot be captured is called as usual"


# ---- memory


def test_too_many_rows_are_halved(card: Strictness, open_on_card: Callable[..., BatchingEngine]) -> None:
    """Graphs and all."""
    engine = open_on_card(max_batch=4, cuda_graphs="on")
    card.most_rows = 4
    assert len(draw(engine, *(replace(SMALL, seed=seed) for seed in range(4)))) == 4
    assert card.refused


def test_what_never_fits_fails_alone(card: Strictness, plain: BatchingEngine) -> None:
    card.most_rows = 0
    with pytest.raises(OutOfMemoryError):
        draw(plain, SMALL)
    card.most_rows = None
    assert draw(plain, SMALL)
