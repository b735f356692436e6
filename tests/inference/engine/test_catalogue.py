from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from inference.engine.catalogue import FILE, Catalogue, classify
from inference.engine.locate import available, locate
from inference.engine.types import CheckpointError
from inference.engine.weights import file_sha256
from tests.support.checkpoints import (
    CATALOGUE,
    COMMIT,
    TINY,
    as_hub_cache,
    copy_configuration,
    save_tiny_refiner,
)
from tests.support.original_layout import save_original_layout

if TYPE_CHECKING:
    from pathlib import Path

DIGEST = "a" * 64


@pytest.fixture
def write(tmp_path: Path) -> Path:
    return tmp_path / FILE


def test_the_bundled_catalogue_knows_the_public_checkpoints() -> None:
    found = Catalogue.read([CATALOGUE / FILE])
    base, refiner = found.entries["sdxl-base"], found.entries["sdxl-refiner"]
    assert (base.source, base.kind, base.origin) == ("stabilityai/stable-diffusion-xl-base-1.0", "base", "hub")
    assert (refiner.source, refiner.kind) == ("stabilityai/stable-diffusion-xl-refiner-1.0", "refiner")
    assert base.licence
    assert found.of_source(base.source) is base


def test_the_bundled_checkpoint_has_the_digests_that_its_entry_says() -> None:
    entry = Catalogue.read([CATALOGUE / FILE]).entries["tiny"]
    assert entry.path == TINY
    assert dict(entry.sha256) == {
        str(path.relative_to(TINY)): file_sha256(path) for path in TINY.rglob("*.safetensors")
    }


def test_an_entry_says_all_that_it_may(write: Path) -> None:
    write.write_text(
        f"""
        ["My XL_1.5"]
        source = "org/name"
        revision = "{COMMIT}"
        title = "Mine"
        licence = "CC0"
        kind = "refiner"
        preset = "lcm"
        sha256 = {{ "unet/diffusion_pytorch_model.safetensors" = "{DIGEST}" }}
        defaults = {{ width = 512, guidance_scale = 1.5, scheduler = "lcm" }}
        [one]
        source = "https://example.com/a/b.safetensors?download=true"
        sha256 = "{DIGEST}"
        """
    )
    found = Catalogue.read([write])
    mine, one = found.entries["My XL_1.5"], found.entries["one"]
    assert (mine.revision, mine.kind, mine.preset, mine.title, mine.licence) == (
        COMMIT,
        "refiner",
        "lcm",
        "Mine",
        "CC0",
    )
    assert mine.defaults == {"width": 512, "guidance_scale": 1.5, "scheduler": "lcm"}
    assert (one.origin, one.sha256, one.path, one.kind) == ("url", {"": DIGEST}, None, "base")


def test_later_files_win_and_missing_ones_are_none(tmp_path: Path) -> None:
    for folder, title in (("a", "first"), ("b", "second")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / FILE).write_text(
            f'[x]\nsource = "org/x"\ntitle = "{title}"\n[{folder}]\nsource = "org/y"'
        )
    files = [tmp_path / name / FILE for name in "abc"]
    found = Catalogue.read(files)
    assert (set(found.entries), found.entries["x"].title) == ({"x", "a", "b"}, "second")
    assert Catalogue.in_folders([file.parent for file in files]).entries["x"].title == "first"
    assert Catalogue.read(files[2:]).entry("x") is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[x", "is no TOML"),
        (b"\xff\xfe", "is no TOML"),
        (b"x = 1", r"\[x\] must be a table"),
        (b'["a/b"]\nsource = "org/x"', r"\[a/b\]: a name is made of"),
        (b'[".x"]\nsource = "org/x"', "a name is made of"),
        (b"[x]\ntitle = 'a'", r"\[x\]: source is missing"),
        (b"[x]\nsource = 1", "source must be a hub id"),
        (b"[x]\nsource = 'tiny'", "source must be"),
        (b"[x]\nsource = 'http://example.com/a.safetensors'", "source must be"),
        (b"[x]\nsource = 'https://example.com/a.ckpt'", "source must be"),
        (b"[x]\nsource = 'https://[/a.safetensors'", "source must be"),
        (b"[x]\nsource = 'file:///a.safetensors'", "source must be"),
        (b"[x]\nsource = 'org/x'\nrevision = 'main'", "revision must be the 40"),
        (b"[x]\nsource = './x'\nrevision = '" + COMMIT.encode() + b"'", "revision is for hub ids"),
        (b"[x]\nsource = 'org/x'\nsha256 = 'abc'", "sha256 must be 64"),
        (b"[x]\nsource = 'org/x'\nsha256 = {'../a.safetensors' = '" + DIGEST.encode() + b"'}", "sha256 must be 64"),
        (b"[x]\nsource = 'org/x'\nkind = 'lora'", "kind must be one of base, refiner"),
        (b"[x]\nsource = 'org/x'\npreset = 'fast'", "preset must be one of none, turbo, lightning, lcm"),
        (b"[x]\nsource = 'org/x'\npreset = ['lcm']", "preset must be one of"),
        (b"[x]\nsource = 'org/x'\ndefaults = 3", "defaults must be a table"),
        (b"[x]\nsource = 'org/x'\ndefaults = {steps = 3}", r"\[x\]: defaults has no 'steps'; there are width"),
        (
            b"[x]\nsource = 'org/x'\ndefaults = {width = 513}",
            r"\[x\]: defaults.width must be a whole number of pixels",
        ),
        (b"[x]\nsource = 'org/x'\nsha = 'a'", r"\[x\] has no key 'sha'; there are source, revision"),
    ],
)
def test_what_is_wrong_is_named_with_its_file_and_entry(write: Path, content: bytes, reason: str) -> None:
    write.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as refused:
        Catalogue.read([write])
    assert str(write) in str(refused.value)


