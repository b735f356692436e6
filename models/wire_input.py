"""The job's input on the wire: every field with its bound, its meaning, and the names that other servers give it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from models.wire_fields import (
    SEED_COUNT,
    JobId,
    Name,
    NegativeText,
    OutputFormat,
    PictureSource,
    PlainText,
    PromptText,
    Side,
    Styles,
    Wire,
    none_as_empty,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import ModelWrapValidatorHandler

LORAS_MAX = 8
ANY_SEED = -1
DEADLINE_MAX_S = 7 * 86_400
IGNORED_WITHOUT_IMAGE = ("strength",)
IGNORED_WITHOUT_REFINER = ("refiner_inference_steps", "high_noise_frac", "refiner_negative_prompt")
IGNORED_WITH_PNG = ("quality",)
SPACINGS = ("automatic", "uniform", "normal", "karras")
AUTOMATIC_IS_KARRAS = ("dpm++ 2m", "dpm++ 2m sde")  # AUTOMATIC1111's choice since 1.9


class LoraInput(Wire):
    """One LoRA of a request."""

    name: Name = Field(description="Its name in the catalogue.")
    scale: float = Field(1.0, strict=True, ge=-4, le=4, description="How much of it; 0 is none.")


def _named_once(loras: tuple[LoraInput, ...]) -> tuple[LoraInput, ...]:
    names = [lora.name for lora in loras]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"'{name}' is named more than once")
    return loras


class HiresInput(Wire):
    """The second pass at a larger size."""

    scale: float | None = Field(None, strict=True, gt=1, le=4, description="Times the picture's width and height.")
    width: Side | None = Field(None, description="Pixels; instead of `scale`.")
    height: Side | None = Field(None, description="Pixels; instead of `scale`.")
    steps: int | None = Field(None, strict=True, ge=1, le=150, description="Absent: the picture's.")
    strength: float | None = Field(None, strict=True, gt=0, le=1, description="Share that is drawn anew.")
    upscaler: Literal["lanczos", "latent"] = Field("lanczos", description="What enlarges the finished picture.")

    @model_validator(mode="after")
    def _one_way_to_say_the_size(self) -> Self:
        if self.scale is not None and (self.width is not None or self.height is not None):
            raise ValueError("give either scale, or width and height")
        return self


def _also(name: str, *others: str) -> AliasChoices:
    return AliasChoices(name, *others)


class JobInput(Wire):
    """What to draw. A field that is not sent takes the checkpoint's own default.

    Sizes are in pixels. `negative_prompt` absent means the checkpoint's default, `""` means none. These are the
    hard bounds; a server's settings may be narrower. A field may be sent under the name that another server gives
    it; two names of one field at once are refused.
    """

    prompt: PromptText = Field(description="What the picture shows.")
    negative_prompt: NegativeText | None = Field(
        None, description='What it must not show. Absent: the checkpoint\'s default; "": none.'
    )
    style: Styles = Field(
        (),
        validation_alias=_also("style", "styles", "style_preset"),
        description="Name of a style, or a list of at most 8: templates around both prompts, applied in order.",
    )
    prompt_syntax: Literal["a1111", "plain"] = Field(
        "a1111", description="`a1111`: `(word:1.3)`, `[word]` and BREAK have a meaning; `plain`: all is text."
    )
    width: Side | None = Field(
        None, description="Pixels, a multiple of 8. Absent: the input picture's, else the checkpoint's size."
    )
    height: Side | None = Field(
        None, description="Pixels, a multiple of 8. Absent: the input picture's, else the checkpoint's size."
    )
    num_inference_steps: int | None = Field(
        None,
        strict=True,
        ge=1,
        le=150,
        validation_alias=_also("num_inference_steps", "steps"),
        description="Denoising steps. Absent: the checkpoint's default.",
    )
    guidance_scale: float | None = Field(
        None,
        strict=True,
        ge=0,
        le=50,
        validation_alias=_also("guidance_scale", "cfg_scale"),
        description="Classifier-free guidance; at 1 or below the negative prompt has no effect. "
        "Absent: the checkpoint's default.",
    )
    seed: int | None = Field(
        None, strict=True, ge=ANY_SEED, lt=SEED_COUNT, description="Absent or -1: drawn at random and reported."
    )
    num_images: int = Field(
        1,
        strict=True,
        ge=1,
        le=16,
        validation_alias=_also("num_images", "n", "batch_size", "num_outputs"),
        description="Picture i has seed (seed + i) mod 2^32.",
    )
    scheduler: PlainText | None = Field(
        None,
        min_length=1,
        max_length=64,
        validation_alias=_also("scheduler", "sampler_name", "sampler"),
        description="Sampler's name. Absent: the checkpoint's default.",
    )
    checkpoint: Name | None = Field(
        None,
        validation_alias=_also("checkpoint", "model"),
        description="Name of a checkpoint in the catalogue. Absent: the server's own.",
    )
    loras: Annotated[tuple[LoraInput, ...], BeforeValidator(none_as_empty), AfterValidator(_named_once)] = Field(
        (),
        max_length=LORAS_MAX,
        description="At most 8 `{name, scale}` from the server's catalogue, each named once; scale from -4 to 4, "
        "absent 1.",
    )
    image: PictureSource | None = Field(
        None,
        repr=False,
        validation_alias=_also("image", "image_url", "init_image"),
        description="What to start from (img2img): base64, a data URL, or an https address. PNG, JPEG or WebP.",
    )
    mask: PictureSource | None = Field(
        None,
        repr=False,
        validation_alias=_also("mask", "mask_image"),
        description="Inpainting: white is drawn anew, black stays. Of the image's shape; given as the image is.",
    )
    strength: float | None = Field(
        None,
        strict=True,
        ge=0,
        le=1,
        validation_alias=_also("strength", "denoising_strength"),
        description="With `image`: share of the steps that is drawn, above 0. Absent: 0.75.",
    )
    hires: HiresInput | None = Field(
        None,
        description="A second pass at a larger size: `{scale}` above 1, at most 4, or `{width, height}`; and "
        "`steps`, `strength` (absent: 0.5, with `latent` 0.7), `upscaler` (`lanczos` or `latent`).",
    )
    refiner: Name | None = Field(
        None,
        validation_alias=_also("refiner", "refiner_checkpoint"),
        description="Name of a refiner in the catalogue, which draws the last part.",
    )
    refiner_inference_steps: int | None = Field(
        None,
        strict=True,
        ge=0,
        le=150,
        validation_alias=_also("refiner_inference_steps", "refiner_steps"),
        description="With `refiner`: steps of its whole schedule, at least 1. Absent: the picture's.",
    )
    high_noise_frac: float | None = Field(
        None,
        strict=True,
        ge=0,
        le=1,
        validation_alias=_also("high_noise_frac", "refiner_switch_at"),
        description="With `refiner`: share of the noise that the checkpoint takes, between 0 and 1. Absent: 0.8.",
    )
    refiner_negative_prompt: NegativeText | None = Field(
        None, description="With `refiner`: its own negative prompt. Absent: the picture's."
    )
    output_format: OutputFormat = Field(
        "png", validation_alias=_also("output_format", "format"), description="Form of the pictures' files."
    )
    quality: int | None = Field(
        None,
        strict=True,
        ge=1,
        le=100,
        validation_alias=_also("quality", "output_quality"),
        description="With `jpeg` and `webp`. Absent: 90.",
    )
    metadata: bool = Field(
        True, strict=True, description="Write prompt and settings into each file, as AUTOMATIC1111 does."
    )
    preview_every: int = Field(
        0, strict=True, ge=0, le=150, description="A small preview in `/stream` every so many steps; 0: none."
    )
    deadline_s: float | None = Field(
        None,
        strict=True,
        gt=0,
        le=DEADLINE_MAX_S,
        description="Drawing must begin within so many seconds: refused at once where it cannot, failed where it did "
        "not. `policy.ttl` bounds it too.",
    )
    strict: bool = Field(
        False,
        strict=True,
        description="Alone in its batch from first to last step: equal bit for bit every time.",
    )
    request_id: JobId | None = Field(None, description="Correlation id; also the job's id on a self-hosted server.")

    @field_validator("seed")
    @classmethod
    def _any_seed_is_none(cls, seed: int | None) -> int | None:
        """AUTOMATIC1111's clients always send one, -1 for any."""
        return None if seed == ANY_SEED else seed

    @model_validator(mode="wrap")
    @classmethod
    def _one_name_each(cls, data: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Other names of a field are welcome, two at once are not; one that is null was not sent."""
        if not isinstance(data, dict):
            return handler(data)
        kept, problems = _one_of_each(data)
        if not problems:
            return handler(kept)
        try:
            handler(kept)
        except ValidationError as others:
            problems += [
                InitErrorDetails(type=PydanticCustomError(item["type"], item["msg"]), loc=item["loc"], input=None)
                for item in others.errors(include_url=False, include_input=False, include_context=False)
            ]
        raise ValidationError.from_exception_data(cls.__name__, problems)

    def ignored_fields(self) -> list[str]:
        """Names of fields that the caller sent and that change nothing."""
        names: list[str] = []
        if self.image is None:
            names += IGNORED_WITHOUT_IMAGE
        if self.refiner is None:
            names += IGNORED_WITHOUT_REFINER
        if self.output_format == "png":
            names += IGNORED_WITH_PNG
        return [name for name in names if getattr(self, name) is not None]


def names_of(field: str) -> tuple[str, ...]:
    """Every name under which a field of `JobInput` may be sent, its own first."""
    alias = JobInput.model_fields[field].validation_alias
    return tuple(map(str, alias.choices)) if isinstance(alias, AliasChoices) else (field,)


def _one_sampler(data: dict[Any, Any]) -> dict[Any, Any]:
    """AUTOMATIC1111 says the spacing of the noise apart: `sampler_name` "DPM++ 2M", `scheduler` "Karras"."""
    sampler, spacing = data.get("sampler_name"), data.get("scheduler")
    if not isinstance(sampler, str) or not isinstance(spacing, str) or spacing.lower() not in SPACINGS:
        return data
    name = sampler.strip().lower()
    karras = spacing.lower() == "karras" or (spacing.lower() == "automatic" and name in AUTOMATIC_IS_KARRAS)
    kept = {key: value for key, value in data.items() if key != "scheduler"}
    return kept | ({"sampler_name": f"{sampler.strip()} Karras"} if karras and not name.endswith("karras") else {})


def _one_of_each(data: Mapping[Any, Any]) -> tuple[dict[Any, Any], list[InitErrorDetails]]:
    """The payload with one name for each field, and a problem for every further one."""
    kept = _one_sampler(dict(data))
    problems: list[InitErrorDetails] = []
    for field in JobInput.model_fields:
        sent = [name for name in names_of(field) if name in kept]
        if len(sent) < 2:  # noqa: PLR2004 - a pair
            continue
        valued = [name for name in sent if kept[name] is not None]
        for name in sent:
            if name != (valued or sent)[0]:
                del kept[name]
        if len(valued) > 1:
            both = " and ".join(valued)
            problem = PydanticCustomError("two_names", f"{both} are names of one field; send one of them")
            problems += [InitErrorDetails(type=problem, loc=(name,), input=None) for name in valued]
    return kept, problems
