from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from inference.engine.locate import catalogue, locate
from inference.engine.types import CheckpointError
from tests.support.checkpoints import CATALOGUE, COMMIT, TINY, as_hub_cache, copy_configuration, save_tiny_refiner
from tests.support.original_layout import save_original_layout

if TYPE_CHECKING:
    from pathlib import Path

SEARCH = (CATALOGUE,)


def test_a_catalogue_name_is_looked_up_in_the_search_path_in_order(tmp_path: Path) -> None:
    (tmp_path / "tiny").symlink_to(TINY, target_is_directory=True)
    assert locate("tiny", None, (tmp_path, CATALOGUE)).folder == tmp_path / "tiny"
    found = locate("tiny", None, SEARCH)
    assert (found.name, found.folder, found.single_file) == ("tiny", TINY, None)
    assert [path.name for weights in found.weights.values() for path in weights.files] == [
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.safetensors",
        "model.safetensors",
        "model.safetensors",
    ]


def test_a_folder_is_taken_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate(str(TINY), None, ()).folder == TINY
    monkeypatch.chdir(TINY)
    assert locate(".", None, ()).name == "tiny"
    monkeypatch.setenv("HOME", str(CATALOGUE))
    assert locate("~/tiny", None, ()).folder == TINY


def test_a_single_file_in_the_search_path_has_a_name_too(tmp_path: Path) -> None:
    copy_configuration(tmp_path / "mine")
    file = save_original_layout(TINY, tmp_path / "mine.safetensors")
    for name in ("mine", "mine.safetensors"):
        found = locate(name, None, (tmp_path,))
        assert (found.name, found.single_file, found.folder) == ("mine", file, tmp_path / "mine")
    assert catalogue((tmp_path, CATALOGUE)) == ["mine", "tiny"]


def test_a_refiner_is_found_where_one_is_wanted(tmp_path: Path) -> None:
    save_tiny_refiner(tmp_path / "refiner")
    found = locate("refiner", None, (tmp_path,), kind="refiner")
    assert (found.kind, found.layout.requires_aesthetics_score) == ("refiner", True)
    assert locate("refiner", None, (tmp_path,), kind=None).kind == "refiner"
    assert locate("tiny", None, SEARCH).kind == "base"
    with pytest.raises(
        CheckpointError, match="refiner has one text encoder; refiner checkpoints cannot draw on their own"
    ):
        locate("refiner", None, (tmp_path,))
    with pytest.raises(CheckpointError, match="tiny is a base checkpoint, not a refiner"):
        locate("tiny", None, SEARCH, kind="refiner")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint 'tinny'; found here: tiny$"):
        locate("tinny", None, SEARCH)
    with pytest.raises(CheckpointError, match=r"found here: none$"):
        locate("tiny", None, ())


@pytest.mark.parametrize("name", ["model.ckpt", "/models/SDXL.PT", "some/model.bin", "a.pth", "x.pkl", "~/y.pickle"])
def test_a_pickle_is_refused_by_its_name_alone(name: str) -> None:
    with pytest.raises(CheckpointError, match="is a pickle, which can run code"):
        locate(name, None, SEARCH)


@pytest.mark.parametrize("name", ["..", "../checkpoints/tiny", "tiny/../../outside", "outside/", "./outside"])
def test_a_catalogue_name_cannot_leave_the_catalogue(name: str, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").symlink_to(TINY, target_is_directory=True)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(CheckpointError):
        locate(name, None, (tmp_path / "root",))


@pytest.mark.parametrize(
    "name", ["", "a" * 300, "nul\0byte", "~nobody-here/tiny", "https://example.com/x/y", "a/b/c"]
)
def test_a_name_that_can_name_nothing_is_said_so(name: str) -> None:
    with pytest.raises(CheckpointError):
        locate(name, None, SEARCH)


def test_loops_of_links_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "loop.safetensors").symlink_to(tmp_path / "loop.safetensors")
    for name in ("a", str(tmp_path / "a"), "loop", str(tmp_path / "loop.safetensors")):
        with pytest.raises(CheckpointError):
            locate(name, None, (tmp_path,))


def test_a_folder_without_an_index_and_a_missing_file_are_said_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no model_index\.json"):
        locate(str(tmp_path), None, SEARCH)
    with pytest.raises(CheckpointError, match=r"gone\.safetensors is missing"):
        locate(str(tmp_path / "gone.safetensors"), None, SEARCH)


@pytest.mark.parametrize("below", ["", "hub"])
def test_a_hub_id_is_found_in_a_cache_of_the_search_path_without_a_pin(tmp_path: Path, below: str) -> None:
    snapshot = as_hub_cache(TINY, tmp_path / below, "org/sdxl-tiny")
    found = locate("org/sdxl-tiny", None, (CATALOGUE, tmp_path))
    assert (found.name, found.folder) == ("org/sdxl-tiny", snapshot)
    assert locate("org/sdxl-tiny", COMMIT, (tmp_path,)).folder == snapshot


@pytest.mark.parametrize("revision", ["main", "v1.0", COMMIT[:12], COMMIT.upper(), f"../snapshots/{COMMIT}"])
def test_a_revision_must_be_a_commit(tmp_path: Path, revision: str) -> None:
    as_hub_cache(TINY, tmp_path, "org/sdxl-tiny")
    with pytest.raises(CheckpointError, match="IGEN_CHECKPOINT_REVISION"):
        locate("org/sdxl-tiny", revision, (tmp_path,))


def test_a_hub_id_that_must_be_fetched_needs_a_pin(tmp_path: Path) -> None:
    as_hub_cache(TINY, tmp_path, "org/sdxl-tiny", main=False)
    (tmp_path / "models--org--odd" / "refs").mkdir(parents=True)
    (tmp_path / "models--org--odd" / "refs" / "main").write_text("../../elsewhere")
    for name in ("org/sdxl-tiny", "org/other", "org/odd"):
        with pytest.raises(CheckpointError, match="pin it with IGEN_CHECKPOINT_REVISION"):
            locate(name, None, (tmp_path,))
