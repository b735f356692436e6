"""What a frame does with a product: its placement, text and badges, the sizes and format that come out.

A design is JSON, stored with the frame and copied into each run. All lengths are pixels of the frame's picture; a
size of another shape scales them with the frame.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MAX_SIDE = 8192
MAX_LAYERS = 32
MAX_SIZES = 8
MIN_BOX = 20
LEAST_TYPE, MIN_TYPE = 4, 12
DEFAULT_SHARE = 0.6

Colour = Annotated[str, Field(pattern=r"^#(?:[0-9a-fA-F]{6}|[0-9a-fA-F]{8})$")]
"""`#rrggbb` or `#rrggbbaa`."""
AssetId = Annotated[str, Field(pattern=r"^ast_[0-9a-z]{26}$")]
Font = Annotated[str, Field(pattern=r"^(?:regular|bold|ast_[0-9a-z]{26})$")]
"""A bundled font's name, or an uploaded one's id."""
Opacity = Annotated[float, Field(ge=0, le=1)]


class Model(BaseModel):
    """Strict: an unknown field is an error that names it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Fit(StrEnum):
    """How a picture fills a box of another shape."""

    CONTAIN = "contain"
    COVER = "cover"
    STRETCH = "stretch"


class Anchor(StrEnum):
    """Which side of the box a picture that does not fill it keeps to; for `cover`, which part is kept."""

    CENTER = "center"
    TOP = "top"
    BOTTOM = "bottom"
    LEFT = "left"
    RIGHT = "right"
    TOP_LEFT = "top_left"
    TOP_RIGHT = "top_right"
    BOTTOM_LEFT = "bottom_left"
    BOTTOM_RIGHT = "bottom_right"


class Box(Model):
    """A rectangle in pixels of the frame; `clamped` brings it inside."""

    x: Annotated[int, Field(ge=-MAX_SIDE, le=MAX_SIDE)]
    y: Annotated[int, Field(ge=-MAX_SIDE, le=MAX_SIDE)]
    width: Annotated[int, Field(ge=MIN_BOX, le=MAX_SIDE)]
    height: Annotated[int, Field(ge=MIN_BOX, le=MAX_SIDE)]

    def clamped(self, width: int, height: int) -> Box:
        """This box, moved and if need be shrunk so that it lies within `width` x `height` pixels."""
        wide, high = min(self.width, width), min(self.height, height)
        left = min(max(self.x, 0), width - wide)
        top = min(max(self.y, 0), height - high)
        return Box.model_construct(x=left, y=top, width=wide, height=high)


