from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner, Result

from inference.engine.locate import locate
from inference.engine.single_file import SDXL_BASE, SDXL_BASE_COMMIT
from inference.engine.types import CheckpointError
from inference.engine.weights import file_sha256
from scripts import checkpoints
from scripts.checkpoints import app
from tests.support.checkpoints import (
    COMMIT,
    TINY,
    as_shards,
    as_variant,
    copy_tiny,
    edit_json,
    save_tiny_refiner,
    weights_of,
)
from tests.support.flaky_origin import FlakyOrigin
from tests.support.original_layout import save_original_layout

if TYPE_CHECKING:
    from collections.abc import Iterator


ROOT = Path(__file__).resolve().parents[2]
NAME = "org/sdxl-tiny"
OTHER = "f" * 40


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IGEN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("scripts.pulling.download.PAUSE_S", 0.001)
    return tmp_path / "home" / "checkpoints"


@pytest.fixture
def origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyOrigin]:
    server = FlakyOrigin()
    server.repositories[NAME] = (copy_tiny(tmp_path / "remote"), COMMIT)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    yield server
    server.close()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def said(result: Result) -> str:
    return re.sub(r"\s+", " ", result.output)


def good(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return said(result)


def bad(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    return said(result)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def catalogue(home: Path, text: str) -> None:
    home.mkdir(parents=True, exist_ok=True)
    (home / "catalogue.toml").write_text(text)


# ---- pull from a hub


def test_a_hub_id_is_pinned_fetched_and_found_by_its_name(home: Path, origin: FlakyOrigin) -> None:
    remote = origin.repositories[NAME][0]
    (remote / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (remote / "unet" / "code.py").write_text("raise SystemExit(3)")
    output = good("pull", NAME)
    assert f"{NAME} at {COMMIT}" in output
    assert files(home / "sdxl-tiny") == files(TINY)
    assert not origin.of(".bin")
    assert not origin.of("code.py")
    found = locate("sdxl-tiny", None, (home,))
    assert file_sha256(found.weights["unet"].files[0]) == file_sha256(weights_of(TINY, "unet"))
    assert "as they should be" in good("verify", "sdxl-tiny")
    assert not [path for path in (home / ".staging").iterdir() if path.suffix != ".lock"]


def test_a_second_pull_asks_for_nothing(home: Path, origin: FlakyOrigin) -> None:
    good("pull", NAME, "--revision", COMMIT)
    origin.requests.clear()
    assert "verified" in good("pull", NAME, "--revision", COMMIT)
    assert origin.requests == []


def test_half_precision_and_shards_are_fetched_as_the_engine_reads_them(home: Path, origin: FlakyOrigin) -> None:
    remote = origin.repositories[NAME][0]
    as_variant(remote, "vae")
    shards = as_shards(remote, "unet")
    good("pull", NAME, "--name", "my own")
    assert {f"unet/{shard.name}" for shard in shards} <= files(home / "my own")
    assert "vae/diffusion_pytorch_model.fp16.safetensors" in files(home / "my own")
    assert set(locate("my own", None, (home,)).weights) == {"unet", "vae", "text_encoder", "text_encoder_2"}


def test_full_precision_is_fetched_where_it_is_wanted(home: Path, origin: FlakyOrigin) -> None:
    plain = weights_of(origin.repositories[NAME][0], "vae")
    plain.with_name("diffusion_pytorch_model.fp16.safetensors").write_bytes(plain.read_bytes())
    good("pull", NAME, "--name", "full", "--precision", "full")
    good("pull", NAME, "--name", "half")
    assert "vae/diffusion_pytorch_model.safetensors" in files(home / "full")
    assert "vae/diffusion_pytorch_model.safetensors" not in files(home / "half")
    assert "half or full" in bad("pull", NAME, "--precision", "double")


def test_an_entry_brings_its_name_kind_and_defaults(home: Path, origin: FlakyOrigin, tmp_path: Path) -> None:
    refiner = save_tiny_refiner(tmp_path / "refiner")
    (refiner / "igen.json").unlink()
    origin.repositories["org/refiner"] = (refiner, COMMIT)
    catalogue(
        home,
        f'[fine]\nsource = "org/refiner"\nrevision = "{COMMIT}"\nkind = "refiner"\nlicence = "CC0"\n'
        f'preset = "lcm"\ndefaults = {{num_inference_steps = 4}}\n'
        f'[fine.sha256]\n"unet/diffusion_pytorch_model.safetensors" = "{file_sha256(weights_of(refiner, "unet"))}"',
    )
    with pytest.raises(CheckpointError, match="run scripts/checkpoints pull fine"):
        locate("fine", None, (home,), kind="refiner")
    good("pull", "fine")
    assert locate("fine", None, (home,), kind="refiner").kind == "refiner"
    written = json.loads((home / "fine" / "igen.json").read_text())
    assert written == {"name": "fine", "licence": "CC0", "preset": "lcm", "defaults": {"num_inference_steps": 4}}
    assert re.search(r"fine │ refiner │ [\d.]+ MB │ .*CC0 │ \d{4}-\d\d-\d\d", good("list"))


def test_the_other_kind_is_refused_before_its_weights_are_fetched(
    home: Path, origin: FlakyOrigin, tmp_path: Path
) -> None:
    origin.repositories["org/refiner"] = (save_tiny_refiner(tmp_path / "refiner"), COMMIT)
    assert "cannot draw on their own" in bad("pull", "org/refiner")
    assert not origin.of(".safetensors")
    good("pull", "org/refiner", "--kind", "refiner")


def test_a_digest_of_the_catalogue_that_does_not_hold_stops_the_pull(home: Path, origin: FlakyOrigin) -> None:
    digest = "0" * 64
    catalogue(home, f'[x]\nsource = "{NAME}"\nrevision = "{COMMIT}"\n[x.sha256]\n"vae/config.json" = "{digest}"')
    assert f"expected {digest}" in bad("pull", "x")
    assert not (home / "x").exists()


def test_a_gated_checkpoint_needs_a_token_which_only_the_hub_sees(
    home: Path, origin: FlakyOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin.token = "secret-token"
    assert "HF_TOKEN" in bad("pull", NAME)
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    output = good("pull", NAME)
    assert "secret-token" not in output
    assert "secret-token" not in "".join(path.read_text() for path in home.rglob("*.json"))


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_pickles_are_not_fetched(home: Path, origin: FlakyOrigin, part: str) -> None:
    path = weights_of(origin.repositories[NAME][0], part)
    path.rename(path.with_suffix(".bin"))
    assert f"no safetensors weights of its {part}; pickles are not fetched" in bad("pull", NAME)
    assert not origin.of(".bin")


def test_what_is_no_checkpoint_is_refused_by_its_index(home: Path, origin: FlakyOrigin) -> None:
    edit_json(origin.repositories[NAME][0] / "model_index.json", _class_name="FluxPipeline")
    assert "is a FluxPipeline" in bad("pull", NAME)
    assert {Path(item.path).name for item in origin.requests} == {"model_index.json"}


def test_another_commit_takes_the_place_of_the_first(home: Path, origin: FlakyOrigin, tmp_path: Path) -> None:
    good("pull", NAME, "--revision", COMMIT)
    newer = copy_tiny(tmp_path / "newer")
    edit_json(newer / "igen.json", title="newer")
    (newer / "tokenizer" / "vocab.json").unlink()
    origin.repositories[NAME] = (newer, OTHER)
    good("pull", NAME, "--revision", OTHER)
    assert files(home / "sdxl-tiny") == files(newer)
    assert "newer" in (home / "sdxl-tiny" / "igen.json").read_text()


# ---- what fails on the way


def test_a_pull_that_was_killed_goes_on_where_it_stopped(home: Path, origin: FlakyOrigin) -> None:
    origin.faults.bytes_per_s = 400_000
    process = subprocess.Popen(
        [ROOT / "scripts" / "checkpoints", "pull", NAME], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    part = home / ".staging" / "sdxl-tiny" / "tree" / "unet" / "diffusion_pytorch_model.safetensors.part"
    deadline = time.monotonic() + 120
    while not (part.is_file() and part.stat().st_size > 50_000):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = part.stat().st_size
    with pytest.raises(CheckpointError):
        locate("sdxl-tiny", None, (home,))  # half of a checkpoint is never found
    origin.faults.bytes_per_s = None
    origin.requests.clear()
    good("pull", NAME)
    assert origin.of("/store/")[0].range == f"bytes={kept}-"
    assert locate("sdxl-tiny", None, (home,)).folder == home / "sdxl-tiny"
    assert not origin.of("unet/config.json")  # what was whole is not asked for again


def test_a_network_that_fails_for_good_says_how_to_go_on(home: Path, origin: FlakyOrigin) -> None:
    origin.faults.cut_after = [50_000, *[0] * 20]
    assert "the same command goes on from there" in bad("pull", NAME)
    origin.faults.cut_after.clear()
    origin.requests.clear()
    good("pull", NAME)
    assert origin.of("/store/")[0].range == "bytes=50000-"


def test_two_pulls_of_one_name_do_not_meet(home: Path, origin: FlakyOrigin) -> None:
    from scripts.pulling.pull import _locked

    with _locked(home, "sdxl-tiny"):
        assert "another pull of sdxl-tiny is running" in bad("pull", NAME)


def test_a_process_that_ended_between_moves_has_only_moves_left(
    home: Path, origin: FlakyOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    good("pull", NAME, "--revision", COMMIT)
    (home / ".staging" / "sdxl-tiny").mkdir()
    (home / ".staging" / "sdxl-tiny" / "pull.json").write_text(json.dumps({"source": NAME, "revision": COMMIT}))
    (home / "sdxl-tiny").rename(home / ".staging" / "sdxl-tiny" / "tree")
    origin.requests.clear()
    good("pull", NAME, "--revision", COMMIT)
    assert not origin.of("/store/")
    assert locate("sdxl-tiny", None, (home,)).folder == home / "sdxl-tiny"


# ---- pull from an address


def test_one_file_comes_with_what_describes_it(home: Path, origin: FlakyOrigin, tmp_path: Path) -> None:
    origin.repositories[SDXL_BASE] = (origin.repositories[NAME][0], SDXL_BASE_COMMIT)
    (origin.repositories[NAME][0] / "igen.json").unlink()
    file = save_original_layout(TINY, tmp_path / "remote.safetensors")
    origin.files["/dl/mine.safetensors"] = file.read_bytes()
    good("pull", f"{origin.url}/dl/mine.safetensors")
    found = locate("mine", None, (home,))
    assert (found.single_file, found.folder) == (home / "mine.safetensors", home / "mine")
    assert not [path for path in files(home / "mine") if path.endswith(".safetensors")]
    assert "as they should be" in good("verify", "mine")


def test_one_file_that_is_no_checkpoint_is_not_put_in_place(home: Path, origin: FlakyOrigin) -> None:
    origin.repositories[SDXL_BASE] = (origin.repositories[NAME][0], SDXL_BASE_COMMIT)
    origin.files["/page.safetensors"] = b"<html>please log in</html>"
    assert "cut short or no safetensors file" in bad("pull", f"{origin.url}/page.safetensors")
    assert not (home / "page.safetensors").exists()


def test_an_address_that_is_none_is_told_at_once(home: Path, origin: FlakyOrigin) -> None:
    assert "is no address" in bad("pull", NAME, "--hub-endpoint", "not an address")


def test_a_home_that_was_moved_is_still_verified(
    home: Path, origin: FlakyOrigin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    good("pull", NAME)
    (tmp_path / "home").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IGEN_HOME", "moved")
    assert "as they should be" in good("verify", "sdxl-tiny")
    assert re.search(r"sdxl-tiny .* \d{4}-\d\d-\d\d", good("list"))


# ---- choosing


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nothing"], "there is no 'nothing' in the catalogue; it has sdxl-base, sdxl-refiner, tiny"),
        (["tiny"], "there is nothing to pull"),
        (["http://example.com/x.safetensors"], "there is no"),
        ([NAME, "--revision", "main"], "revision must be the 40"),
        ([NAME, "--name", "../x"], "a name is made of"),
        ([NAME, "--kind", "lora"], "kind must be one of base, refiner"),
        (["sdxl-base", "--name", "x"], "which says its name and kind"),
        (["https://example.com/x.safetensors", "--revision", COMMIT], "revision is for hub ids"),
        (["tiny", "--revision", COMMIT], "--revision is for hub ids only"),
    ],
)
def test_what_cannot_be_pulled_is_said(home: Path, arguments: list[str], reason: str) -> None:
    assert reason in bad("pull", *arguments)


# ---- list and verify


def test_the_list_shows_what_is_known_and_what_is_here(home: Path) -> None:
    output = good("list")
    assert re.search(r"sdxl-refiner │ refiner │ │ not here: stabilityai/\S+ │ CreativeML", output)
    assert re.search(r"tiny │ base │ 14\.\d MB │ \S+/tiny │ Apache-2\.0 │ never", output)
    assert "tiny: 4 files are as they should be" in good("verify")
    assert re.search(r"tiny .* \d{4}-\d\d-\d\d", good("list"))


def test_a_change_is_seen_and_a_missing_file_too(home: Path, origin: FlakyOrigin) -> None:
    good("pull", NAME)
    weights = weights_of(home / "sdxl-tiny", "vae")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (home / "sdxl-tiny" / "tokenizer" / "merges.txt").unlink()
    output = bad("verify", "sdxl-tiny")
    assert "vae/diffusion_pytorch_model.safetensors: CHANGED: SHA-256 is " in output
    assert "tokenizer/merges.txt: missing" in output
    assert "changed since" in good("list")
    bad("verify")


def test_a_checkpoint_without_a_record_is_said_so(home: Path) -> None:
    copy_tiny(home / "by-hand")
    assert "nothing is recorded to compare it with" in bad("verify", "by-hand")
    assert "by-hand" in good("list")


def test_broken_things_are_listed_as_such(home: Path) -> None:
    copy_tiny(home / "broken")
    weights_of(home / "broken", "unet").unlink()
    assert "broken │ ? │ │ unusable: broken: unet has no" in good("list")
    catalogue(home, "[x")
    assert "catalogue.toml is no TOML" in bad("list")


def test_the_home_is_the_checkouts_unless_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("IGEN_HOME", raising=False)
    assert checkpoints.folder_of_checkpoints() == ROOT / "var" / "checkpoints"
    monkeypatch.setenv("IGEN_HOME", str(tmp_path))
    assert checkpoints.folder_of_checkpoints() == tmp_path / "checkpoints"
