"""The evaluation's checker is honest: right about the renderer's pictures, at chance on shuffled captions."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.eval_tiny import GOALS, adherence, draw, load
from scripts.train_tiny.captions import describe
from scripts.train_tiny.checker import FIELDS, nearest_colour, read_picture
from scripts.train_tiny.pictures import COLOURS, Picture, ShapePicture, held_out_pictures
from scripts.train_tiny.renderer import render
from scripts.train_tiny.sheet import draw_sheet

ROOT = Path(__file__).resolve().parents[2]
COUNT = 400
CHECKPOINT = ROOT / "inference" / "checkpoints" / "tiny"


@pytest.fixture(scope="module")
def wanted() -> list[ShapePicture]:
    return held_out_pictures(COUNT, seed=3)


@pytest.fixture(scope="module")
def readings(wanted: list[ShapePicture]) -> list[object]:
    return [read_picture(render(Picture(one, None, (11, number)))) for number, one in enumerate(wanted)]


def test_checker_reads_the_renderers_own_pictures(wanted: list, readings: list) -> None:
    shares = adherence(wanted, readings)
    assert all(shares[field] >= 0.99 for field in FIELDS), shares


def test_checker_is_at_chance_on_shuffled_captions(wanted: list, readings: list) -> None:
    shares = adherence(wanted, [readings[-1], *readings[:-1]])
    chance = {"background": 1 / 8, "colour": 1 / 8, "shape": 1 / 8, "position": 1 / 9, "size": 1 / 3}
    for field, share in chance.items():
        assert abs(shares[field] - share) < 0.08, (field, shares[field])
    assert shares["all five"] < 0.01


def test_checker_finds_no_shape_where_there_is_none() -> None:
    flat = np.full((128, 128, 3), COLOURS["green"], np.uint8)
    reading = read_picture(flat)
    assert reading.background == "green"
    assert (reading.colour, reading.shape, reading.position, reading.size) == (None, None, None, None)
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    wanted = held_out_pictures(30)
    assert adherence(wanted, [read_picture(noise)] * 30)["all five"] == 0


def test_checker_names_no_shape_for_an_outline_that_is_none() -> None:
    picture = np.full((128, 128, 3), COLOURS["white"], np.uint8)
    picture[40:90, 40:50] = picture[80:90, 40:90] = COLOURS["blue"]  # an L
    reading = read_picture(picture)
    assert (reading.background, reading.colour, reading.shape) == ("white", "blue", None)


def test_checker_sees_each_field_go_wrong_alone() -> None:
    right = ShapePicture("square", "red", "blue", "large", "left")
    wrong = {
        "background": ShapePicture("square", "red", "white", "large", "left"),
        "colour": ShapePicture("square", "green", "blue", "large", "left"),
        "shape": ShapePicture("circle", "red", "blue", "large", "left"),
        "position": ShapePicture("square", "red", "blue", "large", "right"),
        "size": ShapePicture("square", "red", "blue", "small", "left"),
    }
    for field, shown in wrong.items():
        agrees = read_picture(render(Picture(shown, None, (0, 0)))).agrees(right)
        assert [name for name, same in agrees.items() if not same] == [field]


def test_nearest_colour_knows_every_colour() -> None:
    for name, value in COLOURS.items():
        assert nearest_colour(np.array(value, np.float64)) == name


def test_goals_are_those_of_the_documentation() -> None:
    assert GOALS == {"background": 0.95, "colour": 0.95, "shape": 0.90, "position": 0.95, "size": None}


def test_the_bundled_checkpoint_follows_held_out_captions() -> None:
    wanted = held_out_pictures(48, seed=9)
    pipeline, settings = load(CHECKPOINT)
    pictures = draw(pipeline, [describe(one) for one in wanted], 77, **settings)
    shares = adherence(wanted, [read_picture(np.asarray(picture)) for picture in pictures])
    for field in ("background", "colour", "position", "size"):
        assert shares[field] >= 0.95, shares
    assert shares["shape"] >= 0.80, shares  # 90 % over 240 of them; 48 have some play


def test_sheet_holds_every_picture() -> None:
    pictures = [Image.new("RGB", (128, 128), (n * 20, 0, 0)) for n in range(5)]
    sheet = draw_sheet(pictures, [f"picture {n}" for n in range(5)], columns=3)
    assert sheet.width > 3 * 128
    assert sheet.height > 2 * 128


def test_command_runs_from_any_folder(tmp_path: Path) -> None:
    command = [str(ROOT / "scripts" / "eval_tiny"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "held-out" in done.stdout