def test_a_file_of_no_sensible_size_or_that_cannot_be_read_is_refused(tmp_path: Path, write: Path) -> None:
    write.write_bytes(b"#" * 1_000_001)
    with pytest.raises(CheckpointError, match="larger than"):
        Catalogue.read([write])
    with pytest.raises(CheckpointError, match="cannot be read"):
        Catalogue.read([tmp_path])


@pytest.mark.parametrize(
    ("source", "origin"),
    [
        ("org/name", "hub"),
        ("./a", "path"),
        ("../a/b", "path"),
        ("~/a", "path"),
        ("/a.safetensors", "path"),
        ("https://e.com/x.SAFETENSORS", "url"),
        ("http://127.0.0.1:80/x.safetensors", "url"),
        ("http://e.com/x.safetensors", None),
        ("https:///x.safetensors", None),
        ("ftp://e.com/x.safetensors", None),
        ("name", None),
        ("a/b/c", None),
        ("", None),
    ],
)
def test_a_source_is_told_by_its_form(source: str, origin: str | None) -> None:
    assert classify(source) == origin


def test_an_entry_that_is_not_pulled_says_how(write: Path) -> None:
    write.write_text(
        f'[mine]\nsource = "org/mine"\nrevision = "{COMMIT}"\n[file]\nsource = "https://e.com/a.safetensors"'
    )
    for name in ("mine", "file"):
        with pytest.raises(
            CheckpointError, match=rf"{name} is in the catalogue .*run scripts/checkpoints pull {name}"
        ):
            locate(name, None, (write.parent,))


def test_an_entry_may_name_a_path_or_what_a_hubs_cache_holds(tmp_path: Path, write: Path) -> None:
    copy_configuration(tmp_path / "elsewhere" / "one")
    file = save_original_layout(TINY, tmp_path / "elsewhere" / "one.safetensors")
    snapshot = as_hub_cache(TINY, tmp_path, "org/mine", main=False)
    write.write_text(
        f'[folder]\nsource = "{TINY}"\n[single]\nsource = "./elsewhere/one.safetensors"\n'
        f'[mine]\nsource = "org/mine"\nrevision = "{COMMIT}"\n'
    )
    search = (tmp_path,)
    assert locate("folder", None, search).folder == TINY
    single, mine = locate("single", None, search), locate("mine", None, search)
    assert (single.name, single.single_file) == ("single", file)
    assert (mine.name, mine.folder) == ("mine", snapshot)
    assert mine.entry is not None
    assert mine.entry.source == "org/mine"


def test_a_path_to_a_pickle_is_refused(write: Path) -> None:
    write.write_text('[bad]\nsource = "./bad.ckpt"')
    with pytest.raises(CheckpointError, match="is a pickle"):
        locate("bad", None, (write.parent,))


def test_what_lies_in_the_folder_wins_over_a_catalogue_even_a_broken_one(tmp_path: Path, write: Path) -> None:
    write.write_text("[broken")
    assert locate("tiny", None, (tmp_path, CATALOGUE)).folder == TINY
    with pytest.raises(CheckpointError, match="is no TOML"):
        locate("other", None, (tmp_path, CATALOGUE))


def test_what_is_here_is_listed_with_its_kind(tmp_path: Path, write: Path) -> None:
    save_tiny_refiner(tmp_path / "refiner")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text("{}")
    write.write_text(f'[also]\nsource = "{TINY}"\n[away]\nsource = "org/away"')
    assert available((CATALOGUE, tmp_path)) == {"also": "base", "refiner": "refiner", "tiny": "base"}
