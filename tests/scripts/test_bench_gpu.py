"""The bench's logic on a CPU: what it measures there means nothing, that it measures and concludes does."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from inference.engine.compiling import call_with, twin_of
from inference.engine.engine import BatchingEngine, EngineLimits
from inference.engine.gauge import Probe, probe_inputs
from inference.engine.levers import Levers
from inference.engine.tuning import read_table
from scripts import bench_gpu
from scripts.bench_gpu import main
from scripts.gpubench import accuracy, choices, cold, contestants, rows, sdxl, travel
from scripts.gpubench.lossy import CachedUnet
from scripts.gpubench.report import Results
from scripts.gpubench.rows import Row, best_levers
from scripts.gpubench.watching import DoesNotFitError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scripts.gpubench.sdxl import Models

CPU = torch.device("cpu")
SMALL = ("--tiny", "--device", "cpu", "--steps", "3", "--no-cold-start")


@pytest.fixture(scope="module")
def tiny() -> Models:
    return sdxl.tiny(CPU)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """SDXL's shape, a twentieth as wide."""
    unet = {"block_out_channels": (32, 64, 64), "attention_head_dim": (2, 4, 4), "cross_attention_dim": 96}
    pooled = {"projection_class_embeddings_input_dim": 6 * 256 + 64}
    monkeypatch.setattr(sdxl, "UNET", {**sdxl.UNET, **unet, **pooled, "norm_num_groups": 8})
    monkeypatch.setattr(sdxl, "VAE", {**sdxl.VAE, "block_out_channels": (16, 32, 32, 32), "norm_num_groups": 8})
    small = {"intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    monkeypatch.setattr(sdxl, "CLIP_L", {**sdxl.CLIP_L, **small, "hidden_size": 32, "projection_dim": 32})
    monkeypatch.setattr(sdxl, "CLIP_BIG_G", {**sdxl.CLIP_BIG_G, **small, "hidden_size": 64, "projection_dim": 64})


# ---- the whole of it


def test_the_tiny_bench_measures_compares_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, table = tmp_path / "results.json", tmp_path / "tuning.json"
    words = [*SMALL, "--batches", "1,2", "--json", str(kept), "--table", str(table)]
    assert main(words) == 0
    shown = capsys.readouterr().out
    found = json.loads(kept.read_text())
    measured = {name for name, row in found["rows"].items() if "skipped" not in row}
    assert {"stock | eager | 1", "engine | plain | 2", "engine | fused qkv | 1"} <= measured
    assert any(name.startswith("engine | goal: 20 steps |") for name in measured)
    assert found["rows"]["engine | cuda graphs | 1"]["skipped"] == "needs cuda"
    assert "CHANGES PICTURES (caching)" in shown
    assert found["accuracy"]["plain"]["right"]
    assert found["accuracy"]["plain"]["engine"] < 1e-3
    tuned = read_table(table, "cpu", found["device"]["versions"]["torch"])
    assert tuned is not None
    assert tuned.levers["compile"] == "off"
    before = kept.read_text()
    assert main([*words, "--minutes", "0"]) == 0
    assert json.loads(kept.read_text())["rows"] == json.loads(before)["rows"], "nothing is measured twice"


@pytest.mark.parametrize(
    "words",
    ["--batches 0", "--batches 1,65", "--batches a", "--batches ,", "--steps 1", "--device tpu", "--minutes x"],
)
def test_options_that_make_no_sense_are_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--tiny", *words.split()])
    assert ended.value.code == 2
    assert f"argument {words.split(maxsplit=1)[0]}" in capsys.readouterr().err


def test_results_that_cannot_be_kept_are_said_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"--json: .* cannot be written"):
        main([*SMALL, "--json", str(tmp_path / "file" / "results.json")])


def test_what_compiles_for_minutes_comes_last_and_is_not_begun_too_late() -> None:
    names = [
        row.id
        for each in (rows.batched_rows, rows.regional_rows, rows.lossy_rows, rows.slow_rows)
        for row in each((1, 8), Results({}))
        if rows.least_seconds(row) == rows.WHOLE_S
    ]
    assert names == [row.id for row in rows.slow_rows((1, 8), Results({}))]
    assert all(not rows.least_seconds(row) for row in rows.single_rows((1, 8)))


def test_without_time_it_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--minutes", "0"]) == 0
    shown = capsys.readouterr().out
    assert "not measured for lack of time (0 min): accuracy, plain; stock | eager | 1; " in shown


def test_full_size_is_refused_on_a_cpu() -> None:
    with pytest.raises(SystemExit, match="no CUDA device"):
        main(["--device", "cpu"])


