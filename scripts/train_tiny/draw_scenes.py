"""Simple scenes: skies and what stands before them, and studio backdrops."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scripts.train_tiny.architecture import NATIVE_SIZE
from scripts.train_tiny.pictures import TINTS, ScenePicture

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Canvas = NDArray[np.float32]
    Painter = Callable[[ScenePicture, np.random.Generator], Canvas]

_SIDE = NATIVE_SIZE
_ROWS, _COLUMNS = (grid.astype(np.float32) for grid in np.mgrid[0:_SIDE, 0:_SIDE])

_SKIES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "day": ((64, 138, 224), (126, 186, 240), (206, 232, 250)),
    "sunset": ((74, 46, 112), (214, 84, 92), (255, 176, 84)),
    "sunrise": ((126, 168, 222), (246, 186, 190), (255, 228, 168)),
    "night": ((8, 10, 34), (14, 20, 56), (30, 38, 84)),
}
_LIGHT = {"day": 1.0, "sunset": 0.5, "sunrise": 0.8, "night": 0.24}
_WARMTH: dict[str, tuple[float, float, float]] = {
    "day": (1.0, 1.0, 1.0),
    "sunset": (1.15, 0.8, 0.85),
    "sunrise": (1.1, 0.95, 0.92),
    "night": (0.8, 0.9, 1.4),
}


def draw_scene(subject: ScenePicture, rng: np.random.Generator) -> Canvas:
    """Draw a scene as (128, 128, 3) values in 0-1."""
    return np.clip(_PAINTERS[subject.scene](subject, rng), 0, 1).astype(np.float32)


def _rgb(colour: tuple[float, ...]) -> Canvas:
    return (np.array(colour, np.float32) / 255).astype(np.float32)


def _lit(colour: tuple[int, int, int], time: str) -> Canvas:
    return np.clip(_rgb(colour) * _LIGHT[time] * np.array(_WARMTH[time], np.float32), 0, 1).astype(np.float32)


def _ramp(colours: tuple[Canvas, ...], length: int) -> Canvas:
    """Blend from the first colour at row 0 to the last at row `length`: (128, 128, 3)."""
    place = np.clip(np.arange(_SIDE) / max(length, 1), 0, 1) * (len(colours) - 1)
    table = np.stack(colours)
    column = np.stack([np.interp(place, np.arange(len(colours)), table[:, band]) for band in range(3)], axis=1)
    return np.repeat(column[:, None].astype(np.float32), _SIDE, axis=1)


def _fill(canvas: Canvas, cover: NDArray[np.float32], colour: Canvas) -> None:
    canvas += cover[..., None] * (colour - canvas)


def _disc(x: float, y: float, radius: float, softness: float = 1.0) -> NDArray[np.float32]:
    distance = np.hypot(_COLUMNS - x, _ROWS - y)
    return np.clip((radius - distance) / softness + 0.5, 0, 1).astype(np.float32)


def _sky(subject: ScenePicture, rng: np.random.Generator, horizon: int) -> Canvas:
    canvas = _ramp(tuple(_rgb(colour) for colour in _SKIES[subject.time]), horizon)
    x = rng.uniform(28, 100)
    if subject.time == "night":
        _stars(canvas, rng, int(rng.integers(14, 26)), horizon)
        if subject.moon:
            _fill(canvas, _disc(x, rng.uniform(20, 34), rng.uniform(9, 12)), _rgb((240, 238, 214)))
    elif subject.time == "day":
        _fill(canvas, _disc(x, rng.uniform(18, 30), rng.uniform(8, 10)), _rgb((255, 244, 190)))
    else:
        height = horizon - rng.uniform(4, 22)
        _fill(canvas, 0.5 * _disc(x, height, 26, 26), _rgb((255, 214, 130)))
        sun = (255, 226, 140) if subject.time == "sunset" else (255, 246, 214)
        _fill(canvas, _disc(x, height, rng.uniform(11, 14)), _rgb(sun))
    return canvas


def _stars(canvas: Canvas, rng: np.random.Generator, count: int, below: int) -> None:
    for _ in range(count):
        x, y = rng.uniform(3, _SIDE - 3), rng.uniform(3, max(below - 6, 8))
        _fill(canvas, rng.uniform(0.6, 1) * _disc(x, y, rng.uniform(0.7, 1.5)), _rgb((255, 252, 232)))


def _ridge(rng: np.random.Generator, level: float, height: float, waves: tuple[float, ...]) -> Canvas:
    """Return a (128,) skyline in pixels from the top, a sum of triangle or sine waves around `level`."""
    x = np.arange(_SIDE, dtype=np.float32)
    line = np.zeros(_SIDE, np.float32)
    for order, length in enumerate(waves):
        line += np.abs(((x / length + rng.random()) % 1) * 2 - 1) * height / (order + 1)
    return level - line


def _rolling(rng: np.random.Generator, level: float, height: float, length: float) -> Canvas:
    x = np.arange(_SIDE, dtype=np.float32)
    wave = np.sin(2 * np.pi * (x / length + rng.random())) + 0.4 * np.sin(
        2 * np.pi * (2.3 * x / length + rng.random())
    )
    return (level - height * wave).astype(np.float32)


def _below(line: Canvas) -> NDArray[np.float32]:
    return np.clip(_ROWS - line[None, :] + 0.5, 0, 1)


def _sea(subject: ScenePicture, rng: np.random.Generator) -> Canvas:
    horizon = int(rng.integers(62, 76))
    canvas = _sky(subject, rng, horizon)
    water = _ramp(tuple(_lit(colour, subject.time) for colour in ((60, 150, 200), (14, 70, 140))), _SIDE)
    if subject.time in {"sunset", "sunrise"}:
        glow = _rgb(_SKIES[subject.time][2])
        fade = np.clip(1 - (_ROWS - horizon) / 46, 0, 1)[..., None] * 0.75
        water = water + (glow - water) * fade
    ripple = 0.035 * np.sin(_ROWS * 0.9 + 1.5 * np.sin(_COLUMNS / 9 + rng.uniform(0, 6)))[..., None]
    _fill(canvas, _below(np.full(_SIDE, horizon, np.float32)), water + ripple.astype(np.float32))
    return canvas


def _mountains(subject: ScenePicture, rng: np.random.Generator) -> Canvas:
    canvas = _sky(subject, rng, 92)
    layers = (((122, 140, 176), 84.0, 40.0, (64.0, 37.0)), ((78, 92, 120), 104.0, 34.0, (48.0, 29.0)))
    for number, (colour, level, height, waves) in enumerate(layers):
        line = _ridge(rng, level + rng.uniform(-4, 4), height, waves)
        tone = _lit(colour, subject.time)
        _fill(canvas, _below(line), tone)
        if number == 0:
            cap = _below(line) * np.clip((level - height * 0.75) - _ROWS, 0, 1)
            _fill(canvas, cap.astype(np.float32), _lit((245, 248, 255), subject.time))
    _fill(canvas, _below(_rolling(rng, 112, 3, 80)), _lit((52, 92, 62), subject.time))
    return canvas


def _hills(subject: ScenePicture, rng: np.random.Generator) -> Canvas:
    canvas = _sky(subject, rng, 84)
    for colour, level in (((136, 190, 92), 78), ((98, 164, 70), 94), ((66, 132, 54), 110)):
        line = _rolling(rng, level + rng.uniform(-3, 3), 6, rng.uniform(80, 130))
        _fill(canvas, _below(line), _lit(colour, subject.time))
    return canvas


def _city(subject: ScenePicture, rng: np.random.Generator) -> Canvas:
    canvas = _sky(subject, rng, 104)
    for near in (False, True):
        tone = (70, 80, 108) if near else (128, 142, 172)
        x = -int(rng.integers(0, 10))
        while x < _SIDE:
            width = int(rng.integers(11, 20))
            top = int(rng.integers(60, 96)) if near else int(rng.integers(30, 70))
            _tower(canvas, subject, rng, (x, top, width), (tone, near))
            x += width + int(rng.integers(0, 3))
    return canvas


def _tower(
    canvas: Canvas,
    subject: ScenePicture,
    rng: np.random.Generator,
    place: tuple[int, int, int],
    look: tuple[tuple[int, int, int], bool],
) -> None:
    x, top, width = place
    tone, near = look
    left, right = max(x, 0), min(x + width, _SIDE)
    if right <= left:
        return
    shade = _lit(tone, subject.time) * rng.uniform(0.88, 1.1)
    canvas[top:, left:right] = shade
    if subject.futuristic:
        middle, half = x + width / 2, width / 2
        taper = np.clip(half - np.abs(_COLUMNS - middle) - np.maximum(top - _ROWS, 0) * 0.42 + 0.5, 0, 1)
        _fill(canvas, (taper * (top > _ROWS)).astype(np.float32), shade)
    if near:
        _windows(canvas, subject, rng, (left, right, top))


def _windows(canvas: Canvas, subject: ScenePicture, rng: np.random.Generator, box: tuple[int, int, int]) -> None:
    left, right, top = box
    lit = {"day": 0.0, "sunrise": 0.25, "sunset": 0.55, "night": 0.6}[subject.time]
    neon = [(70, 236, 255), (255, 90, 220)] if subject.futuristic else [(255, 220, 120)]
    pane = _rgb(neon[int(rng.integers(len(neon)))])
    glass = _lit((176, 200, 226), subject.time)
    for y in range(top + 5, _SIDE - 4, 8):
        for x in range(left + 3, right - 4, 6):
            bright = rng.random() < (lit or 0.0)
            if bright or subject.time == "day":
                canvas[y : y + 4, x : x + 3] = pane if bright else glass


def _pines(canvas: Canvas, rng: np.random.Generator, base: float, size: float, colour: Canvas) -> None:
    x = rng.uniform(-6, 6)
    while x < _SIDE + 8:
        height = size * rng.uniform(0.75, 1.25)
        top = base - height
        slope = np.clip((_ROWS - top) * 0.3 - np.abs(_COLUMNS - x) + 0.5, 0, 1) * (base > _ROWS)
        _fill(canvas, slope.astype(np.float32), colour * rng.uniform(0.85, 1.1))
        x += height * rng.uniform(0.3, 0.5)


def _forest(subject: ScenePicture, rng: np.random.Generator) -> Canvas:
    canvas = _sky(subject, rng, 80)
    _pines(canvas, rng, 96, 44, _lit((84, 136, 102), subject.time))
    _fill(canvas, _below(np.full(_SIDE, 95, np.float32)), _lit((70, 116, 78), subject.time))
    _pines(canvas, rng, 118, 58, _lit((30, 88, 52), subject.time))
    _fill(canvas, _below(_rolling(rng, 114, 2, 70)), _lit((58, 92, 48), subject.time))
    return canvas


def _desert(subject: ScenePicture, rng: np.random.Generator) -> Canvas:
    canvas = _sky(subject, rng, 80)
    for colour, level in (((232, 190, 128), 80), ((222, 170, 100), 96), ((200, 142, 76), 114)):
        line = _rolling(rng, level + rng.uniform(-3, 3), 8, rng.uniform(110, 180))
        _fill(canvas, _below(line), _lit(colour, subject.time))
    return canvas


def _snow(subject: ScenePicture, rng: np.random.Generator) -> Canvas:
    canvas = _sky(subject, rng, 84)
    _fill(canvas, _below(_rolling(rng, 84, 5, 110)), _lit((214, 226, 242), subject.time))
    _pines(canvas, rng, 100, 30, _lit((66, 104, 98), subject.time))
    _fill(canvas, _below(_rolling(rng, 100, 4, 90)), _lit((242, 246, 252), subject.time))
    return canvas


def _night_sky(subject: ScenePicture, rng: np.random.Generator) -> Canvas:
    canvas = _sky(subject, rng, _SIDE)
    _stars(canvas, rng, int(rng.integers(20, 34)), _SIDE)
    return canvas


def _podium(subject: ScenePicture, rng: np.random.Generator) -> Canvas:
    canvas = _gradient(subject, rng)
    tint = _rgb(TINTS[subject.tint])
    floor = int(rng.integers(92, 98))
    _fill(canvas, _below(np.full(_SIDE, floor, np.float32)) * 0.35, tint * 0.75)
    half, top = rng.uniform(30, 36), floor - rng.uniform(8, 14)
    x = np.abs(_COLUMNS - 64)
    wall = np.clip(half - x + 0.5, 0, 1) * (top < _ROWS) * (top + 24 > _ROWS)
    base = np.clip((1 - np.hypot(x / half, (_ROWS - top - 24) / 8)) * 8 + 0.5, 0, 1)
    lid = np.clip((1 - np.hypot(x / half, (_ROWS - top) / 8)) * 8 + 0.5, 0, 1)
    _fill(canvas, np.maximum(wall, base).astype(np.float32), np.clip(tint * 0.82, 0, 1))
    _fill(canvas, lid.astype(np.float32), tint + (1 - tint) * 0.45)
    return canvas


def _gradient(subject: ScenePicture, rng: np.random.Generator) -> Canvas:
    tint = _rgb(TINTS[subject.tint])
    x, y = 64 + rng.uniform(-24, 24), 48 + rng.uniform(-16, 16)
    glow = np.clip(1 - np.hypot(_COLUMNS - x, _ROWS - y) / 104, 0, 1)[..., None]
    return (tint * 0.72 + (tint + (1 - tint) * 0.45 - tint * 0.72) * glow).astype(np.float32)


def _wood(subject: ScenePicture, rng: np.random.Generator) -> Canvas:
    base = _rgb((112, 70, 42) if subject.dark else (200, 150, 98))
    canvas = np.broadcast_to(base, (_SIDE, _SIDE, 3)).astype(np.float32)
    height = 32
    for plank in range(_SIDE // height):
        rows = slice(plank * height, (plank + 1) * height)
        phase, length = rng.uniform(0, 6), rng.uniform(30, 60)
        bend = _ROWS + 3 * np.sin(_COLUMNS / length * 2 + phase)
        grain = 0.05 * np.sin(bend * 0.8 + phase) + 0.03 * np.sin(bend * 0.37)
        canvas[rows] *= (rng.uniform(0.88, 1.1) + grain[rows])[..., None]
        canvas[rows.start : rows.start + 2] *= 0.55
    return canvas


def _bokeh(subject: ScenePicture, rng: np.random.Generator) -> Canvas:
    tint = _rgb(TINTS[subject.tint])
    canvas = _ramp((tint * 0.16, tint * 0.34), _SIDE)
    for _ in range(int(rng.integers(12, 18))):
        x, y, radius = rng.uniform(0, _SIDE), rng.uniform(0, _SIDE), rng.uniform(7, 17)
        light = tint + (1 - tint) * rng.uniform(0, 0.5)
        _fill(canvas, rng.uniform(0.3, 0.75) * _disc(x, y, radius, 2.5), light)
    return canvas


_PAINTERS: dict[str, Painter] = {
    "sea": _sea,
    "mountains": _mountains,
    "city": _city,
    "forest": _forest,
    "desert": _desert,
    "snow": _snow,
    "hills": _hills,
    "stars": _night_sky,
    "podium": _podium,
    "gradient": _gradient,
    "wood": _wood,
    "bokeh": _bokeh,
}
