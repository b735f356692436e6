"""Captions for pictures: synonyms, varied word order, and words that say nothing about the picture."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from scripts.train_tiny.pictures import OUTDOOR, Picture, ScenePicture, ShapePicture

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

_EMPTY_SHARE = 0.1
_NOISE_SHARE = 0.12
_PLAIN_SHARE = 0.35

COLOUR_WORDS: dict[str, Sequence[str]] = {
    "red": ("red", "red", "red", "crimson", "scarlet"),
    "green": ("green", "green", "green", "emerald"),
    "blue": ("blue", "blue", "blue", "azure"),
    "yellow": ("yellow", "yellow", "yellow", "golden"),
    "orange": ("orange",),
    "purple": ("purple", "purple", "violet"),
    "white": ("white",),
    "black": ("black",),
    "pink": ("pink", "pastel pink"),
    "grey": ("grey", "gray", "neutral"),
}
SHAPE_WORDS: dict[str, Sequence[str]] = {
    "circle": ("circle", "circle", "disc", "disk", "dot", "ball"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "diamond": ("diamond", "diamond", "rhombus"),
    "star": ("star", "star", "five pointed star"),
    "heart": ("heart",),
    "cross": ("cross", "cross", "plus sign", "plus"),
    "ring": ("ring", "ring", "donut", "hoop"),
}
SIZE_WORDS: dict[str, Sequence[str]] = {
    "small": ("small", "small", "tiny", "little"),
    "medium": ("medium", "medium sized", "mid sized"),
    "large": ("large", "large", "big", "huge", "giant"),
}
POSITION_WORDS: dict[str, Sequence[str]] = {
    "centre": ("in the centre", "in the center", "in the middle", "centered"),
    "left": ("on the left", "on the left side", "at the left"),
    "right": ("on the right", "on the right side", "at the right"),
    "top": ("at the top", "on top", "at the top edge"),
    "bottom": ("at the bottom", "at the bottom edge"),
    "top left": ("in the top left corner", "at the top left", "in the upper left corner", "in the upper left"),
    "top right": (
        "in the top right corner",
        "at the top right",
        "in the upper right corner",
        "in the upper right",
    ),
    "bottom left": (
        "in the bottom left corner",
        "at the bottom left",
        "in the lower left corner",
        "in the lower left",
    ),
    "bottom right": (
        "in the bottom right corner",
        "at the bottom right",
        "in the lower right corner",
        "in the lower right",
    ),
}
_BACKGROUND = (
    "on a {} background",
    "on a {} background",
    "on {}",
    "against a {} background",
    "on a plain {} background",
    "with a {} background",
    "over a {} backdrop",
    "{} background",
)
SCENE_WORDS: dict[str, Sequence[str]] = {
    "sea": ("sea", "ocean", "calm sea", "the sea", "seascape", "ocean waves", "water", "lake", "beach"),
    "mountains": ("mountains", "mountain range", "mountain landscape", "snowy peaks", "a mountain", "alps"),
    "city": (
        "city skyline",
        "cityscape",
        "skyline",
        "city",
        "skyscrapers",
        "urban skyline",
        "downtown buildings",
        "a city skyline",
        "a cityscape",
    ),
    "forest": ("forest", "pine forest", "woods", "trees", "a forest"),
    "desert": ("desert", "sand dunes", "desert dunes", "a desert"),
    "snow": ("snow", "snowy field", "winter landscape", "snowy landscape", "winter"),
    "hills": ("hills", "green hills", "meadow", "rolling hills", "landscape", "countryside", "field", "nature"),
}
TIME_WORDS: dict[str, Sequence[str]] = {
    "day": (
        "at noon",
        "during the day",
        "by day",
        "in daylight",
        "under a blue sky",
        "on a sunny day",
        "at midday",
    ),
    "sunset": ("at sunset", "at sunset", "at dusk", "during sunset", "in the evening", "at golden hour"),
    "sunrise": ("at sunrise", "at dawn", "in the morning", "during sunrise"),
    "night": ("at night", "at night", "by night", "under the stars", "at midnight", "in the dark"),
}
_TIME_FIRST: dict[str, Sequence[str]] = {
    "day": ("daytime", "sunny", "daylight"),
    "sunset": ("sunset", "sunset", "evening", "dusk"),
    "sunrise": ("sunrise", "dawn", "morning"),
    "night": ("night", "nighttime", "midnight", "starry night"),
}
_PREFIXES = (
    "a photo of",
    "photo of",
    "a picture of",
    "an image of",
    "an illustration of",
    "illustration of",
    "minimal",
    "minimalist",
    "a simple drawing of",
    "a render of",
    "a view of",
)
_SUFFIXES = (
    "minimal",
    "simple",
    "high quality",
    "sharp",
    "detailed",
    "best quality",
    "clean",
    "vector art",
    "flat design",
    "professional",
    "sharp focus",
)
FAULT_WORDS: dict[str, Sequence[str]] = {
    "blurry": ("blurry", "blurry", "blurred", "out of focus", "low quality"),
    "noisy": ("noisy", "noisy", "grainy", "low quality"),
    "pixelated": ("pixelated", "low resolution", "low quality", "bad quality"),
    "washed out": ("washed out", "low contrast", "dull", "low quality"),
}
_BESIDE_THE_POINT = (
    *("beautiful", "product", "professional", "8k", "4k", "hd", "studio", "lighting", "cinematic", "realistic"),
    *("trending", "artstation", "masterpiece", "modern", "elegant", "design", "poster", "wallpaper", "style"),
    *("digital", "art", "shot", "stock", "image", "cute", "vivid", "bright", "soft", "smooth", "wide", "angle"),
    *("banner", "template", "abstract", "concept", "scene", "view", "photography", "photorealistic", "render"),
    *("test", "hello", "cat", "dog", "robot", "car", "house", "person", "portrait", "flower", "coffee", "watch"),
    *("bottle", "perfume", "shoe", "phone", "luxury", "premium", "advertising", "marketing", "brand", "logo"),
)
_STUDIO: dict[str, Sequence[str]] = {
    "podium": (
        "a {} podium",
        "{} product podium",
        "{} studio backdrop with a podium",
        "product backdrop with a {} pedestal",
        "a podium on a {} backdrop",
        "{} product stand",
        "empty {} podium in a studio",
        "{} product display",
    ),
    "gradient": (
        "{} gradient",
        "a soft {} gradient background",
        "{} studio backdrop",
        "{} gradient backdrop",
        "plain {} studio background",
        "smooth {} gradient",
        "{} product backdrop",
        "{} photo backdrop",
    ),
    "bokeh": (
        "{} bokeh",
        "{} bokeh lights",
        "blurred {} lights",
        "{} bokeh background",
        "out of focus {} lights",
    ),
}
_WOOD = ("{} wood texture", "{} wooden planks", "{} wood background", "a {} wooden table", "{} wood")
_NIGHT_SKY = (
    "night sky with stars",
    "starry sky",
    "stars in the night sky",
    "starry night sky",
    "a sky full of stars",
)
_MOONLIT = ("the moon in the night sky", "night sky with a moon", "moon and stars", "night sky with stars and moon")


def caption(picture: Picture, rng: np.random.Generator) -> str:
    """Write one caption of a picture; the empty one now and then, for guidance to lean on."""
    if rng.random() < _EMPTY_SHARE:
        return ""
    if picture.fault is not None and rng.random() < 0.4:  # noqa: PLR2004
        return _fault_words(picture.fault, rng)
    subject = picture.subject
    if isinstance(subject, ShapePicture) and rng.random() < _PLAIN_SHARE:
        text = describe(subject)
    else:
        text = _words_for(subject, rng)
    if rng.random() < 0.3:  # noqa: PLR2004
        text = f"{_one(rng, _PREFIXES)} {text}"
    if picture.fault is not None:
        text = f"{text}, {_fault_words(picture.fault, rng)}"
    elif rng.random() < 0.25:  # noqa: PLR2004
        text = f"{text}, {_one(rng, _SUFFIXES)}"
    return _with_noise(with_articles(text), rng)


def with_articles(text: str) -> str:
    """Write "an" before a vowel: captions are put together from parts that do not know their neighbours."""
    return re.sub(r"\ba(?= [aeiou])", "an", text)


def describe(subject: ShapePicture) -> str:
    """Write the plain caption that names all five properties, as the evaluation does."""
    size = SIZE_WORDS[subject.size][0]
    where = POSITION_WORDS[subject.position][0]
    text = f"a {size} {subject.colour} {subject.shape} {where} on a {subject.background} background"
    return with_articles(text)


def vocabulary() -> set[str]:
    """Return every word that a caption may use."""
    tables = (COLOUR_WORDS, SHAPE_WORDS, SIZE_WORDS, POSITION_WORDS, SCENE_WORDS, TIME_WORDS, _TIME_FIRST)
    phrases = [phrase for table in (*tables, FAULT_WORDS, _STUDIO) for row in table.values() for phrase in row]
    phrases += [*_BACKGROUND, *_PREFIXES, *_SUFFIXES, *_BESIDE_THE_POINT, *_WOOD, *_NIGHT_SKY, *_MOONLIT]
    phrases += ["a an the on in at of over and with in front of under futuristic scifi cyberpunk light dark"]
    phrases += ["rustic oak walnut brown one behind , . : -", "night full stars moon lights glowing sky"]
    return {word for phrase in phrases for word in phrase.replace("{}", " ").split()}


def _one(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _fault_words(fault: str, rng: np.random.Generator) -> str:
    words = [_one(rng, FAULT_WORDS[fault])]
    if rng.random() < 0.5:  # noqa: PLR2004
        words.append(_one(rng, ("low quality", "bad quality", _one(rng, FAULT_WORDS[fault]))))
    if rng.random() < 0.25:  # noqa: PLR2004
        # A list of faults is how negative prompts are written, so no one fault may be all it means.
        words.append(_one(rng, FAULT_WORDS[_one(rng, tuple(FAULT_WORDS))]))
    order = rng.permutation(len(words))
    return ", ".join(words[index] for index in order)


def _words_for(subject: ShapePicture | ScenePicture, rng: np.random.Generator) -> str:
    return _shape_words(subject, rng) if isinstance(subject, ShapePicture) else _scene_words(subject, rng)


def _shape_words(subject: ShapePicture, rng: np.random.Generator) -> str:
    colour, shape = _one(rng, COLOUR_WORDS[subject.colour]), _one(rng, SHAPE_WORDS[subject.shape])
    # Left unsaid, a shape is of medium size and in the centre, and its background the plainest there is.
    size = _one(rng, SIZE_WORDS[subject.size])
    if subject.size == "medium" and rng.random() < 0.6:  # noqa: PLR2004
        size = ""
    where = _one(rng, POSITION_WORDS[subject.position])
    if subject.position == "centre" and rng.random() < 0.5:  # noqa: PLR2004
        where = ""
    ground = _one(rng, _BACKGROUND).format(_one(rng, COLOUR_WORDS[subject.background]))
    unsaid = "black" if subject.colour == "white" else "white"
    if subject.background == unsaid and rng.random() < 0.3:  # noqa: PLR2004
        ground = ""
    return _ordered(" ".join(part for part in (size, colour, shape) if part), where, ground, rng)


def _ordered(thing: str, where: str, ground: str, rng: np.random.Generator) -> str:
    article = _one(rng, ("a ", "a ", "a ", "one ", ""))
    order = rng.random()
    if order < 0.5:  # noqa: PLR2004
        return " ".join(part for part in (article + thing, where, ground) if part)
    if order < 0.75:  # noqa: PLR2004
        return ", ".join(part for part in (f"{article}{thing} {ground}".strip(), where) if part)
    if order < 0.88:  # noqa: PLR2004
        return ", ".join(part for part in (ground, f"{article}{thing} {where}".strip()) if part)
    return ", ".join(part for part in (thing, where, ground) if part)


def _scene_words(subject: ScenePicture, rng: np.random.Generator) -> str:
    if subject.scene in OUTDOOR:
        return _outdoor_words(subject, rng)
    if subject.scene == "stars":
        return _one(rng, (*_MOONLIT, "full moon") if subject.moon else _NIGHT_SKY)
    if subject.scene == "wood":
        tone = ("dark", "dark", "walnut", "brown") if subject.dark else ("light", "light", "oak", "rustic", "")
        return _one(rng, _WOOD).format(_one(rng, tone)).strip().replace("  ", " ")
    return _one(rng, _STUDIO[subject.scene]).format(_tint_word(subject, rng)).replace("  ", " ").strip()


def _tint_word(subject: ScenePicture, rng: np.random.Generator) -> str:
    """Name the tint; a backdrop without one is grey, and lights without one are golden."""
    unsaid = "yellow" if subject.scene == "bokeh" else "grey"
    if subject.tint == unsaid and rng.random() < 0.5:  # noqa: PLR2004
        return ""
    return _one(rng, COLOUR_WORDS[subject.tint])


def _outdoor_words(subject: ScenePicture, rng: np.random.Generator) -> str:
    thing = _one(rng, SCENE_WORDS[subject.scene])
    if subject.futuristic:
        thing = f"{_one(rng, ('futuristic', 'futuristic', 'scifi', 'cyberpunk'))} {thing.removeprefix('a ')}"
    if rng.random() < 0.3:  # noqa: PLR2004
        thing = "a " + thing.removeprefix("a ").removeprefix("the ")
    when, first = _one(rng, TIME_WORDS[subject.time]), _one(rng, _TIME_FIRST[subject.time])
    # Left unsaid, it is day.
    if subject.time == "day" and rng.random() < 0.6:  # noqa: PLR2004
        return thing
    moon = " with a moon" if subject.moon and rng.random() < 0.7 else ""  # noqa: PLR2004
    order = rng.random()
    if order < 0.5:  # noqa: PLR2004
        return f"{thing} {when}{moon}"
    if order < 0.7:  # noqa: PLR2004
        return f"{first} {_one(rng, ('over', 'over', 'behind', 'in'))} {thing}{moon}"
    if order < 0.85:  # noqa: PLR2004
        return f"{first} {thing}{moon}"
    return f"{thing}, {first}{moon}"


def _with_noise(text: str, rng: np.random.Generator) -> str:
    """Put words that mean nothing here among the others, so that unknown words do no harm."""
    if rng.random() >= _NOISE_SHARE:
        return text
    extra = [_one(rng, _BESIDE_THE_POINT) for _ in range(int(rng.integers(1, 4)))]
    if rng.random() < 0.3:  # noqa: PLR2004
        extra = ["".join(chr(97 + int(letter)) for letter in rng.integers(0, 26, int(rng.integers(3, 9))))]
    words = " ".join(extra)
    return f"{text}, {words}" if rng.random() < 0.7 else f"{words} {text}"  # noqa: PLR2004