def test_one_row_that_fails_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = contestants.time_engine

    def broken(models: Models, row: Row, load: contestants.Load) -> contestants.Timing:
        if row.name == "fused qkv":
            raise ValueError("a kernel broke")
        if row.name == "channels first":
            raise DoesNotFitError("out of memory")
        return real(models, row, load)

    monkeypatch.setattr(contestants, "time_engine", broken)
    kept = tmp_path / "results.json"
    assert main([*SMALL, "--batches", "1", "--json", str(kept), "--only", "engine | "]) == 1
    found = json.loads(kept.read_text())["rows"]
    assert found["engine | fused qkv | 1"]["failed"] == "ValueError: a kernel broke"
    assert found["engine | channels first | 1"]["skipped"] == "out of memory"
    assert "s_image_20" in found["engine | plain | 1"]


def test_what_does_not_fit_is_said_by_the_engine_too(tiny: Models) -> None:
    calls = {"left": 1}

    def full(*args: Any, **inputs: Any) -> Any:
        if calls["left"]:
            calls["left"] -= 1
            raise torch.OutOfMemoryError("full")
        return tiny.unet(*args, **inputs)

    full.config = tiny.unet.config  # type: ignore[attr-defined]
    load = contestants.Load(2, 64, 2)
    checkpoint = contestants.checkpoint_over(tiny, full, Levers())
    engine = BatchingEngine(checkpoint, EngineLimits(2, buckets=(4,)))
    with pytest.raises(DoesNotFitError, match="smaller batches"):
        contestants.draw(engine, load, "some")
    engine.close()


# ---- full size, without its size


def test_the_two_numbers_are_those_that_others_counted() -> None:
    cost = sdxl.count_full_size()
    assert cost.unet_flop / 1e12 == pytest.approx(sdxl.REFERENCE_TFLOP["unet"], abs=0.005)
    assert cost.vae_flop / 1e12 == pytest.approx(sdxl.REFERENCE_TFLOP["vae"], abs=0.005)
    assert cost.unet_bytes == 2 * 2_567_463_684
    assert cost.picture(20) / 1e12 == pytest.approx(281, abs=0.5)


@pytest.mark.usefixtures("narrow")
def test_random_weights_draw_finite_pictures_as_stock_does(tmp_path: Path) -> None:
    models = sdxl.full_size(CPU, torch.float32)
    assert not models.unet.training
    assert sum(1 for name, _ in models.unet.named_modules() if name.endswith("attn1")) == 70
    with torch.inference_mode():
        output = call_with(models.unet, probe_inputs(models.unet, Probe(128, 128)))
    assert bool(output.isfinite().all())
    assert 1e-3 < float(output.std()) < 1e3
    small = replace(models, size=128)
    found = accuracy.check(small, Levers(fused_qkv=True), 128, accuracy.reference(small, 128))
    assert found["right"]
    assert found["engine"] < 1e-3
    cold.write_folder(small, tmp_path)
    started = cold.start_once(tmp_path, tmp_path / "home", "cpu", "auto")
    assert started["ready_s"] > 0


# ---- parts


def test_the_shallow_step_is_the_whole_one_where_nothing_changed(tiny: Models) -> None:
    unet = twin_of(tiny.unet)
    cached = CachedUnet(unet, every=2)
    inputs = probe_inputs(unet, Probe(64, 64))
    with torch.inference_mode():
        whole = call_with(cached, inputs)
        calls: list[int] = []
        handle = unet.mid_block.register_forward_hook(lambda *_: calls.append(1))
        shallow = call_with(cached, inputs)
        assert calls == []
        torch.testing.assert_close(shallow, whole)
        call_with(cached, inputs)
        assert calls == [1], "every other step is whole"
        later = {**inputs, "timestep": inputs["timestep"] + 100}
        call_with(cached, later)
        assert calls == [1, 1], "and each new schedule's first"
        handle.remove()


def results_of(**step_ms: float) -> Results:
    found = Results({})
    for name, value in step_ms.items():
        found.rows[f"engine | {name.replace('_', ' ')} | 1"] = {"step_ms": value, "vae_ms": 100.0}
    return found


def test_what_gained_alone_is_put_together() -> None:
    assert best_levers(results_of(plain=50, cudnn=45, flash=40, fused_qkv=48, cuda_graphs=49.5), 1) == Levers(
        "flash", fused_qkv=True
    )
    assert best_levers(results_of(plain=50, xformers=40, fused_qkv=49, cuda_graphs=45), 1) == Levers(
        "xformers", cuda_graphs=True
    )
    assert best_levers(results_of(), 1) == Levers()