def default_box(width: int, height: int) -> Box:
    """Three fifths of the frame, in its middle."""
    wide, high = round(width * DEFAULT_SHARE), round(height * DEFAULT_SHARE)
    return Box.model_construct(x=(width - wide) // 2, y=(height - high) // 2, width=wide, height=high)


class Shadow(Model):
    """A soft shadow of the product's outline."""

    x: Annotated[int, Field(ge=-500, le=500)] = 0
    y: Annotated[int, Field(ge=-500, le=500)] = 12
    blur: Annotated[int, Field(ge=0, le=200)] = 16
    colour: Colour = "#00000060"


class Placement(Model):
    """Where the product's picture goes and how. `rotation` in degrees, clockwise."""

    box: Box | None = None
    fit: Fit = Fit.CONTAIN
    anchor: Anchor = Anchor.CENTER
    padding: Annotated[int, Field(ge=0, le=2000)] = 0
    rotation: Annotated[float, Field(ge=-360, le=360)] = 0
    radius: Annotated[int, Field(ge=0, le=4096)] = 0
    background: Colour | None = None
    shadow: Shadow | None = None


class Align(StrEnum):
    """Sideways alignment of text in its box."""

    LEFT = "left"
    CENTER = "center"
    RIGHT = "right"


class VerticalAlign(StrEnum):
    """Upright alignment of text in its box."""

    TOP = "top"
    MIDDLE = "middle"
    BOTTOM = "bottom"


class Condition(Model):
    """`field operator value`; `value` may name another field in braces (`{price}`).

    Prices, percentages and plain numbers compare as numbers; amounts of two different currencies are never less, more
    or equal. All else compares as text without regard to case.
    """

    field: Annotated[str, Field(min_length=1, max_length=64)]
    operator: Literal["=", "!=", "<", "<=", ">", ">=", "contains", "present", "absent"] = "present"
    value: Annotated[str, Field(max_length=200)] = ""


class Outline(Model):
    """A line around letters."""

    colour: Colour = "#000000"
    width: Annotated[int, Field(ge=1, le=64)] = 2


class TextLayer(Model):
    """Text out of the feed's fields, such as `{title}` or `Now {sale_price}`; hidden when a field it names is empty.

    The text is wrapped, and shrunk from `size` down to `min_size` until it fits; what still does not fit ends in an
    ellipsis. Line breaks in `text` stay.
    """

    text: Annotated[str, Field(min_length=1, max_length=500)]
    box: Box
    font: Font = "regular"
    size: Annotated[int, Field(ge=LEAST_TYPE, le=1000)] = 48
    min_size: Annotated[int, Field(ge=LEAST_TYPE, le=1000)] = MIN_TYPE
    max_lines: Annotated[int, Field(ge=1, le=50)] = 4
    colour: Colour = "#000000"
    outline: Outline | None = None
    background: Colour | None = None
    radius: Annotated[int, Field(ge=0, le=4096)] = 0
    padding: Annotated[int, Field(ge=0, le=500)] = 0
    align: Align = Align.CENTER
    vertical_align: VerticalAlign = VerticalAlign.MIDDLE
    when: tuple[Condition, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _small_stays_small(cls, layer: Any) -> Any:
        """Who asks for a `size` below the usual `min_size` need not send that too."""
        if isinstance(layer, dict) and "min_size" not in layer:
            size = layer.get("size")
            if isinstance(size, int) and LEAST_TYPE <= size < MIN_TYPE:
                return {**layer, "min_size": size}
        return layer

    @model_validator(mode="after")
    def _sizes_in_order(self) -> Self:
        if self.min_size > self.size:
            raise ValueError("min_size must not be greater than size")
        return self


class Badge(Model):
    """One picture of a badge layer and when it is shown: all of `when` must hold."""

    asset: AssetId
    when: tuple[Condition, ...] = ()


def _some(badges: tuple[Badge, ...]) -> tuple[Badge, ...]:
    """There is at least one. Asked once each is sound: a `min_length` would also count those that are not."""
    if not badges:
        raise ValueError("there must be at least one badge")
    return badges


class BadgeLayer(Model):
    """At most one badge in a box: the first whose conditions hold."""

    box: Box
    badges: Annotated[
        tuple[Badge, ...], Field(max_length=MAX_LAYERS, json_schema_extra={"minItems": 1}), AfterValidator(_some)
    ]
    fit: Fit = Fit.CONTAIN
    anchor: Anchor = Anchor.CENTER
    opacity: Opacity = 1


class OutputSize(Model):
    """One of the sizes that come out. The frame is scaled to cover it, from its middle; layers move with it."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
    width: Annotated[int, Field(ge=16, le=MAX_SIDE)]
    height: Annotated[int, Field(ge=16, le=MAX_SIDE)]


class OutputFormat(Model):
    """The file format. `exact` asks for full-quality resampling and colour at a lower rate of pictures."""

    kind: Literal["jpeg", "png", "webp"] = "jpeg"
    quality: Annotated[int, Field(ge=1, le=100)] = 90
    exact: bool = False

    @property
    def suffix(self) -> str:
        """The file name's ending, without the dot."""
        return {"jpeg": "jpg"}.get(self.kind, self.kind)

    @property
    def media_type(self) -> str:
        """The Content-Type."""
        return f"image/{self.kind}"


class Design(Model):
    """Everything of a frame but its picture and its feed.

    `layer` says where the frame's picture lies: `over` the product (it has a hole), or `under` it; `None` lets its
    alpha channel say. Text and badges lie over both. Without `sizes` one comes out, of the frame's own size, named
    `original`.
    """

    layer: Literal["over", "under"] | None = None
    placement: Placement = Placement()
    texts: Annotated[tuple[TextLayer, ...], Field(max_length=MAX_LAYERS)] = ()
    badges: Annotated[tuple[BadgeLayer, ...], Field(max_length=MAX_LAYERS)] = ()
    sizes: Annotated[tuple[OutputSize, ...], Field(max_length=MAX_SIZES)] = ()
    output: OutputFormat = OutputFormat()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [size.name for size in self.sizes]
        if len(set(names)) != len(names):
            raise ValueError("two sizes have the same name")
        return self

    def output_sizes(self, width: int, height: int) -> tuple[OutputSize, ...]:
        """The sizes that come out of a frame of `width` x `height` pixels."""
        return self.sizes or (OutputSize.model_construct(name="original", width=width, height=height),)

    @property
    def assets(self) -> frozenset[str]:
        """Ids of the fonts and badges that it names."""
        fonts = {layer.font for layer in self.texts if layer.font.startswith("ast_")}
        return frozenset(fonts | {badge.asset for layer in self.badges for badge in layer.badges})