def test_the_table_takes_what_is_fastest_at_every_batch() -> None:
    """However many rows have the same levers; what was measured at one batch alone is for the goal there."""
    plain, graphs, whole = Levers(), Levers(cuda_graphs=True), Levers(compile="whole")
    found = Results({"name": "card", "versions": {"torch": "2"}})
    for row, rate in (
        (Row("engine", "plain", 1, plain), 1.0),
        (Row("engine", "plain", 8, plain), 1.5),
        (Row("engine", "all that gained", 1, plain), 1.1),
        (Row("engine", "all that gained", 8, plain), 1.5),
        (Row("engine", "the same, regional", 1, graphs), 1.4),
        (Row("engine", "the same, regional", 8, graphs), 1.6),
        (Row("engine", "the same, whole", 1, whole), 2.0),
        (Row("engine", "every other step shallow", 1, plain, lossy="caching"), 9.0),
        (Row("stock", "eager", 8), 9.0),
    ):
        found.rows[row.id] = {"levers": asdict(row.levers), "lossy": row.lossy, "images_s_20": rate}
    assert choices.best(found, (1, 8)) == graphs
    assert choices.fastest(found, (1,)) == (whole, 1)
    assert choices.fastest(found, (8,)) == (graphs, 8)


def test_steps_are_scaled_and_the_rest_is_not() -> None:
    timing = SimpleNamespace(total_s=2.0, step_s=0.1, vae_s=0.2, peak_bytes=None, warm_up_s=1.0)
    cost = sdxl.Cost(1e12, 10e12, 0, 0)
    found = bench_gpu.figures(timing, contestants.Load(2, 1024, 10), cost, 100.0)
    assert found["s_image_20"] == pytest.approx(3.0 / 2)
    assert found["s_image_30"] == pytest.approx(4.0 / 2)
    assert found["images_s_20"] == pytest.approx(2 / 3.0)
    assert found["share_of_ceiling"] == pytest.approx(100 * 2 * (40 + 10) / 3.0 / 100)


def test_results_of_another_device_are_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    first = Results({"name": "H100"}, path, rows={"engine | plain | 1": {"failed": "x"}, "engine | a | 1": {}})
    first.save()
    again = Results.open(path, {"name": "H100"})
    assert again.rows == first.rows
    assert not again.has(Row("engine", "plain", 1)), "what failed is tried again"
    assert again.has(Row("engine", "a", 1))
    assert Results.open(path, {"name": "A100"}).rows == {}
    path.write_text("{")
    assert Results.open(path, {"name": "H100"}).rows == {}


def test_relative_error() -> None:
    picture = np.full((2, 2, 3), 100, np.uint8)
    assert accuracy.relative_error([picture], [picture]) == 0
    assert accuracy.relative_error([picture + 10], [picture]) == pytest.approx(0.1)


def test_every_row_has_a_name_of_its_own() -> None:
    def all_rows() -> Iterator[Row]:
        yield from rows.single_rows((1, 2, 4, 8, 16))
        for more in (rows.batched_rows, rows.regional_rows, rows.lossy_rows, rows.slow_rows):
            yield from more((1, 2, 4, 8, 16), Results({}))

    names = [row.id for row in all_rows()]
    assert len(set(names)) == len(names)


# ---- what travels


def test_the_bench_runs_with_what_travels_and_nothing_else() -> None:
    """In a process that finds only torch, diffusers, transformers, safetensors, numpy and what these need."""
    assert travel.try_here((*SMALL, "--batches", "1", "--only", "engine | plain")) == 0


def test_what_is_not_carried_is_not_found() -> None:
    finder = travel.NarrowFinder(["torch"], ["torch"])
    assert finder.find_spec("aiohttp") is None
    assert finder.find_spec("models") is None
    assert finder.find_spec("inference.service") is None
    assert finder.find_spec("inference") is not None
    assert finder.find_spec("torch") is not None
    assert {each.metadata["Name"] for each in finder.find_distributions()} == {"torch"}


def test_the_list_holds_diffusers_and_not_torch() -> None:
    carried = travel.closure(travel.NEEDED) - travel.closure(travel.THERE_ALREADY)
    assert {"diffusers", "transformers", "safetensors", "tokenizers", "huggingface-hub"} <= carried
    assert not {"torch", "numpy", "aiohttp", "fastapi", "accelerate"} & carried
    assert travel.packed_size("safetensors") > 1000
    files = {path.name for path in travel.own_files()}
    assert {"bench_gpu.py", "engine.py", "rows.py", "model_index.json"} <= files
